"""Control frames that wait to be sent: windows, resets, pings and goodbyes, bounded because a peer can cause them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .frames import Pong, encode_frame

if TYPE_CHECKING:
    from .frames import Frame

# A block leaves room for an OPEN frame beside its control frames.
_BYTES_PER_BLOCK = 32 << 10
# Frames that pile up because the peer sends but does not read.
_MAX_BYTES = 64 << 10
_MAX_PONGS = 16


class ControlQueue:
    """The control frames of one session, in order."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._pongs = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    def put(self, frame: Frame) -> None:
        """Queue one frame."""
        encoded = encode_frame(frame)
        self._frames.append(encoded)
        self._bytes += len(encoded)
        self._pongs += isinstance(frame, Pong)

    @property
    def is_overfull(self) -> bool:
        """Whether the peer has caused more than it reads."""
        return self._bytes > _MAX_BYTES or self._pongs > _MAX_PONGS

    def take_block(self) -> bytearray:
        """The beginning of the next block: as many frames as leave room for others."""
        block = bytearray()
        while self._frames and len(block) < _BYTES_PER_BLOCK:
            block += self._frames.popleft()
        self._bytes -= len(block)
        if not self._frames:
            self._pongs = 0
        return block

    def clear(self) -> None:
        """Send nothing of it any more."""
        self._frames.clear()
        self._bytes = self._pongs = 0
