"""Messages between simulated nodes: late, lost, twice, out of order, held back, or stopped by a partition."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import trio

from moed.consensus.blocks import MAX_BLOCK_RECORD_BYTES, Proposal, Vote, VoteKind
from moed.daemon.network.calls import Call, Handler, Refused, Reply
from moed.daemon.network.errors import DeadlineExceeded, PeerLost
from moed.daemon.network.peers import Peer, Priority
from moed.protocol.codec import decode_record
from moed.protocol.errors import RemoteProtocolError
from moed.protocol.identity import NodeId, PublicKey, node_id_of

from .faults import FaultPlan
from .grudges import Grudge, Kind, draw_grudge

MAX_READ = 4_096
TICK_S = 0.01
"""Messages arrive at whole ticks, so that those of one tick cost one turn of the clock."""
REDIAL_S = 60.0
"""A peer that was cut off comes back after this, as discovery has it."""


class Network:
    """All links. Without faults (`is_healed`) a message arrives once, after its delay."""

    def __init__(self, seed: int, plan: FaultPlan, on_message: Callable[[NodeId, Proposal | Vote], None]) -> None:
        """``on_message`` sees every proposal and vote that a node sends, before anybody else does."""
        self.plan = plan
        self.is_healed = False
        self._seed = seed
        self._random = random.Random(f"network {seed}")  # noqa: S311  # repeatable, not secret
        self._on_message = on_message
        self._endpoints: dict[NodeId, Endpoint] = {}
        self._all: list[NodeId] = []
        self._blocked: set[tuple[NodeId, NodeId]] = set()
        self._read: dict[bytes, Proposal | Vote | None] = {}
        self._grudges: dict[int, Grudge | None] = {}
        self._muted_until: dict[NodeId, float] = {}

    def join(self, endpoint: Endpoint) -> None:
        """Make an endpoint reachable, in place of an earlier one of the same node."""
        self._endpoints[endpoint.node_id] = endpoint
        if endpoint.node_id not in self._all:
            self._all = sorted([*self._all, endpoint.node_id])

    def leave(self, endpoint: Endpoint) -> None:
        """The node is gone; what is under way to it is lost."""
        if self._endpoints.get(endpoint.node_id) is endpoint:
            del self._endpoints[endpoint.node_id]

    def endpoint(self, node_id: NodeId) -> Endpoint | None:
        return self._endpoints.get(node_id)

    def endpoints(self) -> Iterable[Endpoint]:
        return self._endpoints.values()

    def block(self, links: Sequence[tuple[NodeId, NodeId]]) -> None:
        """Stop these directed links."""
        self._blocked.update(links)

    def unblock(self, links: Sequence[tuple[NodeId, NodeId]]) -> None:
        self._blocked.difference_update(links)

    def send(self, source: NodeId, target: NodeId, method: str, body: Any) -> None:
        """Send a notice; whether, when and how often it arrives is the seed's affair."""
        message = self._look_into(method, body)
        if message is not None:
            self._on_message(source, message)
        endpoint = self._endpoints.get(target)
        copies = 1
        if not self.is_healed:
            self._note_final(source, method, body)
            if self._random.random() < self.plan.loss:
                return
            copies += self._random.random() < self.plan.duplicate
        for _ in range(copies if endpoint is not None else 0):
            due = trio.current_time() + self._delay() + self._lag(source, target, method, message)
            cast(Endpoint, endpoint).put(math.ceil(due / TICK_S) * TICK_S, source, method, body)

    async def ask(self, source: NodeId, target: NodeId, method: str, body: Any, deadline_s: float) -> Reply:
        """Send a request and wait for its reply. Raises a `CallError`."""
        with trio.move_on_after(deadline_s):
            if not await self._cross(source, target):
                await trio.sleep_forever()
            endpoint, sender = self._endpoints.get(target), self._endpoints.get(source)
            if endpoint is None or sender is None:
                raise PeerLost("the node is gone")
            reply = await endpoint.serve(source, method, body)
            if not await self._cross(target, source):
                await trio.sleep_forever()
            return reply or Reply(None)
        raise DeadlineExceeded("no answer in time")

    def is_blocked(self, source: NodeId, target: NodeId) -> bool:
        return (source, target) in self._blocked

    async def _cross(self, source: NodeId, target: NodeId) -> bool:
        is_lost = not self.is_healed and self._random.random() < self.plan.loss
        await trio.sleep(self._delay() + self._lag(source, target, "", None))
        return not is_lost and (source, target) not in self._blocked

    def _delay(self) -> float:
        return self._random.expovariate(1 / self.plan.delay_mean_s)

    # the adversary

    def _look_into(self, method: str, body: Any) -> Proposal | Vote | None:
        """The proposal or vote that a notice carries."""
        if method not in ("chain.vote", "chain.proposal"):
            return None
        if body not in self._read:
            if len(self._read) > MAX_READ:
                self._read.clear()
            kind: type[Proposal] | type[Vote] = Vote if method == "chain.vote" else Proposal
            self._read[body] = None
            with suppress(RemoteProtocolError):
                self._read[body] = decode_record(body, kind, max_bytes=MAX_BLOCK_RECORD_BYTES)
        return self._read[body]

    def grudge(self, height: int) -> Grudge | None:
        if height not in self._grudges:
            self._grudges[height] = draw_grudge(self._seed, height, self._all, self.plan.grudge_share)
        return self._grudges[height]

    def _lag(self, source: NodeId, target: NodeId, method: str, message: Proposal | Vote | None) -> float:
        """How much longer than by chance a message takes."""
        if self.is_healed or not self.plan.grudge_share:
            return 0.0
        muted_s = max(0.0, self._muted_until.get(source, 0.0) - trio.current_time())
        grudge = self.grudge(message.height) if message is not None else None
        if grudge is None or message is None or message.round >= grudge.rounds:
            return muted_s
        if isinstance(message, Vote):
            kind = Kind.PREVOTE if message.kind is VoteKind.PREVOTE else Kind.PRECOMMIT
            author = node_id_of(message.validator)
        else:
            kind, author = Kind.PROPOSAL, source
        return max(muted_s, grudge.lag_s if grudge.holds_back(kind, author, source, target) else 0.0)

    def _note_final(self, source: NodeId, method: str, body: Any) -> None:
        """Who says that a block is final may be muted for a while from then on."""
        if method == "chain.status" and isinstance(body, dict) and self.plan.grudge_share:
            grudge = self.grudge(body["height"])
            if grudge is not None and source in grudge.muted:
                self._muted_until.setdefault(source, -math.inf)
                if self._muted_until[source] + grudge.lag_s < trio.current_time():
                    self._muted_until[source] = trio.current_time() + grudge.lag_s


