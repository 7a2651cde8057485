"""DHT nodes for tests: over loopback sockets on ports of the system's choice, or over a network in memory."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from moed.daemon.network.datagrams import Address
from moed.daemon.network.dht import Dht
from moed.daemon.network.library import open_loop
from moed.protocol.identity import Identity
from moed.protocol.queries import Contact
from support.datagram_network import DatagramNetwork, MemoryPort

NETWORK_ID = b"dht test network".ljust(32, b".")
EPOCH_S = 1_800_000_000.0


def identity(number: int) -> Identity:
    return Identity(number.to_bytes(32, "big"))


@dataclass(frozen=True)
class LoopbackNode:
    dht: Dht
    identity: Identity
    address: Address
    listener: trio.SocketListener  # the TCP half of the same port: nobody accepts from it unless the test does


async def port_pair() -> tuple[trio.socket.SocketType, trio.SocketListener]:
    """A UDP socket and a TCP listener at one port of 127.0.0.1, both bound; the caller closes them."""
    while True:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        socket = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        try:
            await socket.bind(listener.socket.getsockname())
        except OSError:  # somebody has the UDP half
            socket.close()
            listener.socket.close()
        else:
            return socket, listener


@asynccontextmanager
async def loopback_nodes(
    count: int,
    *,
    joined: bool = True,
    max_datagrams_per_s: float = 2000,
    replicas: int | None = None,
    clock_off_s: Callable[[int], float] = lambda _number: 0.0,
) -> AsyncIterator[list[LoopbackNode]]:
    """``count`` nodes on 127.0.0.1, all joined through the first; everything is closed at the end."""
    sockets: list[trio.socket.SocketType] = []
    async with open_loop(), trio.open_nursery() as nursery:
        nodes = []
        for number in range(count):
            socket, listener = await port_pair()
            sockets += [socket, listener.socket]
            off_s = clock_off_s(number)
            dht = Dht(
                identity(number),
                NETWORK_ID,
                now_s=lambda off_s=off_s: time.time() + off_s,  # type: ignore[misc]  # bound now
                max_datagrams_per_s=max_datagrams_per_s,
                replicas=replicas,
            )
            await nursery.start(dht.run, socket)
            nodes.append(LoopbackNode(dht, identity(number), socket.getsockname(), listener))
        for node in nodes[1:] if joined else ():
            await node.dht.join([nodes[0].address])
        try:
            yield nodes
        finally:
            nursery.cancel_scope.cancel()
            for socket in sockets:
                socket.close()


class VirtualNodes:
    """Nodes over a `DatagramNetwork` on trio's clock; needs a trio-asyncio loop and a nursery around it."""

    def __init__(self, nursery: trio.Nursery, network: DatagramNetwork) -> None:
        self.nursery = nursery
        self.network = network
        self.dhts: list[Dht] = []
        self.ports: list[MemoryPort] = []

    async def add(self, count: int, *, k: int = 20, remembered: tuple[Contact, ...] = (), join: bool = True) -> None:
        """Start ``count`` more nodes and join each through one that is there already."""
        for _ in range(count):
            number = len(self.dhts)
            rng = random.Random(f"{self.network.seed} {number}")
            dht = Dht(
                identity(number),
                NETWORK_ID,
                now_s=lambda: EPOCH_S + trio.current_time(),
                randomness=rng.randbytes,
                remembered=remembered,
                k=k,
            )
            port = self.network.port(number + 1)
            await self.nursery.start(dht.serve, port)
            if join and self.dhts:
                await dht.join([self.ports[rng.randrange(number)].address])
            self.dhts.append(dht)
            self.ports.append(port)

    def kill(self, number: int) -> None:
        """Cut a node off, as a power cut would."""
        self.ports[number].is_dead = True
