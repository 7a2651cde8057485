"""How well a miner keeps time: the moving average of its answers' punctuality, silence counting as none."""

from __future__ import annotations

from collections.abc import Iterable

PATIENCE_S = 2.0
"""An answer within this is in good time: what a person waits for a first word."""
SHARE = 0.05


class Promptness:
    """Punctuality of each miner from 0 to 1: 1 for answers within `PATIENCE_S`, falling to 0 at the deadline."""

    def __init__(self) -> None:
        self._means: dict[int, tuple[int, float]] = {}

    def record(self, uid: int, latency_s: float | None, deadline_s: float) -> None:
        """One question to ``uid``: how long its answer took, None where none came in time or none was valid."""
        late_s = 0.0 if latency_s is None else max(0.0, latency_s - PATIENCE_S)
        value = 0.0 if latency_s is None else max(0.0, 1 - late_s / max(deadline_s - PATIENCE_S, 1e-3))
        count, mean = self._means.get(uid, (0, 0.0))
        # the average of the first few is their plain mean
        self._means[uid] = (count + 1, mean + (value - mean) * max(SHARE, 1 / (count + 1)))

    def of(self, uid: int) -> float:
        """The punctuality of ``uid``; 1 for one that was never asked."""
        return self._means.get(uid, (0, 1.0))[1]

    def keep_only(self, uids: Iterable[int]) -> None:
        """Forget every miner that is not in ``uids``."""
        kept = set(uids)
        self._means = {uid: mean for uid, mean in self._means.items() if uid in kept}
