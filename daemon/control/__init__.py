"""Local control: HTTP on the Unix socket, and who may do what on it."""
