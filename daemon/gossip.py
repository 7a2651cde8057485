"""Who is told what: our own messages to everybody, those of others onward to a few, each peer once.

A proposal or vote reaches most nodes from its author and the rest over a few hops. What still got lost is found by
summaries (`moed.consensus.summary`), which cost little however long a height stands still.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol
from zlib import crc32

import trio

from moed.consensus.state import ValidatorSet
from moed.protocol.identity import NodeId, node_id_of

from .network.calls import Reply
from .network.errors import CallError, RequestTooLarge
from .network.peers import Priority

ONWARD = 2
"""Validators, and as many other peers, to whom a message of somebody else is passed on."""
GATHER_S = 0.02
"""Transactions that come within this time travel together."""
MAX_GATHERED_BYTES = 1 << 18
MAX_KNOWN = 1 << 14
"""Messages and transactions of which two generations are remembered, by hash."""


class Session(Protocol):
    """What the chain needs of a session with one peer."""

    @property
    def node_id(self) -> NodeId: ...

    async def call(
        self, method: str, body: Any = None, *, deadline_s: float, max_answer_bytes: int | None = None
    ) -> Reply: ...

    async def notify(self, method: str, body: Any = None, *, priority: Priority) -> None: ...

    def drop(self) -> None: ...


class Sessions(Protocol):
    """What the chain needs of all sessions."""

    def connected(self) -> Sequence[Session]: ...


class Known:
    """Bodies met before, and which peers have each: two generations, the older of which goes when the young is full."""

    def __init__(self) -> None:
        self._young: dict[bytes, set[NodeId]] = {}
        self._old: dict[bytes, set[NodeId]] = {}

    def meet(self, body: bytes, peer: NodeId) -> bool:
        """Whether this body is known; then the peer is noted to have it."""
        holders = self._find(body)
        if holders is None:
            return False
        holders.add(peer)
        return True

    def add(self, body: bytes, peer: NodeId | None) -> None:
        """Remember a body that was worth something, and who brought it."""
        holders = self._find(body)
        if holders is None:
            holders = self._young[_digest(body)] = set()
        if peer is not None:
            holders.add(peer)
        if len(self._young) >= MAX_KNOWN:
            self.age()

    def forget(self, body: bytes) -> None:
        """A body that was worth nothing after all."""
        digest = _digest(body)
        self._young.pop(digest, None)
        self._old.pop(digest, None)  # it may have waited since the height before

    def age(self) -> None:
        """Forget the older generation."""
        self._old, self._young = self._young, {}

    def holders(self, body: bytes) -> set[NodeId]:
        """Who has it: the set itself, to be added to."""
        holders = self._find(body)
        return set() if holders is None else holders

    def _find(self, body: bytes) -> set[NodeId] | None:
        digest = _digest(body)
        found = self._young.get(digest)
        return found if found is not None else self._old.get(digest)


@dataclass(frozen=True, slots=True)
class _Notice:
    """What to tell: to ``only`` if it is not None, else by the rules of who is told."""

    method: str
    body: Any
    is_ours: bool
    only: tuple[Session, ...] | None = None


class Gossip:
    """Sends the chain's notices, in order, from one task; `run` it, then tell."""

    def __init__(self, on_lost: Callable[[NodeId], None], validators: ValidatorSet) -> None:
        """``on_lost`` hears of peers whose session is over; ``validators`` are those of the first height."""
        self.messages = Known()
        self.transactions = Known()
        self._on_lost = on_lost
        self._validators = _node_ids(validators)
        # A session's notices never wait for the peer, so this empties as fast as the machine allows; who fills it
        # waits for that.
        self._send, self._receive = trio.open_memory_channel[_Notice](256)
        self._gathered: list[bytes] = []
        self._has_gathered = trio.Event()
        self._peers: Sessions | None = None
        self._rotation = 0

    def begin_height(self, validators: ValidatorSet) -> None:
        """The validators of a new height; messages of the one before the last are forgotten."""
        self._validators = _node_ids(validators)
        self.messages.age()

    async def tell_all(self, method: str, body: Any) -> None:
        """Tell every peer something of our own."""
        if isinstance(body, bytes):
            self.messages.add(body, None)
        await self._send.send(_Notice(method, body, is_ours=True))

    async def pass_on(self, method: str, body: bytes) -> None:
        """Tell a few peers what somebody else made, but none that has it."""
        await self._send.send(_Notice(method, body, is_ours=False))

    async def tell(self, peers: Sequence[Session], method: str, body: Any) -> None:
        """Tell these peers."""
        await self._send.send(_Notice(method, body, is_ours=True, only=tuple(peers)))

    def pass_on_transaction(self, body: bytes) -> None:
        """Tell peers of a transaction that `transactions` remembers, together with the next ones."""
        self._gathered.append(body)
        self._has_gathered.set()

    def some(self, count: int) -> list[Session]:
        """A few peers, validators before others, and other ones each time."""
        peers = sorted(self._connected(), key=lambda peer: (peer.node_id not in self._validators, peer.node_id))
        leading = [peer for peer in peers if peer.node_id in self._validators]
        pool = leading if len(leading) >= count else peers
        self._rotation += count
        return [pool[(self._rotation + place) % len(pool)] for place in range(min(count, len(pool)))]

    async def run(self, peers: Sessions) -> None:
        """Send what is to be told, until cancelled."""
        self._peers = peers
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_transactions)
            async for notice in self._receive:
                for peer in self._targets(notice):
                    await self._tell(peer, notice.method, notice.body)

    def _connected(self) -> Sequence[Session]:
        return self._peers.connected() if self._peers is not None else ()

    def _targets(self, notice: _Notice) -> Sequence[Session]:
        if notice.only is not None:
            return notice.only
        if notice.is_ours:
            return list(self._connected())
        return self._few(notice.body, self.messages.holders(notice.body))

    def _few(self, body: bytes, holders: set[NodeId]) -> list[Session]:
        """A few that lack it, chosen by hash: each node chooses others, and nobody can tell whom."""
        lacking = [peer for peer in self._connected() if peer.node_id not in holders]
        seed = crc32(body)
        lacking.sort(key=lambda peer: crc32(peer.node_id, seed))
        leading = [peer for peer in lacking if peer.node_id in self._validators][:ONWARD]
        others = [peer for peer in lacking if peer.node_id not in self._validators][:ONWARD]
        chosen = leading + others
        holders.update(peer.node_id for peer in chosen)
        return chosen

    async def _tell_transactions(self) -> None:
        while True:
            await self._has_gathered.wait()
            await trio.sleep(GATHER_S)
            self._has_gathered = trio.Event()
            gathered, self._gathered = self._gathered, []
            for batch in _batches(gathered):
                by_peer: dict[NodeId, tuple[Session, list[bytes]]] = {}
                for body in batch:
                    for peer in self._few(body, self.transactions.holders(body)):
                        by_peer.setdefault(peer.node_id, (peer, []))[1].append(body)
                for peer, bodies in by_peer.values():
                    await self._tell(peer, "chain.transactions", bodies)

    async def _tell(self, peer: Session, method: str, body: Any) -> None:
        # transactions come by the hundred, and a vote does not wait behind them
        priority = Priority.NORMAL if method == "chain.transactions" else Priority.HIGH
        try:
            await peer.notify(method, body, priority=priority)
        except RequestTooLarge:
            pass  # a peer that takes nothing so long does without; it is there all the same
        except CallError:
            # the session's own task closes it and says so
            self._on_lost(peer.node_id)


def _node_ids(validators: ValidatorSet) -> frozenset[NodeId]:
    return frozenset(node_id_of(member.key) for member in validators.members)


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).digest()


def _batches(bodies: Sequence[bytes], max_bytes: float = MAX_GATHERED_BYTES) -> list[list[bytes]]:
    """The bodies in order, in batches that fit a notice."""
    batches: list[list[bytes]] = []
    room = -math.inf
    for body in bodies:
        room -= len(body)
        if room < 0:
            batches.append([])
            room = max_bytes - len(body)
        batches[-1].append(body)
    return batches
