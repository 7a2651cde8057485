"""Takes one reward apart: whose weights, how clipped, what rank, which bonds, what payment, and what without each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .epoch_inputs import EpochInputs
from .epoch_result import EpochResult
from .errors import InvalidEpochInput
from .fixedpoint import Bits, multiply_shares, normalize
from .yuma import epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """What one validator did to one uid's reward. ``*_bits`` are fixed-point shares (1.0 is 2**32).

    ``rank_bits`` is its active stake times the clipped weight; a uid's rank is the sum of these. ``without_*`` is what
    the uid would have got, had this validator held no stake and no permit.
    """

    uid: int
    stake_bits: int
    weight_bits: int
    clipped_bits: int
    rank_bits: int
    bond_bits: int
    without_incentive_bits: int
    without_emission: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A bond that the uid, as a validator, holds in a miner, and its part of the dividends, before these sum to 1."""

    uid: int
    bond_bits: int
    incentive_bits: int
    dividend_bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """One uid's reward in one epoch; ``ratings`` by rising uid, ``holdings`` largest part first."""

    uid: int
    result: EpochResult
    ratings: Sequence[Rating]
    holdings: Sequence[Holding]


def explain_reward(inputs: EpochInputs, uid: int) -> Reward:
    """Run the epoch again and look at ``uid``; then once more for each validator that rated it, without that one.

    Raises `InvalidEpochInput` if the uid is not registered.
    """
    if not 0 <= uid < inputs.n:
        raise InvalidEpochInput("uid of the reward", f"0..{inputs.n - 1}", uid)
    result = epoch(inputs)
    return Reward(uid=uid, result=result, ratings=_ratings(inputs, result, uid), holdings=_holdings(result, uid))


def without_validator(inputs: EpochInputs, uid: int) -> EpochInputs:
    """The same epoch, had ``uid`` held no stake and no permit."""
    stake = [0 if one == uid else int(held) for one, held in enumerate(inputs.stake)]
    permit = [bool(held) and one != uid for one, held in enumerate(inputs.validator_permit)]
    return replace(inputs, stake=stake, validator_permit=permit)


def _ratings(inputs: EpochInputs, result: EpochResult, uid: int) -> list[Rating]:
    pairs, here = result.pairs, slice(uid, uid + 1)
    weights, clipped = pairs.weights(here)[0], pairs.clipped_weights(here)[0]
    bonds, ranks = _bond_shares(result, here)[0], multiply_shares(pairs.voting_stake, clipped)
    ratings = []
    for row in np.argsort(pairs.row_uids).tolist():
        if not (weights[row] or bonds[row]):
            continue
        validator = int(pairs.row_uids[row])
        other = epoch(without_validator(inputs, validator))
        rating = Rating(
            uid=validator,
            stake_bits=int(pairs.voting_stake[row]),
            weight_bits=int(weights[row]),
            clipped_bits=int(clipped[row]),
            rank_bits=int(ranks[row]),
            bond_bits=int(bonds[row]),
            without_incentive_bits=int(other.incentive_bits[uid]),
            without_emission=int(other.emission[uid]),
        )
        ratings.append(rating)
    return ratings


def _holdings(result: EpochResult, uid: int) -> list[Holding]:
    rows = np.flatnonzero(result.pairs.row_uids == uid)
    if not rows.size:
        return []
    bonds = _bond_shares(result, slice(None))[:, rows[0]]
    parts = multiply_shares(result.incentive_bits, bonds)
    held = np.flatnonzero(bonds)
    return [
        Holding(
            uid=int(miner),
            bond_bits=int(bonds[miner]),
            incentive_bits=int(result.incentive_bits[miner]),
            dividend_bits=int(parts[miner]),
        )
        for miner in held[np.argsort(-parts[held], kind="stable")]
    ]


def _bond_shares(result: EpochResult, miners: slice) -> Bits:
    """Bonds as shares of each miner's whole, which is what pays, under either rule."""
    bonds = result.pairs.bonds(miners)
    return normalize(bonds, axis=1) if result.pairs.rule.is_yuma_3 else bonds
