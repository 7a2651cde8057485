"""Experts, gate, mixture and their training: torch, and nothing that waits."""

import os

# Between two operators torch's threads spin for milliseconds, on cores that the event loop and other processes of the
# same machine need meanwhile; libgomp reads this once, when torch is loaded. The value is that which libgomp itself
# takes where there are more threads than cores (libgomp manual, GOMP_SPINCOUNT, says 1,000 for that case).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
