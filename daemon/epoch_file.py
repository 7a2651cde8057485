"""One epoch from a file, for whoever wants to check a case by hand: read it, run it, show it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moed.consensus.epoch_form import as_plain, inputs_of, run_sequence
from moed.consensus.epoch_result import EpochResult
from moed.consensus.errors import InvalidEpochInput
from moed.consensus.fixedpoint import ONE
from moed.consensus.yuma import epoch

from .errors import ConfigError
from .tables import Table, percent

MAX_FILE_BYTES = 1 << 28
"""Room for a million weights with their bonds, several times over."""
_REMEDY = "give one `input` object of the epoch_bits layout, or an epoch_sequence file"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a file: one result for an ``epoch_bits`` input, one for each epoch of an ``epoch_sequence``."""

    results: list[EpochResult]
    is_sequence: bool

    def plain(self) -> dict[str, Any]:
        """The ``expected`` keys of an epoch; a sequence has a list of them under ``epochs``."""
        results = [as_plain(result) for result in self.results]
        return {"epochs": results} if self.is_sequence else results[0]

    def tables(self) -> list[Table]:
        """Who was paid what, uid by uid, a table for each epoch."""
        return [_table(result) for result in self.results]


def run_file(path: Path) -> Outcome:
    """Run what the file states. Raises `ConfigError` saying what is wrong with it."""
    given = _read(path)
    try:
        if "epochs" in given:
            return Outcome(list(run_sequence(given)), is_sequence=True)
        return Outcome([epoch(inputs_of(given))], is_sequence=False)
    except InvalidEpochInput as error:
        raise ConfigError(f"{path}: {error}", _REMEDY) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "give a file that is there") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes", _REMEDY)
    try:
        given = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}", _REMEDY) from error
    if not isinstance(given, dict):
        raise ConfigError(f"{path} holds no object", _REMEDY)
    return given


def _table(result: EpochResult) -> Table:
    def share(bits: Any) -> str:
        return percent(int(bits) / ONE)

    rows = [
        [
            str(uid),
            share(result.stake_bits[uid]),
            "yes" if result.new_validator_permit[uid] else "-",
            share(result.consensus_bits[uid]),
            share(result.incentive_bits[uid]),
            share(result.dividends_bits[uid]),
            str(int(result.emission[uid])),
        ]
        for uid in range(result.inputs.n)
    ]
    heads = (">uid", ">stake", "permit", ">consensus", ">incentive", ">dividends", ">emission")
    return Table(f"Epoch at block {result.inputs.block}", heads, rows)
