"""Epochs as the published vectors write them: dicts in, dicts out."""

from __future__ import annotations

from typing import Any

from moed.consensus.yuma import EpochInputs, EpochResult, epoch

VECTORS = (
    "active",
    "stake_bits",
    "active_stake_bits",
    "new_validator_permit",
    "consensus_bits",
    "validator_trust_bits",
    "ranks_bits",
    "incentive_bits",
    "dividends_bits",
    "server_emission",
    "validator_emission",
    "emission",
)
ROWS = ("ema_bonds_bits", "stored_bonds_u16")


def run_epoch(given: dict[str, Any]) -> EpochResult:
    """The product's epoch on an ``epoch_bits`` input."""
    return epoch(EpochInputs(**given))


def as_dict(result: EpochResult) -> dict[str, Any]:
    """A result with the names and plain types of an ``epoch_bits`` expectation."""
    vectors = {name: getattr(result, name).tolist() for name in VECTORS}
    rows = {name: [[list(pair) for pair in row] for row in getattr(result, name).to_lists()] for name in ROWS}
    return vectors | rows
