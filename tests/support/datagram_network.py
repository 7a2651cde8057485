"""A datagram network in memory, on whatever clock trio runs: latency, loss, capture, and nothing a socket would add."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from moed.daemon.network.datagrams import Address


@dataclass
class DatagramNetwork:
    """Carries datagrams between `MemoryPort`s; the same seed gives the same delays and losses.

    The round trip between two addresses is uniform around ``round_trip_s``, from half of it to one and a half.
    """

    seed: int = 0
    round_trip_s: float = 0.1
    loss: float = 0.0
    ports: dict[Address, MemoryPort] = field(default_factory=dict)
    keep_captured: bool = True
    captured: list[tuple[bytes, Address, Address]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def port(self, number: int) -> MemoryPort:
        """A new port with an address of its own."""
        address = (f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 9000)
        self.ports[address] = MemoryPort(self, address)
        return self.ports[address]

    def carry(self, data: bytes, source: Address, target: Address) -> None:
        if self.keep_captured:
            self.captured.append((data, source, target))
        port = self.ports.get(target)
        if port is None or self.rng.random() < self.loss:
            return
        arrival_s = trio.current_time() + self.round_trip_s * self.rng.uniform(0.25, 0.75)
        port.accept(arrival_s, data, source)


class MemoryPort:
    """One node's door to a `DatagramNetwork`; a port that is ``dead`` neither sends nor receives."""

    def __init__(self, network: DatagramNetwork, address: Address) -> None:
        self.network = network
        self.address = address
        self.is_dead = False
        self._arriving: list[tuple[float, bytes, Address]] = []
        self._news = trio.Event()

    def send(self, data: bytes, address: Address) -> None:
        if not self.is_dead:
            self.network.carry(data, self.address, address)

    def reaches(self, host: str) -> bool:
        return True

    def block(self, addresses: Sequence[Address]) -> bool:
        return False

    def accept(self, arrival_s: float, data: bytes, source: Address) -> None:
        if not self.is_dead:
            self._arriving.append((arrival_s, data, source))
            self._arriving.sort(key=lambda each: each[0])
            self._news.set()

    async def receive(self) -> list[tuple[bytes, Address]]:
        while True:
            self._news = trio.Event()
            if self._arriving:
                with trio.move_on_at(self._arriving[0][0]):
                    await self._news.wait()
            else:
                await self._news.wait()
            now_s = trio.current_time()
            due = [each for each in self._arriving if each[0] <= now_s]
            self._arriving = [each for each in self._arriving if each[0] > now_s]
            if due:
                return [(data, source) for _, data, source in due]