class Endpoint:
    """One node's side of the network: its handlers, its sessions with everybody who is up, and what is under way."""

    def __init__(
        self, network: Network, node_id: NodeId, public_key: PublicKey, handlers: Mapping[str, Handler]
    ) -> None:
        self.node_id = node_id
        self.public_key = public_key
        self._network = network
        self._handlers = handlers
        self._links: dict[NodeId, Link] = {}
        self._dropped: dict[NodeId, float] = {}
        self._coming: list[tuple[float, int, NodeId, str, Any]] = []
        self._count = 0
        self._wait = trio.CancelScope()

    def connected(self) -> Sequence[Link]:
        """A session with each node that is up and was not cut off."""
        return [
            self.link(other.node_id)
            for other in self._network.endpoints()
            if other is not self and not self.is_dropped(other.node_id)
        ]

    def link(self, other: NodeId) -> Link:
        if other not in self._links:
            self._links[other] = Link(self._network, self, other)
        return self._links[other]

    def drop(self, other: NodeId) -> None:
        """Cut a peer off for a while."""
        self._dropped[other] = trio.current_time() + REDIAL_S

    def is_dropped(self, other: NodeId) -> bool:
        return bool(self._dropped) and self._dropped.get(other, 0.0) > trio.current_time()

    def put(self, due: float, source: NodeId, method: str, body: Any) -> None:
        """Let a notice arrive at ``due``."""
        self._count += 1
        heapq.heappush(self._coming, (due, self._count, source, method, body))
        self._wait.deadline = min(self._wait.deadline, due)

    async def run(self) -> None:
        """Take notices as they arrive, until cancelled."""
        while True:
            due = self._coming[0][0] if self._coming else math.inf
            if due > trio.current_time():
                with trio.CancelScope(deadline=due) as self._wait:
                    await trio.sleep_forever()
                continue
            _, _, source, method, body = heapq.heappop(self._coming)
            if not self._network.is_blocked(source, self.node_id):
                with suppress(Refused, RemoteProtocolError, PeerLost):  # a session counts these and goes on
                    await self.serve(source, method, body)

    async def serve(self, source: NodeId, method: str, body: Any) -> Reply | None:
        """Hand a message to its handler, as a session would."""
        if self.is_dropped(source):
            raise PeerLost("the session is over")
        handler = self._handlers.get(method)
        if handler is None:
            raise Refused("unknown_method", method)
        peer = cast(Peer, self.link(source))  # a session as far as handlers look at it
        return await handler(Call(peer, method, body, (), (), trio.current_time() + 60))


class Link:
    """One session, seen from one end."""

    def __init__(self, network: Network, here: Endpoint, other: NodeId) -> None:
        self.node_id = other
        self._network = network
        self._here = here

    async def call(
        self, method: str, body: Any = None, *, deadline_s: float, max_answer_bytes: int | None = None
    ) -> Reply:
        return await self._network.ask(self._here.node_id, self.node_id, method, body, deadline_s)

    async def notify(self, method: str, body: Any = None, *, priority: Priority) -> None:
        if self._network.endpoint(self.node_id) is None:
            raise PeerLost("the node is gone")
        self._network.send(self._here.node_id, self.node_id, method, body)

    def drop(self) -> None:
        self._here.drop(self.node_id)
