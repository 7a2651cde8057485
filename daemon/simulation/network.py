"""Messages between simulated nodes: late, lost, twice, out of order, or stopped by a partition, as the seed has it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import trio

from moed.daemon.network.calls import Call, Handler, Refused, Reply
from moed.daemon.network.errors import DeadlineExceeded, PeerLost
from moed.daemon.network.peers import Peer, Priority
from moed.protocol.errors import RemoteProtocolError
from moed.protocol.identity import NodeId, PublicKey

from .faults import FaultPlan


class Network:
    """All links. Without faults (`is_healed`) a message arrives once, after its delay."""

    def __init__(self, plan: FaultPlan, generator: random.Random, nursery: trio.Nursery) -> None:
        self.plan = plan
        self.is_healed = False
        self._random = generator
        self._nursery = nursery
        self._endpoints: dict[NodeId, Endpoint] = {}
        self._blocked: set[tuple[NodeId, NodeId]] = set()

    def join(self, endpoint: Endpoint) -> None:
        """Make an endpoint reachable, in place of an earlier one of the same node."""
        self._endpoints[endpoint.node_id] = endpoint

    def leave(self, endpoint: Endpoint) -> None:
        """The node is gone; what is under way to it is lost."""
        if self._endpoints.get(endpoint.node_id) is endpoint:
            del self._endpoints[endpoint.node_id]

    def endpoint(self, node_id: NodeId) -> Endpoint | None:
        return self._endpoints.get(node_id)

    def others(self, node_id: NodeId) -> list[NodeId]:
        return [one for one in self._endpoints if one != node_id]

    def block(self, links: Sequence[tuple[NodeId, NodeId]]) -> None:
        """Stop these directed links."""
        self._blocked.update(links)

    def unblock(self, links: Sequence[tuple[NodeId, NodeId]]) -> None:
        self._blocked.difference_update(links)

    def send(self, source: NodeId, target: NodeId, method: str, body: Any) -> None:
        """Send a notice; whether, when and how often it arrives is the seed's affair."""
        if not self.is_healed and self._random.random() < self.plan.loss:
            return
        copies = 2 if not self.is_healed and self._random.random() < self.plan.duplicate else 1
        for _ in range(copies):
            self._nursery.start_soon(self._deliver, source, target, method, body, self._delay())

    async def ask(self, source: NodeId, target: NodeId, method: str, body: Any, deadline_s: float) -> Reply:
        """Send a request and wait for its reply. Raises a `CallError`."""
        with trio.move_on_after(deadline_s):
            if not await self._cross(source, target):
                await trio.sleep_forever()
            reply = await self._handle(source, target, method, body)
            if not await self._cross(target, source):
                await trio.sleep_forever()
            return reply or Reply(None)
        raise DeadlineExceeded("no answer in time")

    async def _cross(self, source: NodeId, target: NodeId) -> bool:
        is_lost = not self.is_healed and self._random.random() < self.plan.loss
        await trio.sleep(self._delay())
        return not is_lost and (source, target) not in self._blocked

    async def _deliver(self, source: NodeId, target: NodeId, method: str, body: Any, delay_s: float) -> None:
        await trio.sleep(delay_s)
        if (source, target) not in self._blocked:
            with suppress(Refused, RemoteProtocolError, PeerLost):  # a session counts these and goes on
                await self._handle(source, target, method, body)

    async def _handle(self, source: NodeId, target: NodeId, method: str, body: Any) -> Reply | None:
        endpoint, sender = self._endpoints.get(target), self._endpoints.get(source)
        if endpoint is None or sender is None:
            raise PeerLost("the node is gone")
        return await endpoint.serve(sender, method, body)

    def _delay(self) -> float:
        return self._random.expovariate(1 / self.plan.delay_mean_s)


class Endpoint:
    """One node's side of the network: its handlers, and its sessions with everybody who is up."""

    def __init__(
        self, network: Network, node_id: NodeId, public_key: PublicKey, handlers: Mapping[str, Handler]
    ) -> None:
        self.node_id = node_id
        self.public_key = public_key
        self._network = network
        self._handlers = handlers
        self._dropped: set[NodeId] = set()

    def connected(self) -> Sequence[Link]:
        """A session with each node that is up and was not cut off."""
        return [
            Link(self._network, self, other)
            for other in self._network.others(self.node_id)
            if other not in self._dropped
        ]

    def drop(self, other: NodeId) -> None:
        """Cut a peer off; as with real sessions, it may come back when it starts anew."""
        self._dropped.add(other)

    def forgive(self, other: NodeId) -> None:
        self._dropped.discard(other)

    async def serve(self, sender: Endpoint, method: str, body: Any) -> Reply | None:
        """Hand a message to its handler, as a session would."""
        if sender.node_id in self._dropped:
            raise PeerLost("the session is over")
        handler = self._handlers.get(method)
        if handler is None:
            raise Refused("unknown_method", method)
        peer = cast(Peer, Link(self._network, self, sender.node_id))  # a session as far as handlers look at it
        return await handler(Call(peer, method, body, (), (), trio.current_time() + 60))


class Link:
    """One session, seen from one end."""

    def __init__(self, network: Network, here: Endpoint, other: NodeId) -> None:
        self.node_id = other
        self._network = network
        self._here = here

    async def call(self, method: str, body: Any = None, *, deadline_s: float) -> Reply:
        return await self._network.ask(self._here.node_id, self.node_id, method, body, deadline_s)

    async def notify(self, method: str, body: Any = None, *, priority: Priority) -> None:
        if self._network.endpoint(self.node_id) is None:
            raise PeerLost("the node is gone")
        self._network.send(self._here.node_id, self.node_id, method, body)

    def drop(self) -> None:
        self._here.drop(self.node_id)
