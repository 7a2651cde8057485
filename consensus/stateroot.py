"""One hash for a whole state, at a cost that grows with what changed and not with the state, and proofs under it.

A Merkle tree over a fixed number of buckets: a key's hash chooses its bucket, a bucket's hash covers its keys and the
hashes of their values in order, and the tree above covers the buckets. Changing one record rehashes its bucket and one
path; proving one, or that there is none, takes its bucket and one path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Annotated

from msgspec import Meta

from moed.protocol.codec import Record, require_length
from moed.protocol.domains import Domain, tagged_hash
from moed.protocol.errors import Malformed

LEVELS = 16
"""Levels of the tree: 65,536 buckets, so a million records leave about 15 in each."""
ROOT_BYTES = 32
MAX_BUCKET = 1_024
"""Entries of a bucket that a proof may hold: over sixty times the mean of a million records."""


@lru_cache(maxsize=LEVELS + 1)
def _empty(level: int) -> bytes:
    """The hash of a subtree without leaves whose root is ``level`` steps above the buckets."""
    if level == 0:
        return tagged_hash(Domain.STATE_BUCKET)
    below = _empty(level - 1)
    return tagged_hash(Domain.STATE_NODE, below, below)


def value_hash(value: bytes) -> bytes:
    """The hash of one encoded record."""
    return tagged_hash(Domain.STATE_VALUE, value)


def _bucket_hash(entries: Mapping[bytes, bytes]) -> bytes:
    """The hash of a bucket's keys and value hashes, in the order of the keys."""
    return tagged_hash(Domain.STATE_BUCKET, *(part for key in sorted(entries) for part in (key, entries[key])))


def _bucket_of(key: bytes) -> int:
    return int.from_bytes(tagged_hash(Domain.STATE_PLACE, key)[:4], "big") >> (32 - LEVELS)


class BucketEntry(Record, frozen=True, kw_only=True):
    """One record of a bucket: its key, and the hash of its value."""

    key: Annotated[bytes, Meta(min_length=1, max_length=128)]
    value_hash: bytes

    def __post_init__(self) -> None:
        require_length("value_hash", self.value_hash, ROOT_BYTES)


class Branch(Record, frozen=True, kw_only=True):
    """What leads from a key to the root: its whole bucket, and the other child at each level above, lowest first."""

    bucket: Annotated[tuple[BucketEntry, ...], Meta(max_length=MAX_BUCKET)]
    siblings: Annotated[tuple[bytes, ...], Meta(min_length=LEVELS, max_length=LEVELS)]

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
        index = _bucket_of(key)
        found = _bucket_hash({entry.key: entry.value_hash for entry in self.bucket})
        if any(one.key >= two.key for one, two in pairwise(self.bucket)):
            raise Malformed("the keys of a bucket must rise")
        for sibling in self.siblings:
            pair = (found, sibling) if index % 2 == 0 else (sibling, found)
            found, index = tagged_hash(Domain.STATE_NODE, *pair), index >> 1
        return found


@dataclass(slots=True)
class RootPatch:
    """What a set of changes does to a tree: the new root, and the nodes that `StateTree.apply` replaces."""

    root: bytes
    buckets: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    nodes: dict[tuple[int, int], bytes] = field(default_factory=dict)


class StateTree:
    """The tree over a state's records; `preview` leaves it as it is, `apply` moves it on."""

    def __init__(self) -> None:
        self._buckets: dict[int, dict[bytes, bytes]] = {}
        self._nodes: dict[tuple[int, int], bytes] = {}
        self.root = _empty(LEVELS)

    def preview(self, changes: Mapping[bytes, bytes]) -> RootPatch:
        """The root after ``changes`` (key to encoded record), and the patch that gets there."""
        patch = RootPatch(self.root)
        for key, value in changes.items():
            index = _bucket_of(key)
            if index not in patch.buckets:
                patch.buckets[index] = dict(self._buckets.get(index, {}))
            patch.buckets[index][key] = value_hash(value)
        for index, entries in patch.buckets.items():
            patch.nodes[0, index] = _bucket_hash(entries)
        touched = set(patch.buckets)
        for level in range(1, LEVELS + 1):
            touched = {index >> 1 for index in touched}
            for index in touched:
                children = (self._node(patch, level - 1, 2 * index + side) for side in (0, 1))
                patch.nodes[level, index] = tagged_hash(Domain.STATE_NODE, *children)
        patch.root = self._node(patch, LEVELS, 0)
        return patch

    def _node(self, patch: RootPatch, level: int, index: int) -> bytes:
        here = (level, index)
        return patch.nodes.get(here) or self._nodes.get(here) or _empty(level)

    def prove(self, key: bytes) -> Branch:
        """What shows whoever knows the root which value, if any, the state has under ``key``."""
        index = _bucket_of(key)
        entries = self._buckets.get(index, {})
        bucket = tuple(BucketEntry(key=one, value_hash=entries[one]) for one in sorted(entries))
        siblings = []
        for level in range(LEVELS):
            siblings.append(self._nodes.get((level, index ^ 1)) or _empty(level))
            index >>= 1
        return Branch(bucket=bucket, siblings=tuple(siblings))

    def apply(self, patch: RootPatch) -> None:
        """Move the tree to what ``patch`` previewed; it must come from this tree's present state."""
        self._buckets.update(patch.buckets)
        self._nodes.update(patch.nodes)
        self.root = patch.root
