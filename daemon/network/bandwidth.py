"""Bytes over all sessions, held to a rate in each direction where one is set."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

BURST_S = 0.1
"""So much of an idle time may be made up for at once."""
MAX_PIECE_BYTES = 64 << 10
"""The most that is moved at once under a rate: else one piece would be seconds of it."""


@dataclass(slots=True)
class Direction:
    """One direction. What was moved is paid for afterwards, by waiting before the next piece."""

    bytes_per_s: float | None = None
    _free_at: float = 0.0

    def pay(self, moved_bytes: int) -> None:
        """So many bytes were moved."""
        if self.bytes_per_s is not None:
            now = trio.current_time()
            self._free_at = max(self._free_at, now - BURST_S) + moved_bytes / self.bytes_per_s

    @property
    def is_free(self) -> bool:
        """Whether the next piece may be moved now."""
        return self.bytes_per_s is None or trio.current_time() >= self._free_at

    async def wait_free(self) -> None:
        """Wait until the next piece may be moved; a rate that is lifted meanwhile ends no wait under way."""
        if not self.is_free:
            await trio.sleep_until(self._free_at)


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Both directions of all sessions of a node."""

    sent: Direction = field(default_factory=Direction)
    received: Direction = field(default_factory=Direction)
