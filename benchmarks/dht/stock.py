"""The stock kademlia package on the same virtual network, driven in the same way.

One thing is left out, in its favour: handing stored keys over to new contacts. A sender that finds no place in a full
bucket is "new" to the package with each datagram, so at 1,000 nodes every store sets off others without end, and the
run does not finish. Nobody joins after the stores here, so no key needs handing over.
"""

from __future__ import annotations

import asyncio
import importlib
import random
from collections.abc import Sequence
from typing import Any

import trio

from moed.daemon.network.datagrams import Address
from moed.daemon.simulation.datagrams import VirtualNetwork

from .ours import JOINING_AT_ONCE, RECORDS, Gets


class _Transport(asyncio.DatagramTransport):
    def __init__(self, network: VirtualNetwork, address: Address) -> None:
        super().__init__()
        self._network = network
        self._address = address

    def sendto(self, data: Any, addr: Any = None) -> None:
        self._network.send(data, self._address, addr)


class StockNodes:
    """Stock servers, each with the package's defaults (k 20, alpha 3, 5 s of patience)."""

    def __init__(self, network: VirtualNetwork, seed: int) -> None:
        self._library: Any = importlib.import_module("kademlia.network")
        self._crawling: Any = importlib.import_module("kademlia.crawling")
        self._as_trio: Any = importlib.import_module("trio_asyncio").aio_as_trio
        self._digest: Any = importlib.import_module("kademlia.utils").digest
        self.network = network
        self.rng = random.Random(seed)
        self.all: list[tuple[Any, Address]] = []
        self._joined: list[Address] = []

    async def grow(self, count: int) -> None:
        for _ in range(min(count, 8)):
            await self._add()
        for start in range(8, count, JOINING_AT_ONCE):
            async with trio.open_nursery() as nursery:
                for _ in range(min(JOINING_AT_ONCE, count - start)):
                    nursery.start_soon(self._add)

    async def publish(self) -> list[int]:
        """Some nodes store one value each, under their own names; returns which."""
        owners = self.rng.sample(range(len(self.all)), min(RECORDS, len(self.all)))
        for start in range(0, len(owners), JOINING_AT_ONCE):
            async with trio.open_nursery() as nursery:
                for number in owners[start : start + JOINING_AT_ONCE]:
                    nursery.start_soon(self._set, number)
        return owners

    async def get(self, seekers: Sequence[int], owners: Sequence[int], count: int) -> Gets:
        """``count`` look-ups, each of a random node's value by a random node that does not hold it."""
        gets = Gets()
        for _ in range(count):
            owner = self.rng.choice(owners)
            key = self._digest(f"node {owner}")
            others = [
                each for each in seekers if each != owner and self.all[each][0].storage.get(key, default=None) is None
            ]
            server = self.all[self.rng.choice(others or list(seekers))][0]
            rounds = _count_rounds(self._crawling)
            started_s = trio.current_time()
            value = await self._as_trio(server.get)(f"node {owner}")
            gets.times_s.append(trio.current_time() - started_s)
            gets.hops.append(rounds.stop())
            gets.found += value == f"address {owner}"
        return gets

    def kill(self, number: int) -> None:
        self.network.cut(self.all[number][1])

    async def _add(self) -> None:
        number = len(self.all)
        server = self._library.Server(node_id=random.Random(f"stock {number}").randbytes(20))
        address = self.network.address(number + 1)
        server.protocol = server._create_protocol()
        server.protocol.welcome_if_new = server.protocol.router.add_contact
        server.protocol.connection_made(_Transport(self.network, address))
        self.network.attach(address, server.protocol.datagram_received)
        doors = list(self._joined)
        self.all.append((server, address))
        if doors:
            await self._as_trio(server.bootstrap)([self.rng.choice(doors)])
        self._joined.append(address)

    async def _set(self, number: int) -> None:
        await self._as_trio(self.all[number][0].set)(f"node {number}", f"address {number}")


class _count_rounds:  # noqa: N801  # reads as the verb it is where it is used
    """Counts the rounds of the crawl that runs next, which are the stock package's hops."""

    def __init__(self, crawling: Any) -> None:
        self._kind = crawling.ValueSpiderCrawl
        self._find = self._kind.find
        self._rounds = 0
        counter = self

        async def find(crawl: Any) -> Any:
            counter._rounds += 1
            return await counter._find(crawl)

        self._kind.find = find

    def stop(self) -> int:
        self._kind.find = self._find
        return self._rounds
