"""How many datagrams one address may send: token buckets in bounded memory, time as an argument."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at_s: float


class Throttle:
    """One token bucket for each source, the least recently heard forgotten beyond ``max_sources``.

    A source may send ``burst`` at once and ``rate_per_s`` on average. Each question that we send to a source earns
    it one token more, so the answers that we asked for are never the ones refused.
    """

    def __init__(self, rate_per_s: float, burst: float, *, max_sources: int = 4096) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._max_sources = max_sources
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def admit(self, source: Hashable, now_s: float) -> bool:
        """Take one token of ``source``; False if it has none left."""
        bucket = self._bucket(source, now_s)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def grant(self, source: Hashable, now_s: float) -> None:
        """Give ``source`` one token for an answer that we asked for."""
        bucket = self._bucket(source, now_s)
        bucket.tokens = min(bucket.tokens + 1, 2 * self._burst)

    def __len__(self) -> int:
        return len(self._buckets)

    def _bucket(self, source: Hashable, now_s: float) -> _Bucket:
        bucket = self._buckets.get(source)
        if bucket is None:
            if len(self._buckets) >= self._max_sources:
                self._buckets.popitem(last=False)
            bucket = self._buckets[source] = _Bucket(self._burst, now_s)
            return bucket
        self._buckets.move_to_end(source)
        if bucket.tokens < self._burst:
            earned = max(0.0, now_s - bucket.filled_at_s) * self._rate_per_s
            bucket.tokens = min(self._burst, bucket.tokens + earned)
        bucket.filled_at_s = now_s
        return bucket
