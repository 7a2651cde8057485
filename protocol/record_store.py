"""What one node keeps of the DHT's records: the newest of each owner, within bounds, until it expires.

Pure: time and the node's secret salt are arguments, records come in as bytes and are checked here.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from .errors import TooLarge, Unexpected
from .records import RecordKey, check_record

_SWEEP_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class _Kept:
    sequence: int
    expires_at_s: int
    data: bytes

    @property
    def rank(self) -> tuple[int, bytes]:
        """Newer is larger; the bytes decide between two records of one sequence, alike on every node."""
        return self.sequence, self.data


class RecordStore:
    """Signed records by key and owner, bounded per topic, per owner and in all.

    When full, the keys farthest from this node's id go first: others are nearer to them and keep them. When a
    topic is full, owners that are preferred (registered: they paid for their place) stay before others, and among
    alike the ones with the smallest hash under this node's ``salt``, a uniform sample that an owner can neither
    predict nor aim at, and another one on every node.
    """

    def __init__(
        self,
        network_id: bytes,
        node_id: bytes,
        *,
        salt: bytes,
        is_preferred: Callable[[bytes], bool] = lambda owner: False,
        max_owners_per_topic: int = 64,
        max_bytes_per_owner: int = 16 * 1024,
        max_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        self._network_id = network_id
        self._own_distance_base = int.from_bytes(node_id, "big")
        self._salt = salt
        self._is_preferred = is_preferred
        self._max_owners_per_topic = max_owners_per_topic
        self._max_bytes_per_owner = max_bytes_per_owner
        self._max_bytes = max_bytes
        self._sets: dict[bytes, dict[bytes, _Kept]] = {}
        self._bytes_by_owner: Counter[bytes] = Counter()
        self._bytes = 0
        self._farthest: list[tuple[int, bytes]] = []
        self._swept_at_s = float("-inf")

    @property
    def size_bytes(self) -> int:
        """The record bytes held, overhead of the tables not counted."""
        return self._bytes

    def put(self, key: bytes, data: bytes, now_s: float) -> bool:
        """Keep ``data`` under ``key`` if it is the newest of its owner; True if it is what we now hold.

        False says that we hold a newer one. Raises what `check_record` raises, `Unexpected` for a record of
        another key and `TooLarge` where a bound refuses it; then nothing has changed.
        """
        held_set = self._sets.get(key, {})
        if any(kept.data == data and kept.expires_at_s > now_s for kept in held_set.values()):
            return True  # a republished copy needs no second signature check
        record = check_record(data, self._network_id, now_s)
        if record.key != key:
            raise Unexpected("the record belongs under another key")
        new = _Kept(record.sequence, record.expires_at_s, data)
        held = held_set.get(record.owner)
        if held is not None and held.rank > new.rank:
            return False
        self._sweep_if_due(now_s)
        self._require_room(key, record.owner, new)
        self._remove(key, record.owner)
        self._insert(key, record.owner, new)
        return True

    def get(self, key: bytes, now_s: float) -> list[bytes]:
        """Every record held under ``key`` that has not expired, ordered by owner."""
        kept = self._sets.get(key, {})
        return [kept[owner].data for owner in sorted(kept) if kept[owner].expires_at_s > now_s]

    def piece(
        self, key: bytes, offset: int, budget_bytes: int, now_s: float, *, overhead_bytes: int = 3
    ) -> tuple[list[bytes], int | None]:
        """The records from ``offset`` on that fit ``budget_bytes``, and the offset to go on from, if any.

        Each record costs ``overhead_bytes`` more than its length, for its head in the message.
        """
        records = self.get(key, now_s)
        piece: list[bytes] = []
        for data in records[offset:]:
            budget_bytes -= len(data) + overhead_bytes
            if budget_bytes < 0:
                break
            piece.append(data)
        after = offset + len(piece)
        return piece, after if after < len(records) else None

    def expire(self, now_s: float) -> int:
        """Forget what is over; returns how many records went."""
        gone = [
            (key, owner)
            for key, kept in self._sets.items()
            for owner, record in kept.items()
            if record.expires_at_s <= now_s
        ]
        for key, owner in gone:
            self._remove(key, owner)
        self._swept_at_s = now_s
        return len(gone)

    def __iter__(self) -> Iterator[tuple[RecordKey, bytes]]:
        """Each (key, record) held, over a copy: the store may change meanwhile."""
        return iter([(RecordKey(key), kept.data) for key, owners in self._sets.items() for kept in owners.values()])

    def __len__(self) -> int:
        return sum(map(len, self._sets.values()))

    def _sweep_if_due(self, now_s: float) -> None:
        if now_s - self._swept_at_s >= _SWEEP_EVERY_S and self._bytes > self._max_bytes // 2:
            self.expire(now_s)

    def _require_room(self, key: bytes, owner: bytes, new: _Kept) -> None:
        """Make room for ``new`` by the rules of the class, or raise `TooLarge` with nothing removed."""
        held = self._sets.get(key, {}).get(owner)
        growth = len(new.data) - (len(held.data) if held else 0)
        owned = self._bytes_by_owner[owner] + growth
        if owned > self._max_bytes_per_owner:
            raise TooLarge("records of one owner", owned, self._max_bytes_per_owner)
        evicted = self._owner_to_evict(key, owner) if held is None else None
        victims = self._keys_to_evict(key, growth)
        if evicted is not None:
            self._remove(key, evicted)
        for victim in victims:
            for victim_owner in list(self._sets[victim]):
                self._remove(victim, victim_owner)

    def _owner_to_evict(self, key: bytes, owner: bytes) -> bytes | None:
        owners = self._sets.get(key, {})
        if len(owners) < self._max_owners_per_topic:
            return None
        worst = max(owners, key=self._draw)
        if self._draw(owner) > self._draw(worst):
            raise TooLarge("owners of one topic", len(owners) + 1, self._max_owners_per_topic)
        return worst

    def _keys_to_evict(self, key: bytes, growth: int) -> Sequence[bytes]:
        victims: list[bytes] = []
        popped: list[tuple[int, bytes]] = []
        excess = self._bytes + growth - self._max_bytes
        while excess > 0:
            if not self._farthest or self._farthest[0][0] >= -self._distance(key):
                for entry in popped:
                    heapq.heappush(self._farthest, entry)
                raise TooLarge("records kept", self._bytes + growth, self._max_bytes)
            entry = heapq.heappop(self._farthest)
            if entry[1] in self._sets and entry[1] not in victims:
                popped.append(entry)
                victims.append(entry[1])
                excess -= sum(len(kept.data) for kept in self._sets[entry[1]].values())
        return victims

    def _distance(self, key: bytes) -> int:
        return int.from_bytes(key, "big") ^ self._own_distance_base

    def _draw(self, owner: bytes) -> tuple[bool, bytes]:
        """Smaller stays longer."""
        return not self._is_preferred(owner), blake2b(owner, digest_size=16, key=self._salt).digest()

    def _insert(self, key: bytes, owner: bytes, new: _Kept) -> None:
        if key not in self._sets:
            self._sets[key] = {}
            if len(self._farthest) > 64 + 2 * len(self._sets):  # shed what removed keys left in the heap
                self._farthest = [(-self._distance(each), each) for each in self._sets]
                heapq.heapify(self._farthest)
            else:
                heapq.heappush(self._farthest, (-self._distance(key), key))
        self._sets[key][owner] = new
        self._bytes += len(new.data)
        self._bytes_by_owner[owner] += len(new.data)

    def _remove(self, key: bytes, owner: bytes) -> None:
        kept = self._sets.get(key, {}).pop(owner, None)
        if kept is None:
            return
        self._bytes -= len(kept.data)
        self._bytes_by_owner[owner] -= len(kept.data)
        if self._bytes_by_owner[owner] <= 0:
            del self._bytes_by_owner[owner]
        if not self._sets[key]:
            del self._sets[key]
