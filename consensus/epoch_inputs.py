"""What an epoch is computed from: one record in the ledger's terms, and its checked arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .dense_rows import DenseRows
from .errors import InvalidEpochInput
from .fixedpoint import MAX_BITS, U16_MAX, Bits
from .sparse_rows import UIDS_MAX, SparseRows

Flags = npt.NDArray[np.bool_]
Integers = Sequence[int] | npt.NDArray[np.int64]
Rows = Sequence[Iterable[Sequence[int]]] | SparseRows | DenseRows

NO_COMMIT = MAX_BITS
"""The commit block of a uid that has no unexpired commit."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EpochInputs:
    """Everything that one epoch depends on; the names are those of the published ``epoch_bits`` vectors.

    Vectors have one entry per uid, 0 to n - 1; every uid may be validator and miner at once. Plain sequences and
    numpy arrays are both taken; ``epoch`` checks them.

    Amounts and blocks: ``stake``, ``min_stake`` and ``emission`` are in ledger units, the sum of stakes under 2**63;
    ``block`` is the height at which the epoch runs, ``last_tempo_block`` the first height after the epoch before it
    (or ``block`` minus tempo if there was none), ``activity_cutoff`` a number of blocks. ``last_update`` is the block
    of a uid's latest weights, ``block_at_registration`` that of its latest registration. ``commit_blocks`` is None
    where weights are not committed first, else per uid the block of its earliest unexpired commit, None or
    ``NO_COMMIT`` for none.

    Rows: ``weights_u16`` and ``bonds_u16`` hold for each uid its (uid, u16) pairs in ascending order, explicit zeros
    kept; ``bonds_u16`` is ``stored_bonds_u16`` of the epoch before (empty rows at first). For large networks pass
    ``SparseRows`` or ``DenseRows``, which are arrays already. ``validator_permit`` is ``new_validator_permit`` of the
    epoch before.

    Rules: ``yuma_version`` 1 keeps bonds as shares of each miner (classic), 3 keeps one bond in [0, 1] per pair.
    ``*_u16`` parameters are fractions of 65535: ``kappa_u16`` the stake that decides a weight, ``bonds_penalty_u16``
    how far bonds feel clipping. ``bonds_moving_average_ppm`` is the share of the old bonds kept, in millionths.
    ``liquid_alpha`` (version 3) gives each pair its own rate between ``alpha_low_u16`` and ``alpha_high_u16`` along a
    sigmoid of ``alpha_sigmoid_steepness`` hundredths; ``classic_liquid_alpha`` (version 1) is its older form, one
    rate per miner. ``owner_uid`` keeps its permit, its weight on itself, and its stake under ``min_stake``.
    """

    n: int
    block: int
    last_tempo_block: int
    emission: int
    stake: Integers
    validator_permit: Sequence[bool] | Flags
    last_update: Integers
    block_at_registration: Integers
    weights_u16: Rows
    bonds_u16: Rows
    commit_blocks: Sequence[int | None] | npt.NDArray[np.int64] | None = None
    yuma_version: int = 1
    liquid_alpha: bool = False
    classic_liquid_alpha: bool = False
    kappa_u16: int = 32_767
    bonds_penalty_u16: int = U16_MAX
    bonds_moving_average_ppm: int = 900_000
    alpha_low_u16: int = 45_875
    alpha_high_u16: int = 58_982
    alpha_sigmoid_steepness: int = 1_000
    activity_cutoff: int = 5_000
    owner_uid: int | None = None
    min_stake: int = 0
    max_allowed_validators: int = 128


@dataclass(frozen=True, slots=True, eq=False)
class EpochArrays:
    """The vectors and rows of ``EpochInputs``, checked: int64 and bool [n], and two sets of n rows."""

    stake: Bits
    permit: Flags
    last_update: Bits
    registered: Bits
    commit: Bits
    weights: SparseRows | DenseRows
    bonds: SparseRows | DenseRows


def check_inputs(inputs: EpochInputs) -> EpochArrays:
    """Turn inputs into arrays, or raise InvalidEpochInput with the value that is out of its range."""
    _check_scalars(inputs)
    n = inputs.n
    stake = _vector("stake", inputs.stake, n)
    # a float's sum is enough to see that the exact one may not fit
    if float(stake.sum(dtype=np.float64)) >= float(MAX_BITS):
        raise InvalidEpochInput("the sum of stakes fits 63 bits", MAX_BITS, sum(stake.tolist()))
    permit = _array("validator_permit", inputs.validator_permit, n)
    if permit.dtype != np.bool_:
        raise InvalidEpochInput("validator_permit holds flags", "bool", permit.dtype)
    commits = [None] * n if inputs.commit_blocks is None else inputs.commit_blocks
    commit = [NO_COMMIT if block is None else block for block in commits]
    return EpochArrays(
        stake=stake,
        permit=permit,
        last_update=_vector("last_update", inputs.last_update, n),
        registered=_vector("block_at_registration", inputs.block_at_registration, n),
        commit=_vector("commit_blocks", commit, n),
        weights=_rows("weights_u16", inputs.weights_u16, n),
        bonds=_rows("bonds_u16", inputs.bonds_u16, n),
    )


def _check_scalars(inputs: EpochInputs) -> None:
    ranges = {
        "n": (1, UIDS_MAX),
        "block": (0, MAX_BITS),
        "last_tempo_block": (0, MAX_BITS),
        "emission": (0, MAX_BITS),
        "kappa_u16": (0, U16_MAX),
        "bonds_penalty_u16": (0, U16_MAX),
        "bonds_moving_average_ppm": (0, 1_000_000),
        "alpha_low_u16": (0, inputs.alpha_high_u16),
        "alpha_high_u16": (0, U16_MAX),
        "alpha_sigmoid_steepness": (-(1 << 15), (1 << 15) - 1),
        "activity_cutoff": (0, MAX_BITS),
        "min_stake": (0, MAX_BITS),
        "max_allowed_validators": (0, U16_MAX),
    }
    for name, (low, high) in ranges.items():
        value = getattr(inputs, name)
        if not low <= value <= high:
            raise InvalidEpochInput(f"{name} is in its range", f"{low}..{high}", value)
    if inputs.yuma_version not in (1, 3):
        raise InvalidEpochInput("yuma_version is one that the chain knows", "1 or 3", inputs.yuma_version)
    if inputs.owner_uid is not None and not 0 <= inputs.owner_uid < inputs.n:
        raise InvalidEpochInput("owner_uid is registered", f"0..{inputs.n - 1}", inputs.owner_uid)


def _array(name: str, values: Any, n: int) -> npt.NDArray[Any]:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidEpochInput(f"{name} is a vector", n, str(error)) from error
    if array.shape != (n,):
        raise InvalidEpochInput(f"{name} has an entry for each uid", (n,), array.shape)
    return array


def _vector(name: str, values: Integers, n: int) -> Bits:
    """Non-negative integers under 2**63 as int64 [n]."""
    array = _array(name, values, n)
    if array.dtype.kind not in "iu":
        raise InvalidEpochInput(f"{name} holds integers of 64 bits", "int64", array.dtype)
    if not 0 <= int(array.min()) <= int(array.max()) <= MAX_BITS:
        outside = int(array.min()) if int(array.min()) < 0 else int(array.max())
        raise InvalidEpochInput(f"{name} is in its range", f"0..{MAX_BITS}", outside)
    return array.astype(np.int64)


def _rows(name: str, rows: Rows, n: int) -> SparseRows | DenseRows:
    given = rows if isinstance(rows, SparseRows | DenseRows) else SparseRows.from_rows(rows, name)
    return given.checked(n, name)
