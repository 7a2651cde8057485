"""The records that this node keeps alive in the network: signed anew, stored again before they expire, withdrawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
import structlog
import trio

from moed.protocol.identity import Identity
from moed.protocol.record_store import RecordStore
from moed.protocol.records import PeerRecord, TopicEntry, fit_peer_record, sign_record

from .search import Search

logger = structlog.get_logger(__name__)

STORING_TAKES_S = 30.0
"""After this, storing a record is taken to have been cut off, and it is done again."""

Record: TypeAlias = PeerRecord | TopicEntry


@dataclass(slots=True)
class _Published:
    """A record that is kept alive, and when it is stored again."""

    record: Record
    due_at_s: float
    retry_s: float


class OwnRecords:
    """Signs with ``identity``, stores here in ``records`` and on the ``replicas`` nodes nearest to a record's key.

    A record lives for ``record_ttl_s`` and is stored again after ``republish_s``; one that nobody took after
    ``retry_s``, and twice as long each time that it stays so.
    """

    def __init__(
        self,
        identity: Identity,
        network_id: bytes,
        records: RecordStore,
        search: Search,
        *,
        now_s: Callable[[], float],
        replicas: int,
        record_ttl_s: float,
        republish_s: float,
        retry_s: float,
    ) -> None:
        self._identity = identity
        self._network_id = network_id
        self._records = records
        self._search = search
        self._now_s = now_s
        self._replicas = replicas
        self._record_ttl_s = record_ttl_s
        self._republish_s = republish_s
        self._retry_s = retry_s
        self._published: dict[bytes, _Published] = {}
        self._sequence = 0

    async def publish(self, record: Record) -> int:
        """Store ``record`` under our key, now and until `withdraw`; returns how many other nodes accepted it."""
        record = msgspec.structs.replace(record, owner=self._identity.public_key)
        kept = self._published.setdefault(record.key, _Published(record, 0.0, self._retry_s))
        kept.record = record
        return await self._renew(kept)

    async def renew_due(self, now_s: float) -> None:
        """Store again what would expire, or was not taken by anybody."""
        for key, kept in list(self._published.items()):
            if kept.due_at_s <= now_s and self._published.get(key) is kept:
                await self._renew(kept)

    async def withdraw(self) -> None:
        """Replace every published record by one that says that its owner has left."""
        published, self._published = self._published, {}
        async with trio.open_nursery() as nursery:
            for kept in published.values():
                nursery.start_soon(self._store, _withdrawn(kept.record))

    async def _renew(self, kept: _Published) -> int:
        """Store the record with a fresh expiry, and set when to do it again: soon if nobody took it."""
        # Upkeep must not renew it meanwhile: the newer copy would make this one look refused.
        kept.due_at_s = self._now_s() + STORING_TAKES_S
        accepted = await self._store(kept.record)
        if accepted:
            kept.due_at_s = self._now_s() + self._republish_s
            kept.retry_s = self._retry_s
        else:
            kept.due_at_s = self._now_s() + kept.retry_s
            kept.retry_s = min(2 * kept.retry_s, self._republish_s)
        return accepted

    async def _store(self, record: Record) -> int:
        """Store ``record``, freshly signed, here and on the k nearest nodes; how many of those accepted."""
        data = self._sign(record)
        self._records.put(record.key, data, self._now_s())
        nearest = await self._search.find_nodes(record.key)
        return await self._search.store_on(nearest[: self._replicas], record.key, data)

    def _sign(self, record: Record) -> bytes:
        # Milliseconds, so that a restarted node goes on above what it signed before.
        self._sequence = max(self._sequence + 1, int(self._now_s() * 1000))
        dated: Record = msgspec.structs.replace(
            record, sequence=self._sequence, expires_at_s=int(self._now_s() + self._record_ttl_s)
        )
        if isinstance(dated, TopicEntry):
            return sign_record(dated, self._identity, self._network_id)
        fitted, data = fit_peer_record(dated, self._identity, self._network_id)
        if fitted is not dated:
            logger.warning("dht.record_shortened", experts=len(fitted.experts), devices=len(fitted.devices))
        return data


def _withdrawn(record: Record) -> Record:
    """What replaces ``record`` when its owner leaves: the same place, nothing offered."""
    if isinstance(record, TopicEntry):
        return TopicEntry(topic=record.topic, withdrawn=True, owner=record.owner)
    return PeerRecord(withdrawn=True, owner=record.owner)
