"""Finding and meeting others through the DHT alone: our record goes in, theirs come out, sessions follow.

Two questions are asked again and again: who is here, and who serves an expert. Each answer is a signed record of
the peer itself; the directory keeps the newest of each peer for everybody else in the node to read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import structlog
import trio

from moed.protocol.addresses import Address
from moed.protocol.errors import Malformed
from moed.protocol.identity import NodeId
from moed.protocol.records import PeerRecord

from .network.dht import Dht
from .network.errors import CallError
from .network.peers import Peer, Peers

logger = structlog.get_logger()

TOPIC_HERE = "here"
PUBLISH_S = 30.0
"""How often our own record is measured and published again; it expires by itself."""
SEEK_S = 2.0
SEEK_SETTLED_S = 15.0
"""Pause between searches: short until somebody is found, longer once everybody is connected."""
DIAL_TIMEOUT_S = 5.0
MAX_SESSIONS = 64
"""Sessions that we open ourselves; others may still dial us."""
MAX_MET = 64
"""Peers whose records one search reads, and of whom it dials those that are not in session yet."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the directory holds of a peer: its record, and when we read it (trio time)."""

    record: PeerRecord
    read_at: float


class Discovery:
    """Keeps our record published and sessions open to the peers that the DHT names.

    ``describe`` makes our record anew (addresses, roles, capacity, experts, load) and ``topics`` are entered, each with
    its note, beside `TOPIC_HERE`; whoever starts it sets both before `run`.
    """

    describe: Callable[[], PeerRecord]
    topics: Mapping[str, bytes] = {}

    def __init__(
        self,
        dht: Dht,
        peers: Peers,
        me: NodeId,
    ) -> None:
        self._dht = dht
        self._peers = peers
        self._me = me
        self._rng = random.SystemRandom()
        self._directory: dict[NodeId, Known] = {}

    @property
    def directory(self) -> Mapping[NodeId, Known]:
        """The newest record of every peer that was found, by node id."""
        return self._directory

    async def publish(self) -> None:
        """Publish our record and enter our topics now."""
        accepted = await self._dht.publish_peer(self.describe())
        for topic, note in {TOPIC_HERE: b"", **self.topics}.items():
            await self._dht.announce(topic, note)
        # one set of one node holds 64 owners; the parts hold everybody, for those who want to list them all
        await self._dht.announce_in_part(TOPIC_HERE)
        logger.debug("discovery.published", accepted_by=accepted)

    async def run(self) -> None:
        """Publish and seek until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._publish_again)
            nursery.start_soon(self._seek)

    async def _publish_again(self) -> None:
        while True:
            await self.publish()
            # right after a start others may not be there yet to keep our record
            await trio.sleep(PUBLISH_S if self._dht.contacts() else SEEK_S)

    async def _seek(self) -> None:
        while True:
            missing = await self._seek_once()
            await trio.sleep(SEEK_S if missing or not self._directory else SEEK_SETTLED_S)

    async def _seek_once(self) -> bool:
        """Look for everybody once; True if somebody is left to connect with, and there is room for a session."""
        entries = await self._dht.find_topic(TOPIC_HERE)
        found = {entry.node_id for entry in entries} - {self._me}
        for gone in set(self._directory) - found:
            if self._peers.get(gone) is None:
                del self._directory[gone]
        met = whom_to_meet(found, self._rng)
        async with trio.open_nursery() as nursery:
            for node_id in met:
                nursery.start_soon(self._meet, node_id)
        is_missing = any(self._peers.get(node_id) is None and not self._is_client(node_id) for node_id in met)
        return is_missing and self._has_room()

    def _has_room(self) -> bool:
        return sum(peer.is_outbound for peer in self._peers.connected()) < MAX_SESSIONS

    def _is_client(self, node_id: NodeId) -> bool:
        """Whether a peer says that it cannot be dialled: it dials us, if it wants to."""
        known = self._directory.get(node_id)
        return known is not None and known.record.is_client

    async def _meet(self, node_id: NodeId) -> None:
        """Read a peer's record, and dial it unless we have a session, or enough of them."""
        record = await self._dht.find_peer(node_id)
        if record is None:
            return
        self._directory[node_id] = Known(record, trio.current_time())
        if self._peers.get(node_id) is None and not record.is_client and self._has_room():
            await self.dial(record)

    async def dial(self, record: PeerRecord) -> Peer | None:
        """A session with the owner of ``record``, by the first of its addresses that answers; None if none does."""
        for text in record.addresses:
            try:
                return await self._peers.connect(Address.parse(text), record.node_id, timeout_s=DIAL_TIMEOUT_S)
            except (CallError, Malformed) as error:
                logger.info("discovery.dial_failed", peer=record.node_id.hex(), address=text, reason=str(error))
        return None


def whom_to_meet(found: Collection[NodeId], rng: random.Random) -> list[NodeId]:
    """All of ``found``, or `MAX_MET` of them by chance: who could choose an id that is met first would choose it."""
    return sorted(found) if len(found) <= MAX_MET else rng.sample(sorted(found), MAX_MET)
