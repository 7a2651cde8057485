"""Asking the network: single questions, iterative look-ups, and records gathered on the way.

The trio side of `protocol.lookup`: one task drives a look-up; its answers come in through plain callbacks.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal, TypeVar

import trio

from moed.protocol import queries
from moed.protocol.errors import RemoteProtocolError
from moed.protocol.identity import NodeId
from moed.protocol.lookup import Lookup
from moed.protocol.queries import Contact, FindNode, FindValue, Ping, Query, Store, Stun
from moed.protocol.records import Gathered, PeerRecord, TopicEntry

from .datagrams import Address
from .library import Node
from .rpc import Answer, AuthenticatedProtocol

_T = TypeVar("_T")

GET_PATHS = 3
LAN_ROUND_TRIP_S = 0.02
"""Below this, signing and checking cost more time than the network, so nothing is asked to spare."""
MIN_HEDGE_S = 0.05
"""A node is slow at the earliest after this time; below it our own load makes the difference."""


@dataclass(frozen=True, slots=True)
class Step:
    """One question of a look-up, for people who want to see the way it took. Times are in seconds from its start."""

    contact: Contact
    path: int
    hop: int
    asked_s: float
    took_s: float
    outcome: Literal["value", "nodes", "silent"]
    named: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a look-up for records brought: the newest valid ones, how many nodes had any, and how far they were."""

    records: list[PeerRecord | TopicEntry]
    values: int
    value_hop: int
    asked: int


@dataclass(slots=True, eq=False)
class _Open:
    """A node that is being asked, what it has said so far, and when that began."""

    contact: Contact
    asked_at_s: float
    nearer: list[Contact]
    has_value: bool = False
    pieces: int = 0


