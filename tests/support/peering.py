"""Nodes with real sessions over loopback sockets, each with its own identity and port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from moed.daemon.network.calls import Call, Handler, Method, Refused, Reply
from moed.daemon.network.limits import NetworkLimits
from moed.daemon.network.peers import Peer, Peers
from moed.daemon.network.traffic import PeerClass
from moed.protocol.addresses import Address
from moed.protocol.handshake import SessionLimits
from moed.protocol.identity import Identity, PublicKey

NETWORK_ID = b"n" * 32


@dataclass
class Served:
    """What a node's handlers saw, and gates that a test holds."""

    notices: list[Any] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    started: trio.Event = field(default_factory=trio.Event)
    release: trio.Event = field(default_factory=trio.Event)

    def handlers(self) -> dict[str, Handler]:
        """Small real services that the tests call."""
        return {
            "echo": self._echo,
            "refuse": self._refuse,
            "wait": self._wait,
            "break": self._break,
            "tell": self._tell,
        }

    async def _echo(self, call: Call) -> Reply:
        return Reply(call.body, call.tensors)

    async def _refuse(self, call: Call) -> Reply:
        raise Refused("not_today", f"asked by {call.peer.node_id.hex()[:8]}")

    async def _wait(self, call: Call) -> Reply:
        self.started.set()
        try:
            await self.release.wait()
        except trio.Cancelled:
            self.cancelled.append(call.method)
            raise
        return Reply("released")

    async def _break(self, call: Call) -> Reply:
        raise ZeroDivisionError("a bug in a handler")

    async def _tell(self, call: Call) -> None:
        self.notices.append(call.body)


@dataclass
class Running:
    """A node of the test: its sessions and where it listens."""

    peers: Peers
    address: Address
    identity: Identity
    served: Served
    connected: list[Peer]
    disconnected: list[Peer]


def identity_of(number: int) -> Identity:
    """A fixed identity per number."""
    return Identity(bytes([number]) * 32)


@asynccontextmanager
async def running(
    number: int,
    *,
    network_id: bytes = NETWORK_ID,
    limits: SessionLimits | None = None,
    network_limits: NetworkLimits | None = None,
    extra: Mapping[str, Handler | Method] | None = None,
    identity: Identity | None = None,
    classify: Callable[[PublicKey], PeerClass] = lambda _key: PeerClass.OTHER,
) -> AsyncIterator[Running]:
    """One node, listening on a free port of 127.0.0.1 until the block ends."""
    served = Served()
    connected: list[Peer] = []
    disconnected: list[Peer] = []

    async def greet(peer: Peer) -> None:
        connected.append(peer)

    identity = identity or identity_of(number)
    peers = Peers(
        identity,
        network_id,
        handlers={**served.handlers(), **(extra or {})},
        limits=limits,
        network_limits=network_limits,
        on_connected=greet,
        on_disconnected=disconnected.append,
        classify=classify,
    )
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(peers.run, listeners))
        yield Running(peers, Address("127.0.0.1", port), identity, served, connected, disconnected)
        nursery.cancel_scope.cancel()


async def until(condition: Any, *, within_s: float = 10.0) -> None:
    """Let the other tasks run until ``condition()`` holds; the test fails after ``within_s``."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110  # the condition is another node's state, which signals nobody
            await trio.sleep(0.002)
