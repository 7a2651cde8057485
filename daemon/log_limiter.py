"""How often one event may be logged: so often about one peer, so often about all, and the rest is counted.

One dead peer, or a thousand, must not fill the journal. The next line that passes says in ``left_out`` how many like it
did not, and the counts are in the metrics.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

WINDOW_S = 60.0
MAX_ABOUT_ONE = 10
"""Lines of one event about one peer in a window."""
MAX_ABOUT_ALL = 120
"""Lines of one event in a window, whomever it is about: peers' names cost nothing."""
MAX_SUBJECTS = 4096
SUBJECT_FIELDS = ("peer", "node_id", "address", "host", "uid", "library")


@dataclass(slots=True)
class _Window:
    """Lines that passed since ``began``, and those left out since the last that passed."""

    began: float
    passed: int = 0
    left_out: int = 0


class LogLimiter:
    """Counts lines by event and subject in a bounded memory: the subject seen longest ago is forgotten first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: OrderedDict[tuple[str, str], _Window] = OrderedDict()
        self.left_out: dict[str, int] = {}
        """Lines left out since the start, by event."""

    def admit(self, event: Mapping[str, Any]) -> int | None:
        """How many like ``event`` were left out before it, or None if it is to be left out itself."""
        name = str(event.get("event", ""))
        subject = next((f"{field}={event[field]}" for field in SUBJECT_FIELDS if field in event), "")
        now = self._clock()
        windows = [self._window(name, "", now)]
        if subject:
            windows.append(self._window(name, subject, now))
        limits = (MAX_ABOUT_ALL, MAX_ABOUT_ONE)
        if any(window.passed >= limit for window, limit in zip(windows, limits, strict=False)):
            windows[-1].left_out += 1
            self.left_out[name] = self.left_out.get(name, 0) + 1
            return None
        for window in windows:
            window.passed += 1
        left_out, windows[-1].left_out = windows[-1].left_out, 0
        return left_out

    def _window(self, name: str, subject: str, now: float) -> _Window:
        key = (name, subject)
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window(now)
            if len(self._windows) > MAX_SUBJECTS:
                self._windows.popitem(last=False)
        elif now - window.began >= WINDOW_S:
            window.began, window.passed = now, 0
        self._windows.move_to_end(key)
        return window
