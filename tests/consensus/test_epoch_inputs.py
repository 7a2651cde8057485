"""What an epoch refuses: inputs out of their range, and whatever strangers may put where numbers should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moed.consensus.dense_rows import DenseRows
from moed.consensus.errors import InvalidEpochInput, RuleBroken
from moed.consensus.sparse_rows import UIDS_MAX, SparseRows
from support.epochs import run_epoch


def valid_inputs() -> dict[str, Any]:
    return {
        "n": 3,
        "block": 10,
        "last_tempo_block": 5,
        "emission": 1000,
        "stake": [3, 2, 0],
        "validator_permit": [True, True, False],
        "last_update": [9, 9, 0],
        "block_at_registration": [0, 0, 0],
        "weights_u16": [[(1, 7), (2, 9)], [(2, 1)], []],
        "bonds_u16": [[], [], []],
    }


BROKEN: list[tuple[str, Any]] = [
    ("n", 0),
    ("n", 4),
    ("n", UIDS_MAX + 1),
    ("block", -1),
    ("emission", 1 << 63),
    ("emission", -1),
    ("stake", [1, 2]),
    ("stake", [1, 2, -3]),
    ("stake", [1.5, 2, 3]),
    ("stake", [1 << 62, 1 << 62, 1 << 62]),
    ("stake", [1 << 70, 0, 0]),
    ("stake", [[1], [2], [3, 4]]),
    ("validator_permit", [1, 1, 0]),
    ("validator_permit", [True]),
    ("last_update", [0, 0, -1]),
    ("block_at_registration", ["a", "b", "c"]),
    ("commit_blocks", [1, 2]),
    ("commit_blocks", []),
    ("weights_u16", [[], []]),
    ("weights_u16", [[(1, 65536)], [], []]),
    ("weights_u16", [[(1, -1)], [], []]),
    ("weights_u16", [[(3, 1)], [], []]),
    ("weights_u16", [[(2, 1), (1, 1)], [], []]),
    ("weights_u16", [[(1, 1), (1, 2)], [], []]),
    ("weights_u16", [[(1, 2, 3), (4,)], [], []]),
    ("weights_u16", [[(1, 2.5)], [], []]),
    ("weights_u16", [[3, 4], [], []]),
    ("bonds_u16", [[(0, 1 << 70)], [], []]),
    ("bonds_u16", SparseRows(np.array([0, 1, 1, 1]), np.array([0], np.uint16), np.array([1], np.int64))),
    ("bonds_u16", SparseRows(np.array([0, 2, 1, 1]), np.array([0], np.uint16), np.array([1], np.uint16))),
    ("bonds_u16", SparseRows(np.array([1, 1, 1, 1]), np.array([0], np.uint16), np.array([1], np.uint16))),
    ("bonds_u16", DenseRows(2, np.array([0]), np.zeros((1, 2), np.uint16), np.array([], np.int64))),
    ("bonds_u16", DenseRows(3, np.array([0]), np.zeros((1, 3), np.int64), np.array([], np.int64))),
    ("bonds_u16", DenseRows(3, np.array([0, 1]), np.zeros((1, 3), np.uint16), np.array([], np.int64))),
    ("bonds_u16", DenseRows(3, np.array([1, 0]), np.zeros((2, 3), np.uint16), np.array([], np.int64))),
    ("bonds_u16", DenseRows(3, np.array([3]), np.zeros((1, 3), np.uint16), np.array([], np.int64))),
    ("bonds_u16", DenseRows(3, np.array([0]), np.zeros((1, 3), np.uint16), np.array([3]))),
    ("kappa_u16", 65536),
    ("bonds_penalty_u16", -1),
    ("bonds_moving_average_ppm", 1_000_001),
    ("alpha_low_u16", 60_000),
    ("alpha_sigmoid_steepness", 40_000),
    ("yuma_version", 2),
    ("owner_uid", 3),
    ("min_stake", -1),
    ("max_allowed_validators", -1),
]


@pytest.mark.parametrize(("name", "value"), BROKEN, ids=[f"{name}-{at}" for at, (name, _) in enumerate(BROKEN)])
def test_contradicting_inputs_are_refused(name: str, value: Any) -> None:
    """Each input out of its range is refused by name, with what was expected and what came."""
    with pytest.raises(InvalidEpochInput) as refusal:
        run_epoch(valid_inputs() | {name: value})
    broken: RuleBroken = refusal.value
    assert name in broken.rule or name == "n" or "sum of stakes" in broken.rule
    assert str(broken.expected) in str(broken)
    assert str(broken.actual) in str(broken)


foreign = st.recursive(
    st.one_of(st.integers(-(1 << 70), 1 << 70), st.booleans(), st.none(), st.floats(), st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["stake", "validator_permit", "last_update", "commit_blocks", "weights_u16", "bonds_u16"]),
    st.lists(foreign, min_size=3, max_size=3),
)
def test_foreign_vectors_give_an_epoch_or_a_typed_refusal(name: str, value: list[Any]) -> None:
    """Whatever stands where numbers should, nothing but a typed refusal comes out, or a whole result."""
    try:
        result = run_epoch(valid_inputs() | {name: value})
    except InvalidEpochInput:
        return
    assert sum(result.emission.tolist()) <= 1000
