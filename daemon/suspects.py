"""Remembers which nodes did not answer of late, so that nobody waits for those that will not answer now."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

NameT = TypeVar("NameT", bound=Hashable)

FAILURES = 3
"""So many in a row: one call in ten may fail by chance, and a caller that gave up on each would soon have nobody."""
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 80.0
MAX_NAMES = 256
"""Strangers choose how many names there are to fail: of more, the one that failed first is forgotten."""


@dataclass(slots=True)
class _Doubt:
    failures: int = 0
    pause_s: float = FIRST_PAUSE_S
    retry_at_s: float = 0.0


class Suspects(Generic[NameT]):
    """Names that are out after ``failures`` failures in a row, until one answers again.

    Whoever keeps it tries those that are `due` apart from the work, first after a few seconds, then after twice as long
    each time. Time is an argument.
    """

    def __init__(self, failures: int = FAILURES) -> None:
        self._failures = failures
        self._doubts: dict[NameT, _Doubt] = {}

    def answered(self, name: NameT) -> None:
        """Clear ``name``."""
        self._doubts.pop(name, None)

    def failed(self, name: NameT, now_s: float) -> None:
        """Count a call that brought no answer; those that end while it is out and not yet due count no more."""
        doubt = self._doubts.get(name)
        if doubt is None:
            if len(self._doubts) == MAX_NAMES:
                self._doubts.pop(next(iter(self._doubts)))
            doubt = self._doubts[name] = _Doubt()
        if self.is_out(name) and now_s < doubt.retry_at_s:
            return
        doubt.failures += 1
        if self.is_out(name):
            doubt.retry_at_s = now_s + doubt.pause_s
            doubt.pause_s = min(2 * doubt.pause_s, LONGEST_PAUSE_S)

    def is_out(self, name: NameT) -> bool:
        """Whether ``name`` should not be asked now."""
        doubt = self._doubts.get(name)
        return doubt is not None and doubt.failures >= self._failures

    def due(self, now_s: float) -> list[NameT]:
        """The names that are out and should be tried again."""
        return [name for name, doubt in self._doubts.items() if self.is_out(name) and doubt.retry_at_s <= now_s]
