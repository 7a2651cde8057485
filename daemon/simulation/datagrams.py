"""Datagrams in memory on virtual time: one-way delays fixed for each pair of addresses, and seeded."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import count

import trio

from moed.daemon.network.datagrams import Address

Deliver = Callable[[bytes, Address], None]

MEAN_ROUND_TRIP_S = 0.1
JITTER = 0.1


class VirtualNetwork:
    """Carries datagrams between attached addresses; `run` delivers them in order of arrival.

    The one-way delay of a pair is uniform between a fifth of half the mean round trip and nine fifths of it, the same
    in both directions and for the whole run; each datagram adds up to a tenth of jitter either way.
    """

    def __init__(self, seed: int, *, mean_round_trip_s: float = MEAN_ROUND_TRIP_S) -> None:
        self._seed = seed
        self._mean_one_way_s = mean_round_trip_s / 2
        self._rng = random.Random(seed)  # noqa: S311  # repeatable, not secret
        self._doors: dict[Address, Deliver] = {}
        self._on_the_way: list[tuple[float, int, bytes, Address, Address]] = []
        self._numbers = count()
        self._news = trio.Event()
        self._delays_s: dict[tuple[Address, Address], float] = {}
        self.carried = 0
        self.carried_bytes = 0

    def address(self, number: int) -> Address:
        """The address of node ``number``."""
        return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 9000

    def attach(self, address: Address, deliver: Deliver) -> None:
        self._doors[address] = deliver

    def cut(self, address: Address) -> None:
        """What is sent to or from this address is lost from now on."""
        self._doors.pop(address, None)

    def send(self, data: bytes, source: Address, target: Address) -> None:
        if source not in self._doors:
            return
        self.carried += 1
        self.carried_bytes += len(data)
        arrival = trio.current_time() + self._delay_s(source, target) * self._rng.uniform(1 - JITTER, 1 + JITTER)
        heapq.heappush(self._on_the_way, (arrival, next(self._numbers), data, source, target))
        if self._on_the_way[0][0] == arrival:
            self._news.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            self._news = trio.Event()
            now_s = trio.current_time()
            while self._on_the_way and self._on_the_way[0][0] <= now_s:
                _, _, data, source, target = heapq.heappop(self._on_the_way)
                deliver = self._doors.get(target)
                if deliver is not None:
                    deliver(data, source)
            next_s = self._on_the_way[0][0] if self._on_the_way else float("inf")
            with trio.move_on_at(next_s):
                await self._news.wait()

    def _delay_s(self, one: Address, other: Address) -> float:
        pair = (one, other) if one < other else (other, one)
        delay_s = self._delays_s.get(pair)
        if delay_s is None:
            digest = blake2b(f"{self._seed} {pair}".encode(), digest_size=8).digest()
            share = int.from_bytes(digest, "big") / (1 << 64)
            delay_s = self._delays_s[pair] = self._mean_one_way_s * (0.2 + 1.6 * share)
        return delay_s


class VirtualPort:
    """The port of one of our nodes."""

    def __init__(self, network: VirtualNetwork, address: Address) -> None:
        self._network = network
        self.address = address
        self._arrived: deque[tuple[bytes, Address]] = deque()
        self._news = trio.Event()
        network.attach(address, self._take)

    def send(self, data: bytes, address: Address) -> None:
        self._network.send(data, self.address, address)

    def reaches(self, host: str) -> bool:
        return True

    def block(self, addresses: Sequence[Address]) -> bool:
        return False

    async def receive(self) -> list[tuple[bytes, Address]]:
        if not self._arrived:
            self._news = trio.Event()
            await self._news.wait()
        batch = list(self._arrived)
        self._arrived.clear()
        return batch

    def _take(self, data: bytes, source: Address) -> None:
        self._arrived.append((data, source))
        self._news.set()
