"""One hash for a whole state, at a cost that grows with what changed and not with the state, and proofs under it.

A Merkle tree over buckets: a key's hash chooses its bucket, a bucket's hash covers its keys and the hashes of their
values in order, and the tree above covers the buckets. Changing one record rehashes its bucket and one path; proving
one, or that there is none, takes its bucket and one path.

A bucket that is full splits in two by the next bit of its keys' hashes. So whoever looks for keys whose hashes begin
alike makes a path longer by a step for each doubling of the work, and no bucket greater.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Annotated

from msgspec import Meta

from moed.protocol.codec import Record, require_length
from moed.protocol.domains import Domain, hash_pair, tagged_hash
from moed.protocol.errors import Malformed

LEVELS = 16
"""Levels of the tree above the 65,536 buckets that nothing has split; a million records leave about 15 in each."""
MAX_DEPTH = 64
"""Steps of a path that a proof may have: 2^64 tries for each of the keys that would lead further down."""
ROOT_BYTES = 32
MAX_BUCKET = 64
"""Entries of a bucket before it splits."""

_Place = tuple[int, int]
"""A node of the tree: how many steps below the root, and that many first bits of the hashes of the keys below it."""


@lru_cache(maxsize=LEVELS + 1)
def _empty(level: int) -> bytes:
    """The hash of a subtree without leaves whose root is ``level`` steps above the buckets."""
    if level == 0:
        return tagged_hash(Domain.STATE_BUCKET)
    below = _empty(level - 1)
    return hash_pair(Domain.STATE_NODE, below, below)


def value_hash(value: bytes) -> bytes:
    """The hash of one encoded record."""
    return tagged_hash(Domain.STATE_VALUE, value)


def _bucket_hash(entries: Mapping[bytes, bytes]) -> bytes:
    """The hash of a bucket's keys and value hashes, in the order of the keys."""
    return tagged_hash(Domain.STATE_BUCKET, *(part for key in sorted(entries) for part in (key, entries[key])))


