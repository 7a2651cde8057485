"""The kademlia package's protocol made safe to expose: every datagram is proven before it changes anything.

`AuthenticatedProtocol` keeps the library's names (``rpc_ping``, ``rpc_store``, ``welcome_if_new``…), its
outstanding-question table and its asyncio futures and timers; it replaces what a stranger could abuse:

- the library decoded in a task of its own, whose error ends a trio-asyncio program; here one datagram is handled
  inside `datagram_received`, and whatever is wrong with it ends there;
- a contact enters the routing table only after it answered a question of ours, so neither its id nor its address
  is forged;
- ``welcome_if_new`` started tasks that nobody awaited and hashed stored keys a second time; here new contacts
  are handed to the owner, who works them off in its nursery.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import structlog

from moed.protocol import queries
from moed.protocol.envelope import NONCE_BYTES, PADDED_REQUEST_BYTES, Opened, Opener, seal
from moed.protocol.errors import RemoteProtocolError, Unexpected
from moed.protocol.identity import Identity
from moed.protocol.queries import Contact, FindNode, FindValue, Ping, Query, Store, Stun
from moed.protocol.record_store import RecordStore
from moed.protocol.round_trips import RoundTrips
from moed.protocol.throttle import Throttle

from .datagrams import Address, DatagramPort, Drops
from .floods import Floods
from .library import IStorage, KademliaProtocol, Node
from .routing import Peer, Table

logger = structlog.get_logger(__name__)

HOST_RATE_FACTOR = 8
"""One host may send as much as this many addresses: several nodes share a host, an attacker has 65,535 ports."""
FOUND_OVERHEAD_BYTES = 32
"""The most that the map of a found answer needs around its records and neighbours."""


class SignedStorage(IStorage):
    """A `RecordStore` in the shape that the library's protocol expects; the clock is handed in."""

    def __init__(self, records: RecordStore, now_s: Callable[[], float]) -> None:
        self.records = records
        self._now_s = now_s

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.records.put(key, value, self._now_s())

    def __getitem__(self, key: bytes) -> list[bytes]:
        found = self.records.get(key, self._now_s())
        if not found:
            raise KeyError(key)
        return found

    def get(self, key: bytes, default: list[bytes] | None = None) -> list[bytes] | None:
        return self.records.get(key, self._now_s()) or default

    def iter_older_than(self, seconds_old: float) -> Iterator[tuple[bytes, bytes]]:
        """Nothing: only owners renew records, since only they can sign a later expiry."""
        return iter(())

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self.records)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a question, from whom; the payload is not yet decoded, and empty if another was asked."""

    contact: Contact
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Question:
    settle: Callable[[Answer | None], None]
    timer: asyncio.TimerHandle
    node_id: bytes | None
    address: Address
    asked_at_s: float


class AuthenticatedProtocol(KademliaProtocol):
    """Answers and asks Kademlia's questions for one node, envelope and all.

    ``on_unproven`` gets a contact that asked us something from an address that has not answered us yet;
    ``on_new`` one that has just entered the routing table.
    """

    _outstanding: dict[bytes, _Question]
    storage: SignedStorage
    router: Table

    def __init__(
        self,
        identity: Identity,
        network_id: bytes,
        storage: SignedStorage,
        *,
        k: int,
        now_s: Callable[[], float],
        randomness: Callable[[int], bytes],
        on_unproven: Callable[[Contact], None],
        on_new: Callable[[Contact], None],
        max_datagrams_per_s: float,
    ) -> None:
        super().__init__(Node(identity.node_id), storage, k)
        self._identity = identity
        self._network_id = network_id
        self._now_s = now_s
        self._randomness = randomness
        self._on_unproven = on_unproven
        self._on_new = on_new
        self._opener = Opener(identity.node_id, network_id)
        self._addresses = Throttle(max_datagrams_per_s, 2 * max_datagrams_per_s)
        self._hosts = Throttle(HOST_RATE_FACTOR * max_datagrams_per_s, 2 * HOST_RATE_FACTOR * max_datagrams_per_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_client = False
        """Whether what we send says that we cannot be asked from outside."""
        self.reaches: Callable[[str], bool] = lambda host: True
        """Whether the port can send to a host at all (its address family)."""
        self.router = Table(k, self.source_node, now_s, on_unproven)
        self.round_trips = RoundTrips()
        self.drops = Drops(now_s)
        self._floods = Floods(now_s)
        self.answered = 0
        """Questions of others that were answered."""

    def __getattr__(self, name: str) -> Any:
        """The library makes any unknown name a remote call; here a misspelt name is an error."""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def attach(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.DatagramTransport,
        port: DatagramPort,
    ) -> None:
        """Start to send through ``transport``, which is a face of ``port``, with timers on ``loop``."""
        self._loop = loop
        self.reaches = port.reaches
        self._floods.block = port.block
        self.connection_made(transport)

    def detach(self) -> None:
        """Stop sending; every question still open counts as unanswered."""
        self._loop = None
        self.transport.close()
        questions = list(self._outstanding.values())
        self._outstanding.clear()
        for question in questions:
            question.timer.cancel()
            question.settle(None)

    def ask(self, target: Contact | Address, query: Query, settle: Callable[[Answer | None], None]) -> None:
        """Send ``query``; ``settle`` gets the authenticated answer, or None after the time-out.

        It must do no more than take it in: it runs while a datagram is handled. A bare address is asked without
        naming its id. None at once if we are not attached.
        """
        if self._loop is None:
            settle(None)
            return
        node_id, address = (target.node_id, target.address) if isinstance(target, Contact) else (None, target)
        message_id = self._randomness(queries.MESSAGE_ID_BYTES)
        wants_more = isinstance(query, (FindNode, FindValue))
        datagram = self._seal(
            node_id,
            queries.encode_query(message_id, query),
            at_least_bytes=PADDED_REQUEST_BYTES if wants_more else 0,
        )
        timer = self._loop.call_later(self._timeout_for(node_id), self._timeout, message_id)
        self._outstanding[message_id] = _Question(settle, timer, node_id, address, self._loop.time())
        self._grant(address)
        self.transport.sendto(datagram, address)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        """Handle one datagram from the network; whatever is wrong with it is counted and ends here."""
        try:
            if not self._is_admitted(addr):
                self.drops.count("rate_limited", addr)
                self._floods.refused(addr)
                return
            opened = self._opener.open(data, self._now_s())
            message = queries.split_body(opened.body)
            if message.is_answer:
                self._take_answer(opened, message, addr)
            else:
                self._answer(opened, message, addr)
        except RemoteProtocolError as error:
            self.drops.count(error.code, addr, detail=str(error))
        except Exception:  # supervision point: a datagram that finds a bug must not be a kill switch for every node
            if self.drops.count("bug", addr):
                logger.exception("dht.datagram_bug")

    def forgive_floods(self) -> None:
        """Listen again to addresses that were shut out for long enough."""
        self._floods.forgive()

    def rpc_stun(self, sender: Address) -> list[object]:
        return list(sender)

    def rpc_ping(self) -> bytes:
        return self._identity.node_id

    def rpc_store(self, sender: Address, key: bytes, value: bytes) -> bool:
        """Keep a signed record; False if it does not check, is old, or there is no room for it.

        A refusal is answered: the asker would take silence for a dead node.
        """
        try:
            return self.storage.records.put(key, value, self._now_s())
        except RemoteProtocolError as error:
            self.drops.count(f"record_{error.code}", sender, detail=str(error))
            return False

    def rpc_find_node(self, asker: bytes, key: bytes, budget_bytes: int) -> list[tuple[bytes, str, int]]:
        """The contacts nearest to ``key`` that answered when last asked, as many as the budget takes."""
        near = self.router.nearest(key, asker)
        return queries.fit_neighbors(
            [(peer.id, peer.ip, peer.port) for peer in near if not peer.failures], budget_bytes
        )

    def rpc_find_value(self, asker: bytes, key: bytes, offset: int, budget_bytes: int) -> queries.Found:
        """A piece of the set under ``key``, and neighbours in the room that is left."""
        budget_bytes -= FOUND_OVERHEAD_BYTES
        piece, after = self.storage.records.piece(key, offset, budget_bytes, self._now_s())
        budget_bytes -= sum(len(record) + 3 for record in piece)
        return queries.Found(value=piece, next=after, nodes=self.rpc_find_node(asker, key, budget_bytes))

    def welcome_if_new(self, node: Peer) -> None:
        """Take a contact that has just answered us into the routing table."""
        known = self.router.peer(node.id)
        if known is not None:
            node.round_trips = known.round_trips
        self.router.add_contact(node)
        if known is None and self.router.peer(node.id) is not None:
            self._on_new(node.contact)

    def _answer(self, opened: Opened, message: queries.Message, address: Address) -> None:
        query = queries.decode_query(message.payload)
        if opened.sender_id == self._identity.node_id:
            raise Unexpected("the datagram is our own")
        if not opened.is_addressed and not isinstance(query, (Ping, Stun)):
            raise Unexpected("a question that does not name us may only be a ping")
        if not isinstance(query, Stun) and query.asker != opened.sender_id:
            raise Unexpected("the question names another node than its key")
        budget_bytes = opened.reply_budget_bytes - queries.HEADER_BYTES
        answer: object
        match query:
            case Ping():
                answer = self.rpc_ping()
            case Store(_, key, value):
                answer = self.rpc_store(address, key, value)
            case FindNode(asker, key):
                answer = self.rpc_find_node(asker, key, budget_bytes)
            case FindValue(asker, key, offset):
                answer = self.rpc_find_value(asker, key, offset, budget_bytes)
            case Stun():
                answer = self.rpc_stun(address)
        body = queries.encode_answer(message.message_id, answer)
        self.transport.sendto(self._seal(opened.sender_id, body), address)
        self.answered += 1
        if opened.is_client:
            self.router.remove(opened.sender_id)
        else:
            self._hear(Contact(opened.sender_id, address[0], address[1], self._now_s()))

    def _hear(self, contact: Contact) -> None:
        """A proven key asked us something: refresh it if its address is proven too, else have it proven."""
        peer = self.router.peer(contact.node_id)
        if peer is None or (peer.ip, peer.port) != contact.address:
            self._on_unproven(contact)
            return
        peer.last_seen_s = contact.last_seen_s
        self.router.add_contact(peer)

    def _take_answer(self, opened: Opened, message: queries.Message, address: Address) -> None:
        question = self._outstanding.get(message.message_id)
        if question is None:
            raise Unexpected("an answer to no open question")
        if question.address != address:
            raise Unexpected("an answer from another address than was asked")
        assert self._loop is not None, "questions exist only while attached"
        del self._outstanding[message.message_id]
        question.timer.cancel()
        if question.node_id not in (None, opened.sender_id):
            # Whoever lives at that address took the question, so the node that was meant does not live there.
            self.router.fail(question.node_id)
            question.settle(Answer(Contact(opened.sender_id, *address, self._now_s()), b""))
            raise Unexpected("an answer from another node than was asked")
        contact = Contact(opened.sender_id, address[0], address[1], self._now_s())
        round_trip_s = self._loop.time() - question.asked_at_s
        self.round_trips.add(round_trip_s)
        if not opened.is_client:
            peer = Peer(contact)
            # the answer was sent about half a round trip ago
            peer.clock_ahead_s = opened.sent_at_s + round_trip_s / 2 - self._now_s()
            self.welcome_if_new(peer)
            peer.round_trips.add(round_trip_s)
        question.settle(Answer(contact, message.payload))

    def _timeout(self, msg_id: bytes) -> None:
        question = self._outstanding.pop(msg_id, None)
        if question is not None:
            self._fail(question)

    def _fail(self, question: _Question) -> None:
        if question.node_id is not None:
            self.router.fail(question.node_id)
        question.settle(None)

    def _timeout_for(self, node_id: bytes | None) -> float:
        peer = self.router.peer(node_id) if node_id is not None else None
        if peer is not None and peer.round_trips.smoothed_s is not None:
            return peer.round_trips.timeout_s
        return self.round_trips.timeout_s if node_id is not None else RoundTrips().timeout_s

    def _seal(self, recipient_id: bytes | None, body: bytes, *, at_least_bytes: int = 0) -> bytes:
        return seal(
            self._identity,
            self._network_id,
            recipient_id,
            body,
            now_s=self._now_s(),
            nonce=self._randomness(NONCE_BYTES),
            at_least_bytes=at_least_bytes,
            is_client=self.is_client,
        )

    def _is_admitted(self, address: Address) -> bool:
        now_s = self._now_s()
        if not self._addresses.admit(address, now_s):
            return False
        host = host_group(address[0])
        return host is None or self._hosts.admit(host, now_s)

    def _grant(self, address: Address) -> None:
        now_s = self._now_s()
        self._addresses.grant(address, now_s)
        host = host_group(address[0])
        if host is not None:
            self._hosts.grant(host, now_s)


def host_group(host: str) -> str | None:
    """What counts as one host in rate limits: an IPv4 address, an IPv6 /64; None for loopback.

    Loopback is exempt: every node of a machine shares it, and each has a limit of its own already.
    """
    if host.startswith("127.") or host == "::1":
        return None
    if ":" not in host:
        return host
    try:
        return ipaddress.IPv6Address(host.partition("%")[0]).exploded[:19]
    except ValueError:
        return host
