"""Epochs as plain objects: what is no sequence of epochs is refused before any is run."""

from __future__ import annotations

from typing import Any

import pytest

from moed.consensus.epoch_form import decode_inputs, inputs_of, run_sequence
from moed.consensus.errors import InvalidEpochInput

EPOCH: dict[str, Any] = {
    "stake": [60, 40, 0],
    "validator_permit": [True, True, False],
    "last_update": [90, 90, 0],
    "block_at_registration": [0, 0, 0],
    "weights_u16": [[[2, 65_535]], [[2, 65_535]], []],
}
SEQUENCE: dict[str, Any] = {
    "params": {"n": 3, "emission": 1_000_000, "tempo": 36},
    "initial": EPOCH,
    "epochs": [{"block": 100}, {"block": 136, "weights_u16": [[], [[2, 1]], []]}],
}


def test_bonds_carry_over_and_an_epoch_may_override() -> None:
    """The second epoch starts from the bonds of the first, though its first validator rates nobody any more."""
    first, second = run_sequence(SEQUENCE)
    assert first.stored_bonds_u16.row(0)
    (alone,) = run_sequence({**SEQUENCE, "epochs": SEQUENCE["epochs"][1:]})
    assert second.stored_bonds_u16.row(0) != alone.stored_bonds_u16.row(0) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": {}},
        {"params": None},
        {"params": {"n": 0}},
        {"params": {"n": 1 << 15}},
        {"params": {"n": "three"}},
        {"params": {}},
        {"epochs": [{"block": "late"}]},
        {"epochs": [{"block": 100, "typo": 1}]},
    ],
    ids=repr,
)
def test_what_is_no_sequence_is_refused(changes: dict[str, Any]) -> None:
    """By one typed error that names it; so is one of its epochs that is none."""
    with pytest.raises(InvalidEpochInput):
        list(run_sequence({**SEQUENCE, **changes}))


def test_foreign_inputs_are_refused() -> None:
    """What was kept of an epoch is read again only if it is one."""
    for data in (b"", b"[]", b"{}", b'{"n": 1'):
        with pytest.raises(InvalidEpochInput):
            decode_inputs(data)
    with pytest.raises(InvalidEpochInput):
        inputs_of({"n": "many"})
