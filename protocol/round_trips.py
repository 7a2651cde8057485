"""How long to wait for an answer: round trips measured, smoothed as TCP does it (RFC 6298)."""

from __future__ import annotations

FIRST_TIMEOUT_S = 1.0
MIN_TIMEOUT_S = 0.4
MAX_TIMEOUT_S = 2.0


class RoundTrips:
    """Smoothed round-trip time and its deviation, and the time-out that follows from them."""

    def __init__(self) -> None:
        self.smoothed_s: float | None = None
        self._deviation_s = 0.0

    def add(self, round_trip_s: float) -> None:
        """Take in one measured round trip."""
        if self.smoothed_s is None:
            self.smoothed_s = round_trip_s
            self._deviation_s = round_trip_s / 2
            return
        self._deviation_s += (abs(round_trip_s - self.smoothed_s) - self._deviation_s) / 4
        self.smoothed_s += (round_trip_s - self.smoothed_s) / 8

    @property
    def timeout_s(self) -> float:
        """`FIRST_TIMEOUT_S` before any measure, then the smoothed time and four deviations, within bounds."""
        if self.smoothed_s is None:
            return FIRST_TIMEOUT_S
        return min(max(self.smoothed_s + 4 * self._deviation_s, MIN_TIMEOUT_S), MAX_TIMEOUT_S)

    def hedge_s(self, at_least_s: float) -> float:
        """After how long an answer is later than most: the smoothed time and one deviation."""
        if self.smoothed_s is None:
            return FIRST_TIMEOUT_S
        return max(self.smoothed_s + self._deviation_s, at_least_s)
