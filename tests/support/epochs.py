"""Epochs as the published vectors write them: dicts in, dicts out."""

from __future__ import annotations

from typing import Any

from moed.consensus.epoch_form import as_plain as as_dict
from moed.consensus.yuma import EpochInputs, EpochResult, epoch

__all__ = ["as_dict", "run_epoch"]


def run_epoch(given: dict[str, Any]) -> EpochResult:
    """The product's epoch on an ``epoch_bits`` input, whose values need not have the types that a file must have."""
    return epoch(EpochInputs(**given))
