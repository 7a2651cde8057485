"""One run of sealed messages in one buffer, which is used again for the next run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .aead import TAG_BYTES
from .receive_buffer import LENGTH_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .noise import CipherState


class Batch:
    """What a session sends at once; the buffer grows to the longest run and stays until `trim`."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def seal(self, send: CipherState, parts: Sequence[memoryview]) -> memoryview:
        """Each part as one Noise message behind its length, encrypted from where it lies; valid until the next run."""
        total = sum(LENGTH_BYTES + len(part) + TAG_BYTES for part in parts)
        if total > len(self._buffer):
            self._buffer = bytearray(total)
        out = memoryview(self._buffer)
        at = 0
        for part in parts:
            size = len(part) + TAG_BYTES
            out[at : at + LENGTH_BYTES] = size.to_bytes(LENGTH_BYTES, "big")
            at += LENGTH_BYTES
            send.encrypt_into(out[at : at + size], part)
            at += size
        return out[:total]

    def trim(self) -> None:
        """Give the buffer back."""
        self._buffer = bytearray()
