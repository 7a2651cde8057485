"""The last events in memory, numbered without gaps, for followers that may come late or read slowly.

A follower holds no queue: it reads the ring from the last number that it saw and waits for the next. So a
follower costs nothing, and one that is too slow loses the oldest events (the policy is *drop oldest*) and is told
how many.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

CAPACITY = 4096  # about 1 MiB of usual events; events are bounded before they come here
MAX_BATCH = 256


@dataclass(frozen=True, slots=True)
class LogLine:
    """One event: its number, its level (10 debug … 50 critical), its name and its JSON."""

    sequence: int
    level: int
    name: str
    json: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """What `LogRing.read` found: lines, how many were lost before them, and where to read on."""

    lines: list[LogLine]
    dropped: int
    last: int


class LogRing:
    """Numbered events from any thread; readers live in one trio run."""

    def __init__(self, capacity: int = CAPACITY, *, before_first: int = 0) -> None:
        """The first event gets the number after ``before_first``."""
        # A finalizer that logs can run while this lock is held by the same thread.
        self._lock = threading.RLock()
        self._lines: deque[LogLine] = deque(maxlen=capacity)
        self._before_first = before_first
        self._last = before_first
        self._waiting: tuple[trio.lowlevel.TrioToken, trio.Event] | None = None

    @property
    def last(self) -> int:
        """The number of the newest event; `before_first` before there is one."""
        return self._last

    def append(self, level: int, event: Mapping[str, Any]) -> bytes:
        """Number ``event``, keep it, wake who waits; returns its line of JSON. Callable from any thread."""
        with self._lock:
            self._last += 1
            line = encode_event({**event, "sequence": self._last})
            self._lines.append(LogLine(self._last, level, str(event.get("event", "")), line))
            waiting, self._waiting = self._waiting, None
        if waiting is not None:
            token, event_set = waiting
            with suppress(trio.RunFinishedError):  # the readers are gone with their run
                token.run_sync_soon(event_set.set)
        return line

    def read(
        self,
        after: int,
        *,
        level: int = 0,
        limit: int = MAX_BATCH,
        is_wanted: Callable[[str], bool] = lambda _name: True,
    ) -> Batch:
        """At most ``limit`` events numbered above ``after`` and at least as severe as ``level``, oldest first, of
        those whose names ``is_wanted``.

        A number from another life of the daemon (above `last`, or before the first) reads from the start.
        """
        with self._lock:
            after = self._before_first if after > self._last else max(after, self._before_first)
            oldest = self._lines[0].sequence if self._lines else self._last + 1
            skipped = max(after + 1 - oldest, 0)
            lines: list[LogLine] = []
            last = max(after, oldest - 1)
            for index in range(skipped, len(self._lines)):
                line = self._lines[index]
                if len(lines) == limit:
                    break
                last = line.sequence
                if line.level >= level and is_wanted(line.name):
                    lines.append(line)
            return Batch(lines, dropped=max(oldest - 1 - after, 0), last=last)

    def before_last(self, count: int, *, level: int = 0, is_wanted: Callable[[str], bool] = lambda _name: True) -> int:
        """The number to read after for the last ``count`` events that `read` would give."""
        with self._lock:
            if count == 0:
                return self._last
            for line in reversed(self._lines):
                count -= line.level >= level and is_wanted(line.name)
                if count == 0:
                    return line.sequence - 1
            return self._lines[0].sequence - 1 if self._lines else self._last

    async def wait_beyond(self, after: int) -> None:
        """Return when an event numbered above ``after`` is there."""
        while True:
            with self._lock:
                if self._last > after:
                    return
                if self._waiting is None:
                    self._waiting = (trio.lowlevel.current_trio_token(), trio.Event())
                event = self._waiting[1]
            await event.wait()


def encode_event(event: Mapping[str, Any]) -> bytes:
    """One event as one line of JSON, the most telling fields first."""
    first = {name: event[name] for name in ("timestamp", "level", "event") if name in event}
    return msgspec.json.encode(first | {name: value for name, value in event.items() if name not in first})
