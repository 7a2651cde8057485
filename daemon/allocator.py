"""Keeps the memory of freed tensors in the process, where the next batch needs as much again."""

from __future__ import annotations

import ctypes
from contextlib import suppress

MMAP_THRESHOLD_BYTES = 64 << 20
TRIM_THRESHOLD_BYTES = 128 << 20

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


def keep_freed_memory() -> bool:
    """Have the C library give freed blocks back to the system only once 128 MiB are free; False without glibc.

    By default large ones are unmapped at once, and the gradients of a layer of 8 million weights mapped and filled with
    zeros page by page in every step: measured in a serving process, a quarter of its backward pass.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(
            mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES) and mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
        )
    return False
