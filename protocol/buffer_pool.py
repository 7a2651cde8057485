"""Memory for incoming messages, used again once nobody holds a view of it.

A fresh buffer of many mebibytes costs more than its decryption: the system zeroes each page at its first touch.
Measured at 32 MiB, a pool doubles what a session receives. A buffer is free when the pool's reference is the only
one: every view, array or torch tensor over it holds another.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    Bytes = np.ndarray[Any, np.dtype[np.uint8]]

# Smaller buffers come from the allocator's own free lists, which are as warm.
MIN_POOLED_BYTES = 256 << 10


def new_buffer(size: int) -> memoryview:
    """Writable memory of ``size`` bytes that nothing has touched, aligned to 16."""
    return np.empty(size, np.uint8).data


@dataclass(slots=True)
class _Kept:
    memory: Bytes
    was_used: bool = True


def _references(kept: _Kept) -> int:
    """How many references the memory has, this call's own among them."""
    return sys.getrefcount(kept.memory)


_IDLE = _references(_Kept(np.empty(1, np.uint8)))


class BufferPool:
    """Keeps up to ``max_bytes`` of buffers, eight sizes to each power of two, whether in use or idle."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: dict[int, list[_Kept]] = {}  # by capacity
        self.kept_bytes = 0

    def allocate(self, size: int) -> memoryview:
        """Writable memory of ``size`` bytes with arbitrary content: a kept buffer that is idle, else a new one."""
        if size < MIN_POOLED_BYTES:
            return new_buffer(size)
        step = 1 << (size.bit_length() - 4)  # eighths of a power of two: a head beside a round tensor wastes little
        capacity = -(-size // step) * step
        row = self._kept.setdefault(capacity, [])
        for kept in row:
            if _references(kept) == _IDLE:
                kept.was_used = True
                return kept.memory[:size].data
        if self.kept_bytes + capacity > self._max_bytes:
            return new_buffer(size)
        kept = _Kept(np.empty(capacity, np.uint8))
        row.append(kept)
        self.kept_bytes += capacity
        return kept.memory[:size].data

    def trim(self) -> None:
        """Give back what was idle since the last trim; worth calling every few seconds."""
        for capacity, row in list(self._kept.items()):
            stay = [kept for kept in row if kept.was_used or _references(kept) != _IDLE]
            self.kept_bytes -= capacity * (len(row) - len(stay))
            for kept in stay:
                kept.was_used = False
            self._kept[capacity] = stay
