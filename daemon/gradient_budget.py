"""How much of a device's time each caller may spend on gradients."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from moed.models.batching import STAKE_FLOOR
from moed.models.errors import NoBackward

MAX_CALLERS = 4096
"""So many callers are remembered; one that is forgotten begins with a full bucket, as a new key would."""


@dataclass(slots=True)
class _Bucket:
    """Seconds of device time that fill at a share of the time, up to a burst.

    It may be overdrawn by the passes that were let in before it was empty.
    """

    balance_s: float
    at_s: float

    def refill(self, share: float, burst_s: float, now_s: float) -> float:
        self.balance_s = min(burst_s, self.balance_s + (now_s - self.at_s) * share)
        self.at_s = now_s
        return self.balance_s


@dataclass(slots=True)
class BackwardBudget:
    """How much of the device's time backward passes may take.

    ``stranger_share`` is for all callers without stake (under `STAKE_FLOOR`) together; 0, the default, refuses them.
    ``caller_share`` is for each caller by itself, with stake or not; 1 sets no bound beyond the fair queue. Either may
    use ``burst_s`` at once. Time is an argument.
    """

    stranger_share: float = 0.0
    burst_s: float = 2.0
    caller_share: float = 1.0
    _strangers: _Bucket | None = None
    _callers: OrderedDict[bytes, _Bucket] = field(default_factory=OrderedDict)

    def check(self, caller: bytes, stake_share: float, now_s: float) -> None:
        """Raise `NoBackward` for a caller who gets none now."""
        if self.caller_share < 1 and self._of(caller, now_s).refill(self.caller_share, self.burst_s, now_s) <= 0:
            raise NoBackward("this caller has used up what this node spends on the gradients of one")
        if stake_share >= STAKE_FLOOR:
            return
        if self.stranger_share <= 0:
            raise NoBackward("this node gives gradients only to callers with stake")
        self._strangers = self._strangers or _Bucket(self.burst_s, now_s)
        if self._strangers.refill(self.stranger_share, self.burst_s, now_s) <= 0:
            raise NoBackward("callers without stake have used up what this node spends on their gradients")

    def charge(self, caller: bytes, stake_share: float, busy_s: float) -> None:
        """Count device time that a caller used."""
        if caller in self._callers:
            self._callers[caller].balance_s -= busy_s
        if stake_share < STAKE_FLOOR and self._strangers is not None:
            self._strangers.balance_s -= busy_s

    def _of(self, caller: bytes, now_s: float) -> _Bucket:
        bucket = self._callers.get(caller)
        if bucket is None:
            if len(self._callers) >= MAX_CALLERS:
                self._callers.popitem(last=False)
            bucket = self._callers[caller] = _Bucket(self.burst_s, now_s)
        self._callers.move_to_end(caller)
        return bucket
