"""Epochs as the published vectors write them: dicts in, dicts out."""

from __future__ import annotations

from typing import Any

from moed.consensus.epoch_form import as_plain as as_dict
from moed.consensus.yuma import EpochInputs, EpochResult, epoch

__all__ = ["as_dict", "run_epoch", "two_validators_two_miners"]


def two_validators_two_miners() -> EpochInputs:
    """Uids 0 and 1 rate 2 and 3: the larger prefers 2, and the smaller pushes 3 over what the larger supports."""
    return EpochInputs(
        n=4,
        block=100,
        last_tempo_block=64,
        emission=1_000_000_000,
        stake=[60, 40, 0, 0],
        validator_permit=[True, True, False, False],
        last_update=[90, 90, 0, 0],
        block_at_registration=[0, 0, 0, 0],
        weights_u16=[[(2, 65_535), (3, 21_845)], [(3, 65_535)], [], []],
        bonds_u16=[[], [], [], []],
    )


def run_epoch(given: dict[str, Any]) -> EpochResult:
    """The product's epoch on an ``epoch_bits`` input, whose values need not have the types that a file must have."""
    return epoch(EpochInputs(**given))
