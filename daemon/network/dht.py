"""Discovery: where the peer with an id is, and who belongs to a topic, over a Kademlia that strangers cannot poison.

`Dht` is the trio face. Below it `rpc.AuthenticatedProtocol` (the kademlia package's protocol, hardened) keeps its
futures and timers on a trio-asyncio loop, `search` asks, `protocol.records` says what to believe. Nothing of the
package's ``Server`` is left: its socket, its unawaited tasks, its look-up and its pickled state are each replaced.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
import trio

from moed.protocol.identity import Identity
from moed.protocol.queries import Contact
from moed.protocol.record_store import RecordStore
from moed.protocol.records import (
    PeerRecord,
    TopicEntry,
    key_of_peer,
    key_of_topic,
)

from .datagrams import Address, DatagramPort, PortTransport, UdpPort
from .entrance import Entrance, Resolve, resolve_name
from .library import current_loop, open_loop
from .newcomers import Newcomers
from .own_records import OwnRecords
from .routing import REFRESH_AFTER_S, random_id_in
from .rpc import AuthenticatedProtocol, SignedStorage, host_group
from .search import Found, Search, Step

logger = structlog.get_logger(__name__)

JOIN_TIMEOUT_S = 10.0
WITHDRAW_TIMEOUT_S = 3.0
UPKEEP_EVERY_S = 5.0
LISTED_AT_ONCE = 16
FEW_CONTACTS = 4
LOOK_AROUND_EVERY_S = 60.0
"""A node that knows fewer others asks them for its neighbours again after this time, and after twice as long each time
that it stays so: they may know more by now."""


@dataclass(frozen=True, slots=True)
class ContactView:
    """One contact of the table, its smoothed round trip, and how many questions in a row it left unanswered."""

    contact: Contact
    round_trip_s: float | None
    failures: int


@dataclass(frozen=True, slots=True)
class BucketView:
    """One bucket: how many leading bits its ids share, where it begins, who is in it, how many wait for a place."""

    depth: int
    first_id: bytes
    contacts: list[ContactView]
    waiting: int


class Dht:
    """One node of the DHT. Start `run` in a nursery, then `join`; the methods that ask wait until it runs.

    ``now_s`` is unix time; it dates envelopes and records and drives buckets and limits, so that virtual time needs
    one clock only. ``remembered`` are contacts of an earlier life, tried beside the bootstraps; the caller stores
    `contacts` for the next one. ``resolve`` turns a host name into numeric addresses. A record is stored on the
    ``replicas`` nodes nearest to its key (all k if not given), and a search for it ends when more than half as many
    nodes have answered with a valid one: so a minority of them cannot pass off an old record as the newest. Owners
    that are ``is_registered`` (by public key) stay longest in a set that is full.
    """

    def __init__(
        self,
        identity: Identity,
        network_id: bytes,
        *,
        now_s: Callable[[], float] = time.time,
        randomness: Callable[[int], bytes] = os.urandom,
        resolve: Resolve | None = None,
        remembered: Sequence[Contact] = (),
        is_registered: Callable[[bytes], bool] = lambda key: False,
        k: int = 20,
        replicas: int | None = None,
        alpha: int = 3,
        record_ttl_s: float = 3600.0,
        republish_s: float = 1200.0,
        max_datagrams_per_s: float = 200.0,
    ) -> None:
        self._identity = identity
        self._network_id = network_id
        self._now_s = now_s
        self._replicas = min(replicas or k, k)
        self._rng = random.Random(randomness(16))  # noqa: S311  # draws ids to refresh buckets with, no secret
        self._records = RecordStore(network_id, identity.node_id, salt=randomness(16), is_preferred=is_registered)
        self._newcomers = Newcomers(now_s)
        self._protocol = AuthenticatedProtocol(
            identity,
            network_id,
            SignedStorage(self._records, now_s),
            k=k,
            now_s=now_s,
            randomness=randomness,
            on_unproven=self._newcomers.prove,
            on_new=self._newcomers.provide,
            max_datagrams_per_s=max_datagrams_per_s,
        )
        self._search = Search(self._protocol, identity.node_id, network_id, k=k, alpha=alpha, now_s=now_s)
        self._entrance = Entrance(self._search, identity.node_id, resolve or resolve_name, remembered)
        self._own = OwnRecords(
            identity,
            network_id,
            self._records,
            self._search,
            now_s=now_s,
            replicas=self._replicas,
            record_ttl_s=record_ttl_s,
            republish_s=republish_s,
            retry_s=UPKEEP_EVERY_S,
        )
        self._serving = trio.Event()
        self._has_joined = False
        self._was_alone = False
        self._look_around_at_s = 0.0
        self._look_around_pause_s = LOOK_AROUND_EVERY_S

    async def run(
        self,
        socket: trio.socket.SocketType,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve on a bound UDP ``socket`` until cancelled; the caller closes the socket afterwards.

        Uses the trio-asyncio loop that is running around it, or opens one of its own for as long as it runs.
        Keeps buckets fresh and published records alive. Called once in the life of the object.
        """
        port = UdpPort(socket)
        try:
            await self.serve(port, task_status=task_status)
        finally:
            port.close()

    async def serve(self, port: DatagramPort, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve on any datagram ``port`` until cancelled: `run` without a socket."""
        async with _asyncio_loop() as loop:
            self._protocol.attach(loop, PortTransport(port), port)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read, port)
                    nursery.start_soon(self._keep_up)
                    nursery.start_soon(self._newcomers.work, self._protocol, self._records, self._search)
                    self._serving.set()
                    task_status.started()
            finally:
                self._protocol.detach()

    async def join(self, bootstraps: Sequence[Address]) -> int:
        """Enter the network through any of ``bootstraps`` (host names allowed) or remembered contacts.

        All are tried at the same time; the first that answers is enough. Returns how many contacts are known
        afterwards, at the latest after `JOIN_TIMEOUT_S`; 0 is no error: upkeep goes on trying.
        """
        await self._serving.wait()
        self._entrance.bootstraps = tuple(bootstraps)
        with trio.move_on_after(JOIN_TIMEOUT_S):
            await self._entrance.enter()
        self._has_joined = True
        contacts = len(self.contacts())
        logger.info("dht.joined", contacts=contacts, bootstraps=len(bootstraps))
        return contacts

    async def publish_peer(self, record: PeerRecord) -> int:
        """Sign ``record`` and store it on the nodes nearest to its key, now and again before it expires.

        Owner, sequence and expiry are filled in here; experts and devices beyond one datagram are left out.
        Returns how many nodes accepted it, ourselves not counted.
        """
        await self._serving.wait()
        return await self._own.publish(record)

    async def announce(self, topic: str, note: bytes = b"") -> int:
        """Enter ourselves under ``topic``, now and again before it expires; returns how many nodes accepted."""
        await self._serving.wait()
        return await self._own.publish(TopicEntry(topic=topic, note=note))

    async def find_peer(self, node_id: bytes) -> PeerRecord | None:
        """The newest valid record that the peer with this id signed, or None if it has none or has left."""
        for record in (await self.look_up(key_of_peer(node_id))).records:
            if isinstance(record, PeerRecord) and not record.withdrawn:
                return record
        return None

    async def find_topic(self, topic: str) -> list[TopicEntry]:
        """The newest valid entry of every owner found under ``topic``, ordered by owner."""
        found = (await self.look_up(key_of_topic(topic))).records
        return [entry for entry in found if isinstance(entry, TopicEntry) and not entry.withdrawn]

    async def look_up(self, key: bytes, *, steps: list[Step] | None = None) -> Found:
        """Every valid record under ``key``, withdrawn ones too; ``steps`` gets each question of the search."""
        await self._serving.wait()
        held = self._records.get(key, self._now_s())
        majority = self._replicas // 2 + 1
        return await self._search.find_records(
            key,
            held,
            enough_values=majority,
            fewest_values=self._replicas // 3 + 1,
            spare=self._replicas - majority,
            steps=steps,
        )

    async def nearest(self, target: bytes, *, steps: list[Step] | None = None) -> list[Contact]:
        """The k nodes nearest to ``target`` that answer; ``steps`` gets each question of the search."""
        await self._serving.wait()
        return await self._search.find_nodes(target, steps=steps)

    async def seen_from(self, count: int) -> list[Address]:
        """From which address others see us, in the signed words of at most ``count`` contacts of different hosts."""
        await self._serving.wait()
        chosen: dict[str, Contact] = {}
        for contact in self.contacts():
            chosen.setdefault(host_group(contact.host) or str(contact.address), contact)
        seen: list[Address] = []

        async def ask(contact: Contact) -> None:
            address = await self._search.stun(contact)
            if address is not None:
                seen.append(address)

        async with trio.open_nursery() as nursery:
            for contact in list(chosen.values())[:count]:
                nursery.start_soon(ask, contact)
        return seen

    @property
    def is_client(self) -> bool:
        """Whether we tell others not to keep us as a contact, since we cannot be asked from outside."""
        return self._protocol.is_client

    @is_client.setter
    def is_client(self, is_client: bool) -> None:
        self._protocol.is_client = is_client

    def table(self) -> list[BucketView]:
        """The routing table, bucket by bucket, in order of ids."""
        return [
            BucketView(
                depth=bucket.depth(),
                first_id=bucket.range[0].to_bytes(20, "big"),
                contacts=[
                    ContactView(peer.contact, peer.round_trips.smoothed_s, peer.failures)
                    for peer in bucket.nodes.values()
                ],
                waiting=len(bucket.replacement_nodes),
            )
            for bucket in self._protocol.router.buckets
        ]

    def holds(self, key: bytes) -> bool:
        """Whether this node itself keeps a record under ``key``."""
        return bool(self._records.get(key, self._now_s()))

    async def announce_in_part(self, topic: str, note: bytes = b"") -> int:
        """`announce` under the part of ``topic`` that our id belongs to, for topics of more owners than one set holds.

        `find_everybody` reads all parts. Returns how many nodes accepted.
        """
        return await self.announce(part_of(topic, self._identity.node_id), note)

    async def find_everybody(self, topic: str) -> list[TopicEntry]:
        """The entries of all parts of ``topic`` and of the topic itself, one for each owner, ordered by owner."""
        entries: dict[bytes, TopicEntry] = {}
        topics = [topic, *(f"{topic}/{number:02x}" for number in range(256))]

        async def find(some: list[str]) -> None:
            for each in some:
                for entry in await self.find_topic(each):
                    entries[entry.owner] = entry

        async with trio.open_nursery() as nursery:
            for start in range(LISTED_AT_ONCE):
                nursery.start_soon(find, topics[start::LISTED_AT_ONCE])
        return [entries[owner] for owner in sorted(entries)]

    def contacts(self) -> list[Contact]:
        """Every node whose key and address are proven, the last heard first."""
        contacts = [peer.contact for peer in self._protocol.router.peers()]
        return sorted(contacts, key=lambda contact: (-contact.last_seen_s, contact.node_id))

    def clock_ahead(self) -> tuple[float | None, int]:
        """By how many seconds the middle one of the contacts' clocks is ahead of ours, and how many were read."""
        ahead = [peer.clock_ahead_s for peer in self._protocol.router.peers() if peer.clock_ahead_s is not None]
        return (statistics.median(ahead) if ahead else None), len(ahead)

    @property
    def dropped(self) -> Mapping[str, int]:
        """How many datagrams were dropped since the start, by reason."""
        return self._protocol.drops.counts

    async def withdraw(self) -> None:
        """Leave gracefully: replace each published record by one that says so, within `WITHDRAW_TIMEOUT_S`."""
        with trio.move_on_after(WITHDRAW_TIMEOUT_S):
            await self._own.withdraw()

    async def _return_if_alone(self) -> None:
        """Knock again at every known door while nobody is known; says so once each time it comes to that."""
        bootstraps, remembered = self._entrance.bootstraps, self._entrance.remembered
        is_alone = self._has_joined and bool(bootstraps or remembered) and not self._protocol.router.peers()
        if is_alone and not self._was_alone:
            logger.warning("dht.alone", bootstraps=len(bootstraps), remembered=len(remembered))
        self._was_alone = is_alone
        if is_alone:
            with trio.move_on_after(JOIN_TIMEOUT_S):
                await self._entrance.enter()

    async def _look_around_if_few(self, now_s: float) -> None:
        """Whoever let us in may have been new or lying itself: with few contacts, look for our neighbours again."""
        known = len(self._protocol.router.peers())
        if known >= FEW_CONTACTS:
            self._look_around_pause_s = LOOK_AROUND_EVERY_S
        elif known and now_s >= self._look_around_at_s:
            self._look_around_at_s = now_s + self._look_around_pause_s
            self._look_around_pause_s = min(2 * self._look_around_pause_s, REFRESH_AFTER_S)
            await self._search.find_nodes(self._identity.node_id)
            await self._search.find_nodes(self._rng.randbytes(len(self._identity.node_id)))

    async def _read(self, port: DatagramPort) -> None:
        while True:
            for data, address in await port.receive():
                self._protocol.datagram_received(data, address)

    async def _keep_up(self) -> None:
        """Renew our records, refresh idle buckets, forget what expired, and go on knocking when alone."""
        while True:
            await trio.sleep(UPKEEP_EVERY_S)
            now_s = self._now_s()
            self._records.expire(now_s)
            self._protocol.forgive_floods()
            await self._return_if_alone()
            await self._look_around_if_few(now_s)
            for bucket in self._protocol.router.lonely_buckets():
                await self._search.find_nodes(random_id_in(bucket, self._rng))
            await self._own.renew_due(now_s)


def part_of(topic: str, node_id: bytes) -> str:
    """The topic that entries of this node go to when ``topic`` is cut into 256 parts."""
    return f"{topic}/{node_id[0]:02x}"


@asynccontextmanager
async def _asyncio_loop() -> AsyncIterator[asyncio.AbstractEventLoop]:
    """The trio-asyncio loop around us, or one of our own."""
    running = current_loop.get()
    if running is not None:
        yield running
        return
    async with open_loop() as loop:
        yield loop