class Search:
    """Questions and look-ups of one node, through ``protocol``. Every answer is checked; a bad one is no answer."""

    def __init__(
        self,
        protocol: AuthenticatedProtocol,
        own_id: NodeId,
        network_id: bytes,
        *,
        k: int,
        alpha: int,
        now_s: Callable[[], float],
    ) -> None:
        self.protocol = protocol
        self._own_id = own_id
        self._network_id = network_id
        self._k = k
        self._alpha = alpha
        self._now_s = now_s

    async def ping(self, target: Contact | Address) -> Contact | None:
        """Who answers there (the contact itself, or whoever has the address), or None."""
        answer = await self._ask(target, Ping(self._own_id))
        if answer is None or self.decode(queries.decode_pong, answer) != answer.contact.node_id:
            return None
        return answer.contact

    async def stun(self, contact: Contact) -> Address | None:
        """From which address ``contact`` sees us, by its own word."""
        answer = await self._ask(contact, Stun())
        return None if answer is None else self.decode(queries.decode_seen_from, answer)

    async def store(self, contact: Contact, key: bytes, record: bytes) -> bool:
        """Ask ``contact``, which was just heard, to keep ``record``; whether it now holds it.

        Asked twice if need be: a look-up has other nodes to turn to when a datagram is lost, a store has not.
        """
        query = Store(self._own_id, key, record)
        answer = await self._ask(contact, query) or await self._ask(contact, query)
        return answer is not None and self.decode(queries.decode_stored, answer) is True

    async def store_on(self, contacts: Sequence[Contact], key: bytes, record: bytes) -> int:
        """`store` on each of ``contacts`` at the same time; on how many it is held now."""
        accepted = 0
        retry: list[Contact] = []
        left = len(contacts)
        done = trio.Event()
        query = Store(self._own_id, key, record)

        def settle(contact: Contact, answer: Answer | None) -> None:
            nonlocal accepted, left
            left -= 1
            if answer is None:
                retry.append(contact)
            else:
                accepted += self.decode(queries.decode_stored, answer) is True
            if not left:
                done.set()

        for contact in contacts:
            self.protocol.ask(contact, query, partial(settle, contact))
        if contacts:
            await done.wait()
        async with trio.open_nursery() as nursery:

            async def again(contact: Contact) -> None:
                nonlocal accepted
                answer = await self._ask(contact, query)
                accepted += answer is not None and self.decode(queries.decode_stored, answer) is True

            for contact in retry:
                nursery.start_soon(again, contact)
        return accepted

    async def find_nodes(self, target: bytes, *, steps: list[Step] | None = None) -> list[Contact]:
        """The k nodes nearest to ``target`` that answer, nearest first, this node not among them."""
        lookup = Lookup(target, self._own_id, self._starts(target), k=self._k, alpha=self._alpha)
        await _Drive(self, lookup, FindNode(self._own_id, target), None, steps).run()
        return lookup.nearest()

    async def find_records(
        self,
        key: bytes,
        held: Sequence[bytes],
        *,
        enough_values: int,
        fewest_values: int,
        spare: int,
        steps: list[Step] | None = None,
    ) -> Found:
        """The newest valid record of each owner under ``key``, merged over ``held`` and the nodes asked.

        Asks on, over disjoint paths, until ``enough_values`` nodes have answered with a valid record, or all that are
        near have answered; ``fewest_values`` are enough where the others are dead. ``spare`` more are asked at the same
        time where waiting costs more than asking.
        """
        gathered = Gathered(key, self._network_id)
        for record in held:
            gathered.add(record, self._now_s())
        lookup = Lookup(
            key,
            self._own_id,
            self._starts(key),
            k=self._k,
            alpha=self._alpha,
            paths=GET_PATHS,
            enough_values=enough_values,
            fewest_values=fewest_values,
            spare=spare if (self.protocol.round_trips.smoothed_s or 0.0) > LAN_ROUND_TRIP_S else 0,
        )
        await _Drive(self, lookup, FindValue(self._own_id, key), gathered, steps).run()
        return Found(gathered.records(), lookup.values, lookup.value_hop, lookup.asked)

    def is_valid(self, gathered: Gathered, record: bytes) -> bool:
        """Add ``record`` to ``gathered``; only what checks counts as a value: nonsense must not end a search early."""
        return gathered.add(record, self._now_s())

    def decode(self, decoder: Callable[[bytes], _T], answer: Answer) -> _T | None:
        """What ``decoder`` reads from ``answer``, or None for nonsense, which is counted."""
        if not answer.payload:
            return None
        try:
            return decoder(answer.payload)
        except RemoteProtocolError as error:
            self.protocol.drops.count(error.code, answer.contact.address, detail=str(error))
            return None

    def usable(self, neighbors: list[tuple[bytes, str, int]], answer: Answer) -> list[Contact] | None:
        """``neighbors`` as contacts that this node can reach.

        Loopback ones come only from a loopback node, or we could be aimed at ourselves.
        """
        contacts = self.decode(lambda _: queries.contacts_of(neighbors), answer)
        if contacts is None:
            return None
        is_local = _is_loopback(answer.contact.host)
        reaches = self.protocol.reaches
        return [each for each in contacts if reaches(each.host) and (is_local or not _is_loopback(each.host))]

    def _starts(self, target: bytes) -> list[Contact]:
        router = self.protocol.router
        router.buckets[router.get_bucket_for(Node(target))].touch_last_updated()
        return [peer.contact for peer in router.nearest(target)]

    async def _ask(self, target: Contact | Address, query: Query) -> Answer | None:
        outcome: Answer | None = None
        done = trio.Event()

        def settle(answer: Answer | None) -> None:
            nonlocal outcome
            outcome = answer
            done.set()

        self.protocol.ask(target, query, settle)
        await done.wait()
        return outcome


