"""What a node shows of discovery: records found, the routing table, the way of a look-up, and how others reach us."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from moed.protocol.queries import Contact
from moed.protocol.records import PeerRecord, TopicEntry, key_of_peer, key_of_topic

from .control.api import ControlRefused
from .network.dht import BucketView, Dht
from .network.peers import Peers
from .network.reach import Reach
from .network.search import Step

_HEX_ID = re.compile(r"[0-9a-f]{40}\Z")


class DhtView:
    """The answers about discovery behind the local API. Each look-up really asks the network."""

    def __init__(self, dht: Dht, peers: Peers, reach: Reach, describe: Callable[[], PeerRecord]) -> None:
        self._dht = dht
        self._peers = peers
        self._reach = reach
        self._describe = describe

    async def get(self, key: str) -> dict[str, Any]:
        """The records under ``key``: peer:ID, topic:NAME, all:NAME or 40 hexadecimal digits of the key.

        ``all`` lists every owner of a topic that is kept in parts, such as here.
        """
        if key.startswith("all:"):
            return await self._everybody(key.removeprefix("all:"))
        place = key_of(key)
        steps: list[Step] = []
        started = trio.current_time()
        found = await self._dht.look_up(place, steps=steps)
        return {
            "key": place.hex(),
            "records": [_record_row(record) for record in found.records],
            "answered_by": found.values,
            "asked": found.asked,
            "took_ms": _ms(trio.current_time() - started),
        }

    async def _everybody(self, topic: str) -> dict[str, Any]:
        """All entries of a topic that is kept in parts."""
        place = key_of(f"topic:{topic}")
        started = trio.current_time()
        entries = await self._dht.find_everybody(topic)
        return {
            "key": place.hex(),
            "records": [_record_row(entry) for entry in entries],
            "answered_by": 0,
            "asked": 0,
            "took_ms": _ms(trio.current_time() - started),
        }

    def table(self) -> dict[str, Any]:
        """The routing table and what was dropped at the door."""
        buckets = self._dht.table()
        return {
            "contacts": sum(len(bucket.contacts) for bucket in buckets),
            "buckets": [_bucket_row(bucket) for bucket in buckets],
            "dropped": dict(self._dht.dropped),
        }

    async def lookup(self, target: str) -> dict[str, Any]:
        """The nodes nearest to the id ``target``, and every question on the way there."""
        if not _HEX_ID.match(target):
            raise ControlRefused(400, "bad_id", "an id is 40 hexadecimal digits", "take one from `moectl dht table`")
        steps: list[Step] = []
        started = trio.current_time()
        nearest = await self._dht.nearest(bytes.fromhex(target), steps=steps)
        return {
            "target": target,
            "steps": [_step_row(step) for step in steps],
            "nearest": [_contact_row(contact) for contact in nearest],
            "took_ms": _ms(trio.current_time() - started),
        }

    async def doctor(self) -> dict[str, Any]:
        """How others see us now, asked for this answer."""
        known = await self._reach.check()
        ahead_s, clocks = self._dht.clock_ahead()
        return {
            "contacts": len(self._dht.contacts()),
            "sessions": len(self._peers.connected()),
            "advertised": list(self._describe().addresses),
            "external_host": known.external_host,
            "host_votes": known.host_votes,
            "udp": known.udp,
            "tcp": known.tcp,
            "dial_votes": known.dial_votes,
            "is_client": self._dht.is_client,
            "clocks_ahead_s": None if ahead_s is None else round(ahead_s, 3),
            "clocks": clocks,
        }


def key_of(text: str) -> bytes:
    """The record key that ``text`` names. Raises `ControlRefused`."""
    kind, _, name = text.rpartition(":")
    if kind == "topic" and 0 < len(name) <= 64:
        return key_of_topic(name)
    if kind in ("", "peer") and _HEX_ID.match(name):
        return key_of_peer(bytes.fromhex(name)) if kind else bytes.fromhex(name)
    raise ControlRefused(
        400,
        "bad_key",
        "a key is peer:NODE_ID, topic:NAME, all:NAME or 40 hexadecimal digits",
        "see `moectl dht get --help`",
    )


def _record_row(record: PeerRecord | TopicEntry) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(
        {name: getattr(record, name) for name in record.__struct_fields__ if name not in ("owner", "note")}
    )
    if isinstance(record, PeerRecord):
        # the structs are arrays on the wire; people get names
        row["devices"] = [msgspec.structs.asdict(device) for device in record.devices]
        row["experts"] = [msgspec.structs.asdict(expert) for expert in record.experts]
    else:
        row["note"] = record.note.hex()
    kind = "peer" if isinstance(record, PeerRecord) else "topic"
    return {"kind": kind, "node_id": record.node_id.hex(), "owner": record.owner.hex(), **row}


def _contact_row(contact: Contact) -> dict[str, Any]:
    return {"node_id": contact.node_id.hex(), "host": contact.host, "port": contact.port}


def _bucket_row(bucket: BucketView) -> dict[str, Any]:
    return {
        "depth": bucket.depth,
        "first_id": bucket.first_id.hex(),
        "waiting": bucket.waiting,
        "contacts": [
            {
                **_contact_row(each.contact),
                "round_trip_ms": None if each.round_trip_s is None else _ms(each.round_trip_s),
                "unanswered": each.failures,
                "last_seen_s": round(each.contact.last_seen_s, 3),
            }
            for each in bucket.contacts
        ],
    }


def _step_row(step: Step) -> dict[str, Any]:
    return {
        **_contact_row(step.contact),
        "path": step.path,
        "hop": step.hop,
        "asked_ms": _ms(step.asked_s),
        "took_ms": _ms(step.took_s),
        "outcome": step.outcome,
        "named": step.named,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
