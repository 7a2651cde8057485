"""Bytes to typed records and back: crypto, codecs and session machines, with no I/O of any kind."""
