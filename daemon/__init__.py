"""The shell that waits: trio, sockets, SQLite, HTTP, command lines, signals, clock and randomness."""
