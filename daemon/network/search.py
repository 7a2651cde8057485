"""Asking the network: single questions, iterative look-ups, and records gathered on the way.

The trio side of `protocol.lookup`: each question is a task that waits for one asyncio future of the protocol.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

import trio

from moed.protocol import queries
from moed.protocol.errors import RemoteProtocolError
from moed.protocol.identity import NodeId
from moed.protocol.lookup import Lookup
from moed.protocol.queries import Contact, FindNode, FindValue, Ping, Query, Store
from moed.protocol.records import PeerRecord, TopicEntry, merge_records

from .datagrams import Address
from .library import Node, run_aio_future
from .rpc import Answer, AuthenticatedProtocol

_Heard: TypeAlias = tuple[list[Contact], bool]
"""Nearer contacts, and whether a valid record came with them."""
_T = TypeVar("_T")


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
        self._protocol = protocol
        self._own_id = own_id
        self._network_id = network_id
        self._k = k
        self._alpha = alpha
        self._now_s = now_s

    async def ping(self, target: Contact | Address) -> Contact | None:
        """Who answers there (the contact itself, or whoever has the address), or None."""
        answer = await self._ask(target, Ping(self._own_id))
        if answer is None or self._decode(queries.decode_pong, answer) != answer.contact.node_id:
            return None
        return answer.contact

    async def store(self, contact: Contact, key: bytes, record: bytes) -> bool:
        """Ask ``contact``, which was just heard, to keep ``record``; whether it now holds it.

        Asked twice if need be: a look-up has other nodes to turn to when a datagram is lost, a store has not.
        """
        query = Store(self._own_id, key, record)
        answer = await self._ask(contact, query) or await self._ask(contact, query)
        return answer is not None and self._decode(queries.decode_stored, answer) is True

    async def find_nodes(self, target: bytes) -> list[Contact]:
        """The k nodes nearest to ``target`` that answer, nearest first, this node not among them."""

        async def ask(contact: Contact) -> _Heard | None:
            answer = await self._ask(contact, FindNode(self._own_id, target))
            neighbors = None if answer is None else self._decode(queries.decode_neighbors, answer)
            if answer is None or neighbors is None:
                return None
            nearer = self._usable(neighbors, answer)
            return None if nearer is None else (nearer, False)

        lookup = self._lookup(target)
        await _drive(lookup, ask)
        return lookup.nearest()

    async def find_records(
        self, key: bytes, held: Sequence[bytes], *, enough_values: int
    ) -> list[PeerRecord | TopicEntry]:
        """The newest valid record of each owner under ``key``, merged over ``held`` and the nodes asked.

        Asks on until ``enough_values`` nodes have answered with a valid record, or the k nearest have answered.
        """
        answers = dict.fromkeys(held, True)

        async def ask(contact: Contact) -> _Heard | None:
            return await self._fetch(contact, key, answers)

        await _drive(self._lookup(key, enough_values=enough_values), ask)
        return merge_records(list(answers), key, self._network_id, self._now_s())

    async def _fetch(self, contact: Contact, key: bytes, answers: dict[bytes, bool]) -> _Heard | None:
        """Add the set that ``contact`` holds under ``key``, piece by piece, to ``answers`` (record: is it valid).

        Only what checks counts as a value: nonsense must not end the search early.
        """
        nearer: list[Contact] = []
        has_value = False
        offset = 0
        for _ in range(queries.MAX_PIECES):
            answer = await self._ask(contact, FindValue(self._own_id, key, offset))
            found = None if answer is None else self._decode(queries.decode_found, answer)
            usable = None if answer is None or found is None else self._usable(found.nodes, answer)
            if found is None or usable is None:
                return (nearer, has_value) if offset else None
            nearer += usable
            for record in found.value:
                if record not in answers:
                    answers[record] = bool(merge_records([record], key, self._network_id, self._now_s()))
                has_value = has_value or answers[record]
            if found.next is None or found.next <= offset:
                break
            offset = found.next
        return nearer, has_value

    def _lookup(self, target: bytes, *, enough_values: int = 0) -> Lookup:
        router = self._protocol.router
        router.buckets[router.get_bucket_for(Node(target))].touch_last_updated()
        starts = [peer.contact for peer in router.find_neighbors(Node(target))]
        return Lookup(target, self._own_id, starts, k=self._k, alpha=self._alpha, enough_values=enough_values)

    async def _ask(self, target: Contact | Address, query: Query) -> Answer | None:
        future = self._protocol.ask(target, query)
        if future is None:
            await trio.lowlevel.checkpoint()
            return None
        return await run_aio_future(future)

    def _decode(self, decoder: Callable[[bytes], _T], answer: Answer) -> _T | None:
        try:
            return decoder(answer.payload)
        except RemoteProtocolError as error:
            self._protocol.drops.count(error.code, answer.contact.address, detail=str(error))
            return None

    def _usable(self, neighbors: list[tuple[bytes, str, int]], answer: Answer) -> list[Contact] | None:
        """``neighbors`` as contacts; loopback ones only from a loopback node, or we could be aimed at ourselves."""
        contacts = self._decode(lambda _: queries.contacts_of(neighbors), answer)
        if contacts is None or ipaddress.ip_address(answer.contact.host).is_loopback:
            return contacts
        return [each for each in contacts if not ipaddress.ip_address(each.host).is_loopback]


async def _drive(lookup: Lookup, ask: Callable[[Contact], Awaitable[_Heard | None]]) -> None:
    """Ask what ``lookup`` wants asked until it is finished; questions still open then are given up."""
    async with trio.open_nursery() as nursery:

        async def query(contact: Contact) -> None:
            heard = await ask(contact)
            if heard is None:
                lookup.on_failure(contact)
            else:
                lookup.on_answer(contact, heard[0], has_value=heard[1])
            go_on()

        def go_on() -> None:
            for contact in lookup.next_queries():
                nursery.start_soon(query, contact)
            if lookup.is_finished:
                nursery.cancel_scope.cancel()

        go_on()