class _Drive:
    """One look-up under way: asks what it wants asked, and hands it the answers in the order in which they come."""

    def __init__(
        self,
        search: Search,
        lookup: Lookup,
        query: FindNode | FindValue,
        gathered: Gathered | None,
        steps: list[Step] | None,
    ) -> None:
        self._search = search
        self._lookup = lookup
        self._query = query
        self._gathered = gathered
        self._steps = steps
        self._inbox: deque[tuple[_Open, Answer | None]] = deque()
        self._news = trio.Event()
        self._unanswered: deque[_Open] = deque()
        self._started_at_s = trio.current_time()

    async def run(self) -> None:
        """Return once the look-up is finished; answers that come later are not waited for."""
        await trio.lowlevel.checkpoint()
        while True:
            for contact in self._lookup.next_queries():
                asked = _Open(contact, trio.current_time(), [])
                self._unanswered.append(asked)
                self._ask(asked, self._query)
            if self._lookup.is_finished:
                return
            if not self._inbox:
                await self._wait()
            while self._inbox:
                self._take(*self._inbox.popleft())
            self._report_slow()

    def _ask(self, asked: _Open, query: Query) -> None:
        def settle(answer: Answer | None) -> None:
            self._inbox.append((asked, answer))
            self._news.set()

        self._search.protocol.ask(asked.contact, query, settle)

    async def _wait(self) -> None:
        self._news = trio.Event()
        hedge_s = self._search.protocol.round_trips.hedge_s(MIN_HEDGE_S)
        oldest = self._unanswered[0].asked_at_s + hedge_s if self._unanswered else float("inf")
        with trio.move_on_at(oldest):
            await self._news.wait()

    def _report_slow(self) -> None:
        """Tell the look-up of nodes that take longer than most do, so that it asks others beside them."""
        now_s, hedge_s = trio.current_time(), self._search.protocol.round_trips.hedge_s(MIN_HEDGE_S)
        # The very sum that `_wait` waits for: a rounding difference between the two would spin on virtual time.
        while self._unanswered and self._unanswered[0].asked_at_s + hedge_s <= now_s:
            self._lookup.on_slow(self._unanswered.popleft().contact)

    def _take(self, asked: _Open, answer: Answer | None) -> None:
        go_on_at = self._read(asked, answer) if answer is not None else None
        if go_on_at:
            assert isinstance(self._query, FindValue)
            self._ask(asked, FindValue(self._query.asker, self._query.key, go_on_at))
            return
        if asked in self._unanswered:
            self._unanswered.remove(asked)
        is_heard = asked.pieces > 0
        if self._steps is not None:
            self._note(asked, is_heard)
        if is_heard:
            self._lookup.on_answer(asked.contact, asked.nearer, has_value=asked.has_value)
        else:
            self._lookup.on_failure(asked.contact, is_silent=answer is None)

    def _read(self, asked: _Open, answer: Answer) -> int | None:
        """Add what came to what ``asked`` has said; returns where its set goes on, if it does."""
        search = self._search
        if self._gathered is None:
            neighbors, records, after = search.decode(queries.decode_neighbors, answer), [], None
        else:
            found = search.decode(queries.decode_found, answer)
            neighbors, records, after = (None, [], None) if found is None else (found.nodes, found.value, found.next)
        usable = None if neighbors is None else search.usable(neighbors, answer)
        if usable is None:
            return None
        asked.pieces += 1
        asked.nearer += usable
        if self._gathered is not None:
            for record in records:
                asked.has_value |= search.is_valid(self._gathered, record)
        if after is None or asked.pieces >= queries.MAX_PIECES:
            return None
        return after

    def _note(self, asked: _Open, is_heard: bool) -> None:
        assert self._steps is not None
        path, hop = self._lookup.place_of(asked.contact)
        self._steps.append(
            Step(
                contact=asked.contact,
                path=path,
                hop=hop,
                asked_s=asked.asked_at_s - self._started_at_s,
                took_s=trio.current_time() - asked.asked_at_s,
                outcome="silent" if not is_heard else "value" if asked.has_value else "nodes",
                named=len(asked.nearer),
            )
        )


@lru_cache(maxsize=4096)
def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback
