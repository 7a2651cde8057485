"""One hash for a whole state, at a cost that grows with what changed and not with the state.

A Merkle tree over a fixed number of buckets: a key's hash chooses its bucket, a bucket's hash covers its leaves
in order, and the tree above covers the buckets. Changing one record rehashes its bucket and one path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from moed.protocol.domains import Domain, tagged_hash

LEVELS = 16
"""Levels of the tree: 65,536 buckets, so a million records leave about 15 leaves in each."""


@lru_cache(maxsize=LEVELS + 1)
def _empty(level: int) -> bytes:
    """The hash of a subtree without leaves whose root is ``level`` steps above the buckets."""
    if level == 0:
        return tagged_hash(Domain.STATE_BUCKET)
    below = _empty(level - 1)
    return tagged_hash(Domain.STATE_NODE, below, below)


def leaf_hash(key: bytes, value: bytes) -> bytes:
    """The hash of one record under its key."""
    return tagged_hash(Domain.STATE_LEAF, key, value)


def _bucket_of(key: bytes) -> int:
    return int.from_bytes(tagged_hash(Domain.STATE_PLACE, key)[:4], "big") >> (32 - LEVELS)


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
            patch.buckets[index][key] = leaf_hash(key, value)
        for index, leaves in patch.buckets.items():
            patch.nodes[0, index] = tagged_hash(Domain.STATE_BUCKET, *(leaves[key] for key in sorted(leaves)))
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

    def apply(self, patch: RootPatch) -> None:
        """Move the tree to what ``patch`` previewed; it must come from this tree's present state."""
        self._buckets.update(patch.buckets)
        self._nodes.update(patch.nodes)
        self.root = patch.root
