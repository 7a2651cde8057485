"""Whom a node meets of those that it found: nobody can buy the first places with an id."""

from __future__ import annotations

import random

from moed.daemon.discovery import MAX_MET, whom_to_meet
from moed.protocol.identity import NodeId

SEED = 7


def test_low_ids_do_not_keep_others_out() -> None:
    """As many ids as one search meets, ground to be the lowest: all others are met within a few searches too."""
    rng = random.Random(SEED)
    ground = {NodeId(bytes(2) + rng.randbytes(18)) for _ in range(MAX_MET)}
    others = {NodeId(b"\xff" + rng.randbytes(19)) for _ in range(MAX_MET)}
    met: set[NodeId] = set()
    for _ in range(20):
        some = whom_to_meet(ground | others, rng)
        assert len(some) == len(set(some)) == MAX_MET
        met.update(some)
    assert met == ground | others, f"seed {SEED}"


def test_few_are_all_met() -> None:
    """Each in every search, so that their records stay fresh."""
    rng = random.Random(SEED)
    few = {NodeId(rng.randbytes(20)) for _ in range(MAX_MET)}
    assert whom_to_meet(few, rng) == sorted(few)
