"""What to do about nodes that are new to us: prove their address, then hand over the records that are theirs to keep.

The protocol's plain functions queue this work; a few workers in the DHT's nursery do it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from enum import Enum, auto

import trio

from moed.protocol.queries import Contact
from moed.protocol.record_store import RecordStore

from .datagrams import Address
from .library import Node
from .rpc import AuthenticatedProtocol
from .search import Search

PROVE_AGAIN_AFTER_S = 60.0
"""An address that has not answered gets one ping from us in this time, whatever is sent in its name."""
MAX_PROVING = 1024
MAX_QUEUED = 256
WORKERS = 8
CHECKPOINT_EVERY = 64
"""Records looked through between two turns of other tasks."""
MAX_HANDED_OVER = 64
"""The most records that one new contact is given at once; their owners renew the rest."""


class _Chore(Enum):
    PROVE = auto()
    HAND_OVER = auto()


class Newcomers:
    """A bounded queue of contacts to prove or to provide with records, and the workers that empty it."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._pinged_at_s: OrderedDict[Address, float] = OrderedDict()
        # Written by the protocol's plain functions, read by the workers. When full the newest is dropped: a contact
        # that matters will ask us again.
        self._queue, self._to_do = trio.open_memory_channel[tuple[_Chore, Contact]](MAX_QUEUED)
        self.dropped = 0
        """How many chores were dropped because the queue was full."""

    def prove(self, contact: Contact) -> None:
        """Ping ``contact`` soon, unless its address was pinged for this reason a short while ago."""
        now_s = self._now_s()
        if now_s - self._pinged_at_s.get(contact.address, float("-inf")) < PROVE_AGAIN_AFTER_S:
            return
        self._pinged_at_s[contact.address] = now_s
        self._pinged_at_s.move_to_end(contact.address)
        while len(self._pinged_at_s) > MAX_PROVING:
            self._pinged_at_s.popitem(last=False)
        self._put(_Chore.PROVE, contact)

    def provide(self, contact: Contact) -> None:
        """Hand the records over soon that ``contact`` should now hold."""
        self._put(_Chore.HAND_OVER, contact)

    async def work(self, protocol: AuthenticatedProtocol, records: RecordStore, search: Search) -> None:
        """Do what is queued until cancelled, `WORKERS` at a time."""

        async def worker() -> None:
            async for chore, contact in self._to_do:
                if chore is _Chore.PROVE:
                    await search.ping(contact)
                else:
                    await _hand_over(contact, protocol, records, search)

        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(worker)

    def _put(self, chore: _Chore, contact: Contact) -> None:
        try:
            self._queue.send_nowait((chore, contact))
        except trio.WouldBlock:
            self.dropped += 1


async def _hand_over(newcomer: Contact, protocol: AuthenticatedProtocol, records: RecordStore, search: Search) -> None:
    """Give ``newcomer`` the records that it should hold and of which we are the nearest holder.

    Section 2.5 of the Kademlia paper; the library hashed the key a second time, so it compared wrong places.
    """
    router = protocol.router
    own, new = protocol.source_node, Node(newcomer.node_id)
    others = [peer.long_id for peer in router.peers() if peer.id != newcomer.node_id]
    handed_over = 0
    for number, (key, record) in enumerate(records):
        if number % CHECKPOINT_EVERY == 0:
            await trio.lowlevel.checkpoint()
        place = Node(key)
        own_distance = own.long_id ^ place.long_id
        # Nearly always somebody is nearer, and found among the first few: no sorting for those.
        if any(other ^ place.long_id < own_distance for other in others):
            continue
        nearest = router.find_neighbors(place, exclude=new)
        if len(nearest) < router.ksize or new.distance_to(place) < nearest[-1].distance_to(place):
            await search.store(newcomer, key, record)
            handed_over += 1
            if handed_over >= MAX_HANDED_OVER:
                return
