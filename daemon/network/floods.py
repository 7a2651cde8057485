"""Which addresses are shut out for a while, because they go on sending far over their rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import structlog

from .datagrams import Address
from .flood_filter import MAX_BLOCKED

logger = structlog.get_logger()

SHUT_OUT_AFTER = 400
"""Refused datagrams of one address in one second."""
SHUT_OUT_S = 10.0
MAX_COUNTED = 4096


class Floods:
    """Counts refused datagrams by address and shuts the worst senders out, in the port where that is possible."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.block: Callable[[Sequence[Address]], bool] = lambda addresses: False
        self._now_s = now_s
        self._second = 0
        self._refused: Counter[Address] = Counter()
        self._until_s: dict[Address, float] = {}

    def refused(self, address: Address) -> None:
        """A datagram from ``address`` was over its rate."""
        second = int(self._now_s())
        if second != self._second or len(self._refused) >= MAX_COUNTED:
            self._second = second
            self._refused.clear()
        self._refused[address] += 1
        if self._refused[address] == SHUT_OUT_AFTER and len(self._until_s) < MAX_BLOCKED:
            self._until_s[address] = self._now_s() + SHUT_OUT_S
            is_shut_out = self.block(list(self._until_s))
            logger.warning("dht.flood", host=address[0], port=address[1], is_shut_out=is_shut_out)

    def forgive(self) -> None:
        """Let those in again whose time is over."""
        now_s = self._now_s()
        over = [address for address, until_s in self._until_s.items() if until_s <= now_s]
        for address in over:
            del self._until_s[address]
        if over:
            self.block(list(self._until_s))