def _bits_of(key: bytes) -> int:
    """The bits that lead from the root to a key's bucket, `MAX_DEPTH` of them."""
    return int.from_bytes(tagged_hash(Domain.STATE_PLACE, key)[: MAX_DEPTH // 8], "big")


def _prefix(bits: int, depth: int) -> int:
    return bits >> (MAX_DEPTH - depth)


class BucketEntry(Record, frozen=True, kw_only=True):
    """One record of a bucket: its key, and the hash of its value."""

    key: Annotated[bytes, Meta(min_length=1, max_length=128)]
    value_hash: bytes

    def __post_init__(self) -> None:
        require_length("value_hash", self.value_hash, ROOT_BYTES)


class Branch(Record, frozen=True, kw_only=True):
    """What leads from a key to the root: its whole bucket, and the other child at each level above, lowest first."""

    bucket: Annotated[tuple[BucketEntry, ...], Meta(max_length=MAX_BUCKET)]
    siblings: Annotated[tuple[bytes, ...], Meta(min_length=LEVELS, max_length=MAX_DEPTH)]

    def __post_init__(self) -> None:
        if any(one.key >= two.key for one, two in pairwise(self.bucket)):
            raise Malformed("the keys of a bucket must rise")
        for sibling in self.siblings:
            require_length("sibling", sibling, ROOT_BYTES)

    def value_hash_of(self, key: bytes) -> bytes | None:
        """The hash of the value that the bucket holds under ``key``, or None if it holds none."""
        return next((entry.value_hash for entry in self.bucket if entry.key == key), None)

    def root_for(self, key: bytes) -> bytes:
        """The root of the state in which the bucket of ``key`` is this one."""
        index = _prefix(_bits_of(key), len(self.siblings))
        found = _bucket_hash({entry.key: entry.value_hash for entry in self.bucket})
        for sibling in self.siblings:
            pair = (found, sibling) if index % 2 == 0 else (sibling, found)
            found, index = hash_pair(Domain.STATE_NODE, *pair), index >> 1
        return found


@dataclass(slots=True)
class RootPatch:
    """What a set of changes does to a tree: the new root, and the nodes that `StateTree.apply` replaces."""

    root: bytes
    buckets: dict[_Place, dict[bytes, bytes]] = field(default_factory=dict)
    nodes: dict[_Place, bytes] = field(default_factory=dict)
    split: set[_Place] = field(default_factory=set)


class StateTree:
    """The tree over a state's records; `preview` leaves it as it is, `apply` moves it on."""

    def __init__(self) -> None:
        self._buckets: dict[_Place, dict[bytes, bytes]] = {}
        self._nodes: dict[_Place, bytes] = {}
        self._split: set[_Place] = set()
        self.root = _empty(LEVELS)

    def preview(self, changes: Mapping[bytes, bytes]) -> RootPatch:
        """The root after ``changes`` (key to encoded record), and the patch that gets there."""
        patch = RootPatch(self.root)
        for key, value in changes.items():
            here = self._bucket_of(patch, key)
            if here not in patch.buckets:
                patch.buckets[here] = dict(self._buckets.get(here, {}))
            patch.buckets[here][key] = value_hash(value)
            if len(patch.buckets[here]) > MAX_BUCKET:
                _split(patch, here)
        touched: dict[int, set[int]] = {}
        for (depth, prefix), entries in patch.buckets.items():
            patch.nodes[depth, prefix] = _bucket_hash(entries)
            touched.setdefault(depth, set()).add(prefix)
        for depth in range(max(touched, default=0), 0, -1):
            above = touched.setdefault(depth - 1, set())
            for prefix in {one >> 1 for one in touched[depth]}:
                left, right = self._node(patch, (depth, 2 * prefix)), self._node(patch, (depth, 2 * prefix + 1))
                patch.nodes[depth - 1, prefix] = hash_pair(Domain.STATE_NODE, left, right)
                above.add(prefix)
        patch.root = self._node(patch, (0, 0))
        return patch

    def prove(self, key: bytes) -> Branch:
        """What shows whoever knows the root which value, if any, the state has under ``key``."""
        unchanged = RootPatch(self.root)
        depth, prefix = self._bucket_of(unchanged, key)
        entries = self._buckets.get((depth, prefix), {})
        bucket = tuple(BucketEntry(key=one, value_hash=entries[one]) for one in sorted(entries))
        places = ((depth - above, (prefix >> above) ^ 1) for above in range(depth))
        return Branch(bucket=bucket, siblings=tuple(self._node(unchanged, place) for place in places))

    def apply(self, patch: RootPatch) -> None:
        """Move the tree to what ``patch`` previewed; it must come from this tree's present state."""
        self._buckets.update(patch.buckets)
        self._nodes.update(patch.nodes)
        self._split |= patch.split
        for here in patch.split:
            self._buckets.pop(here, None)
        self.root = patch.root

    def _bucket_of(self, patch: RootPatch, key: bytes) -> _Place:
        bits, depth = _bits_of(key), LEVELS
        while (here := (depth, _prefix(bits, depth))) in self._split or here in patch.split:
            depth += 1
        return here

    def _node(self, patch: RootPatch, here: _Place) -> bytes:
        return patch.nodes.get(here) or self._nodes.get(here) or _empty(LEVELS - here[0])


def _split(patch: RootPatch, here: _Place) -> None:
    """Divide a bucket of the patch, and again whichever half is still too full."""
    full = [here]
    while full:
        depth, prefix = full.pop()
        entries = patch.buckets.pop((depth, prefix))
        patch.split.add((depth, prefix))
        halves: list[dict[bytes, bytes]] = [{}, {}]
        for key, value in entries.items():
            halves[_prefix(_bits_of(key), depth + 1) & 1][key] = value
        for side, half in enumerate(halves):
            patch.buckets[depth + 1, 2 * prefix + side] = half
            if len(half) > MAX_BUCKET:
                full.append((depth + 1, 2 * prefix + side))
