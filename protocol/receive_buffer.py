"""The bytes of one connection between the socket and the parser: bounded, reused, never copied when whole."""

from __future__ import annotations

from .errors import TooLarge
from .noise import MAX_MESSAGE_BYTES

LENGTH_BYTES = 2
# Before and between large messages: enough for any handshake message, small enough for thousands of strangers.
SMALL_BUFFER_BYTES = 4 << 10
# While large messages come in: a few whole messages, small enough to stay in the processor's cache.
LARGE_BUFFER_BYTES = 4 * (LENGTH_BYTES + MAX_MESSAGE_BYTES)


class ReceiveBuffer:
    """Space for what arrives, and the length-prefixed messages that are whole in it.

    Views that it hands out are valid until the next `received` or `compact`.
    """

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(SMALL_BUFFER_BYTES))
        self._start = 0  # what arrived and was not taken yet: _memory[_start:_end]
        self._end = 0
        self._is_trim_due = False

    def space(self) -> memoryview:
        """Where the next bytes may be written; never empty, because a message that is begun always fits.

        The memory stays in use until `received`: a read may be under way into it.
        """
        if self._is_trim_due:
            self._is_trim_due = False
            if self._start == self._end and len(self._memory) > SMALL_BUFFER_BYTES:
                self._replace(SMALL_BUFFER_BYTES)
        return self._memory[self._end :]

    def received(self, count: int) -> None:
        """``count`` bytes were written into `space`."""
        self._end += count

    def take_byte(self) -> int | None:
        """The next byte, if there is one."""
        if self._start == self._end:
            return None
        self._start += 1
        return self._memory[self._start - 1]

    def take_message(self, max_bytes: int) -> memoryview | None:
        """The next whole message without its length, if it is there. Raises `TooLarge` at its length."""
        waiting = self._end - self._start
        if waiting < LENGTH_BYTES:
            return None
        begin = self._start + LENGTH_BYTES
        size = int.from_bytes(self._memory[self._start : begin], "big")
        if size > max_bytes:
            raise TooLarge("an encrypted message", size, max_bytes)
        if waiting < LENGTH_BYTES + size:
            if LENGTH_BYTES + size > len(self._memory):
                self._replace(LARGE_BUFFER_BYTES)
            return None
        self._start = begin + size
        return self._memory[begin : self._start]

    def compact(self) -> None:
        """Move what is left to the front, so that `space` is as long as it can be."""
        if self._start:
            rest = self._end - self._start
            self._memory[:rest] = self._memory[self._start : self._end]
            self._start, self._end = 0, rest

    def trim(self) -> None:
        """Give a large buffer back, if nothing is in it, before the next `space`: not now, because a read may be
        under way into the space that was given out last."""
        self._is_trim_due = True

    def _replace(self, size: int) -> None:
        memory = memoryview(bytearray(size))
        rest = self._end - self._start
        memory[:rest] = self._memory[self._start : self._end]
        self._memory, self._start, self._end = memory, 0, rest
