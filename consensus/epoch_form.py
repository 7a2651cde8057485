"""Epochs as published vectors write them: plain objects of JSON in, plain objects out.

Two layouts. ``epoch_bits``: one object with the names of `EpochInputs`. ``epoch_sequence``: ``params`` for all epochs,
an ``initial`` state, and ``epochs`` that may each override any of its keys; the stored bonds of one are the next one's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from .epoch_inputs import EpochInputs
from .epoch_result import EpochResult
from .errors import InvalidEpochInput
from .yuma import epoch

_VECTORS = (
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
_ROWS = ("ema_bonds_bits", "stored_bonds_u16")
_NOTES = ("server_uids", "expected")  # what a vector says beside its inputs

Row = list[tuple[int, int]]


class _EpochBits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The types of an ``epoch_bits`` input; ranges, lengths and defaults are the epoch's own."""

    n: int
    block: int
    last_tempo_block: int
    emission: int
    stake: list[int]
    validator_permit: list[bool]
    last_update: list[int]
    block_at_registration: list[int]
    weights_u16: list[Row]
    bonds_u16: list[Row]
    commit_blocks: list[int | None] | UnsetType | None = UNSET
    yuma_version: int | UnsetType = UNSET
    liquid_alpha: bool | UnsetType = UNSET
    classic_liquid_alpha: bool | UnsetType = UNSET
    kappa_u16: int | UnsetType = UNSET
    bonds_penalty_u16: int | UnsetType = UNSET
    bonds_moving_average_ppm: int | UnsetType = UNSET
    alpha_low_u16: int | UnsetType = UNSET
    alpha_high_u16: int | UnsetType = UNSET
    alpha_sigmoid_steepness: int | UnsetType = UNSET
    activity_cutoff: int | UnsetType = UNSET
    owner_uid: int | UnsetType | None = UNSET
    min_stake: int | UnsetType = UNSET
    max_allowed_validators: int | UnsetType = UNSET


class _Sequence(msgspec.Struct, frozen=True, kw_only=True):
    """The frame of an ``epoch_sequence``; what else stands in the file describes it."""

    params: dict[str, Any]
    initial: dict[str, Any]
    epochs: list[dict[str, Any]]


def inputs_of(given: Mapping[str, Any]) -> EpochInputs:
    """The inputs that an ``epoch_bits`` object states. Raises `InvalidEpochInput` naming the field."""
    try:
        form = msgspec.convert(dict(given), _EpochBits, strict=True)
    except msgspec.ValidationError as error:
        raise InvalidEpochInput("input of an epoch", "an epoch_bits object", error) from error
    fields = {name: getattr(form, name) for name in form.__struct_fields__}
    return EpochInputs(**{name: value for name, value in fields.items() if value is not UNSET})


def encode_inputs(inputs: EpochInputs) -> bytes:
    """Inputs from the ledger as an ``epoch_bits`` object in JSON; `decode_inputs` reads it back."""
    return msgspec.json.encode({name: getattr(inputs, name) for name in _EpochBits.__struct_fields__})


def decode_inputs(data: bytes) -> EpochInputs:
    """What `encode_inputs` wrote. Raises `InvalidEpochInput`."""
    try:
        return inputs_of(msgspec.json.decode(data, type=dict[str, Any]))
    except msgspec.DecodeError as error:
        raise InvalidEpochInput("input of an epoch", "an object in JSON", error) from error


def run_sequence(vector: Mapping[str, Any]) -> Iterator[EpochResult]:
    """Run the epochs of an ``epoch_sequence`` one by one; permits are the vector's, bonds carry over.

    Raises `InvalidEpochInput`.
    """
    try:
        sequence = msgspec.convert(dict(vector), _Sequence, strict=True)
    except msgspec.ValidationError as error:
        raise InvalidEpochInput("sequence of epochs", "params, initial and epochs", error) from error
    state: dict[str, Any] = {"bonds_u16": [[] for _ in range(_length(sequence))], **sequence.initial}
    for step in sequence.epochs:
        given = {**sequence.params, **state, **step}
        for name in _NOTES:
            given.pop(name, None)
        tempo = given.pop("tempo", None)
        if "last_tempo_block" not in given and isinstance(tempo, int) and isinstance(given.get("block"), int):
            given["last_tempo_block"] = max(0, given["block"] - tempo)
        result = epoch(inputs_of(given))
        state["bonds_u16"] = result.stored_bonds_u16.to_lists()
        yield result


def _length(sequence: _Sequence) -> int:
    n = sequence.params.get("n")
    if not isinstance(n, int) or not 0 < n < 1 << 15:
        raise InvalidEpochInput("n among the params of a sequence", "1..32767", n)
    return n


def as_plain(result: EpochResult) -> dict[str, Any]:
    """A result with the names and plain types of an ``epoch_bits`` expectation."""
    vectors = {name: getattr(result, name).tolist() for name in _VECTORS}
    rows = {name: [[list(pair) for pair in row] for row in getattr(result, name).to_lists()] for name in _ROWS}
    return vectors | rows
