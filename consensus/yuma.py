"""One epoch of Yuma consensus: from stakes, weights and bonds to who is paid what.

The rules are those of the reference chain's epoch as it runs there (the sparse variant): opentensor/subtensor,
pallets/subtensor/src/epoch, commit 14bc6f9f, bit for bit. Everything is integer, so every node gets the same result.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from .bonds import BondRule, U16Matrix
from .dense_rows import DenseRows
from .epoch_inputs import EpochArrays, EpochInputs, Flags, check_inputs
from .epoch_result import EpochResult
from .errors import InvalidEpochInput
from .fixedpoint import FRACTION_BITS, U16_MAX, Bits, divide, multiply, multiply_shares, normalize, ratio
from .median import weighted_median
from .pairs import MapTiles, Pairs, tiles, transposed

__all__ = ["EpochInputs", "EpochResult", "epoch", "upscale_weights"]


def epoch(inputs: EpochInputs, *, map_tiles: MapTiles = map) -> EpochResult:
    """Run one epoch. Pure: the same inputs give the same bits on every machine.

    ``map_tiles`` may run the tiles of the matrices at the same time, each of which writes to its own part; numpy lets
    go of the interpreter meanwhile. What is summed over them are integers, so order does not matter.
    Raises InvalidEpochInput, with the value in question, for inputs that contradict each other.
    """
    arrays = check_inputs(inputs)

    active = arrays.last_update >= inputs.block - inputs.activity_cutoff
    stake = _stake_shares(inputs, arrays)
    permit, new_permit = _permits(inputs, arrays, stake)
    active_stake = normalize(np.where(active & permit, stake, 0))

    row_uids = _row_uids(arrays, permit, active_stake)
    voting_stake = active_stake[row_uids]
    submitted, explicit_zeros = _submitted_weights(inputs, arrays, permit, row_uids)
    votes, vote_sums = transposed(submitted, map_tiles), np.maximum(submitted.sum(axis=1, dtype=np.int64), 1)
    kappa = ratio(inputs.kappa_u16, U16_MAX)
    consensus, row_trust, ranks = _agree(votes, vote_sums, voting_stake, kappa, map_tiles)
    incentive = normalize(ranks)

    pairs = Pairs(
        row_uids=row_uids,
        votes_u16=votes,
        vote_sums=vote_sums,
        explicit_zeros=transposed(explicit_zeros, map_tiles),
        kept_bonds_u16=transposed(_kept_bonds(inputs, arrays, row_uids), map_tiles),
        consensus=consensus,
        voting_stake=voting_stake,
        rule=BondRule.of(inputs),
    )
    row_dividends, stored_bonds = _bonds_and_dividends(pairs, incentive, new_permit, map_tiles)
    dividends = _per_uid(row_dividends, row_uids, inputs.n)

    server_share, validator_share, combined_share = _emission_shares(incentive, dividends, active_stake, stake)
    amount = np.full(1, inputs.emission, np.int64)

    return EpochResult(
        inputs=inputs,
        active=active,
        stake_bits=stake,
        active_stake_bits=active_stake,
        new_validator_permit=new_permit,
        consensus_bits=consensus,
        validator_trust_bits=_per_uid(row_trust, row_uids, inputs.n),
        ranks_bits=ranks,
        incentive_bits=incentive,
        dividends_bits=dividends,
        server_share_bits=server_share,
        validator_share_bits=validator_share,
        combined_share_bits=combined_share,
        is_emergency=not (incentive.any() or dividends.any()),
        server_emission=multiply(server_share, amount),
        validator_emission=multiply(validator_share, amount),
        emission=multiply(combined_share, amount),
        pairs=pairs,
        stored_bonds_u16=stored_bonds,
    )


def upscale_weights(weights: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(uid, weight) pairs of integer weights of any size as an epoch takes them: ascending uids, the largest 65535.

    The others keep their proportion, rounded to nearest, half away from zero. All zeros stay zeros. Raises
    InvalidEpochInput for a negative weight.
    """
    row = sorted(weights)
    values = [weight for _, weight in row]
    largest = max(values, default=0)
    if min(values, default=0) < 0:
        raise InvalidEpochInput("weights are not negative", "0 or more", min(values))
    if largest == 0:
        return row
    return [(uid, (2 * weight * U16_MAX + largest) // (2 * largest)) for uid, weight in row]


# --- stake and permits ----------------------------------------------------------------------------------------


def _stake_shares(inputs: EpochInputs, arrays: EpochArrays) -> Bits:
    """Each uid's share of the stake that counts; a share under 2**-32 is 0.

    A stake under the minimum does not count, the owner's excepted. Python integers: stake << 32 exceeds 64 bits.
    """
    counted = np.where(arrays.stake < inputs.min_stake, 0, arrays.stake)
    if inputs.owner_uid is not None:
        counted[inputs.owner_uid] = arrays.stake[inputs.owner_uid]
    whole = sum(counted.tolist())
    shares = [(stake << FRACTION_BITS) // whole if whole else 0 for stake in counted.tolist()]
    return np.array(shares, np.int64)


def _permits(inputs: EpochInputs, arrays: EpochArrays, stake: Bits) -> tuple[Flags, Flags]:
    """The permits in force (drawn by the epoch before), and those for the next epoch.

    A new permit goes to the largest non-zero shares; among equal ones the higher uid wins. The owner has one always.
    """
    permit = arrays.permit.copy()
    new_permit = stake > 0
    ascending = np.argsort(stake, kind="stable")
    new_permit[ascending[: max(0, inputs.n - inputs.max_allowed_validators)]] = False
    if inputs.owner_uid is not None:
        permit[inputs.owner_uid] = new_permit[inputs.owner_uid] = True
    return permit, new_permit


def _row_uids(arrays: EpochArrays, permit: Flags, active_stake: Bits) -> npt.NDArray[np.int64]:
    """The uids that have a say: permitted, or holding bonds; those with active stake first, as a slice of voters."""
    uids = np.flatnonzero(permit | (arrays.bonds.occupied))
    return uids[np.argsort(active_stake[uids] == 0, kind="stable")]


def _per_uid(values: Bits, row_uids: npt.NDArray[np.int64], n: int) -> Bits:
    result = np.zeros(n, np.int64)
    result[row_uids] = values
    return result


# --- weights and consensus ------------------------------------------------------------------------------------


def _submitted_weights(
    inputs: EpochInputs, arrays: EpochArrays, permit: Flags, row_uids: npt.NDArray[np.int64]
) -> tuple[U16Matrix, Flags]:
    """The weights that count, as submitted, and where an explicit zero counts: both [R, n].

    The zeros are told apart from missing entries only where that matters, with liquid alpha; else the array is empty.
    """
    submitted: U16Matrix = _valid(arrays.weights.dense(row_uids, inputs.n), inputs, arrays, permit, row_uids)
    if not (inputs.yuma_version == 3 and inputs.liquid_alpha):
        return submitted, np.zeros((0, inputs.n), np.bool_)
    zeros = arrays.weights.only_zeros().dense(row_uids, inputs.n)
    return submitted, _valid(zeros, inputs, arrays, permit, row_uids)


def _valid(
    matrix: npt.NDArray[Any], inputs: EpochInputs, arrays: EpochArrays, permit: Flags, row_uids: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """``matrix`` [R, n] with 0 for what does not count: rows without permit, oneself, uids registered since.

    "Since" is since the weights were set or, where they were committed first and that came earlier, since the commit:
    weights committed for the uid's former owner must not fall to its new one.
    """
    if not matrix.flags.writeable:
        matrix = matrix.copy()
    matrix[~permit[row_uids]] = 0
    is_other = row_uids != (-1 if inputs.owner_uid is None else inputs.owner_uid)
    matrix[np.flatnonzero(is_other), row_uids[is_other]] = 0
    updated, commit = arrays.last_update[row_uids], arrays.commit[row_uids]
    first_unknown = np.where(commit < updated, commit + 1, updated)
    recent = np.flatnonzero(arrays.registered >= first_unknown.min(initial=inputs.block + 1))
    if recent.size:
        part = matrix[:, recent]
        part[arrays.registered[recent] >= first_unknown[:, None]] = 0
        matrix[:, recent] = part
    return matrix


def _agree(
    votes: U16Matrix, vote_sums: Bits, voting_stake: Bits, kappa: int, map_tiles: MapTiles
) -> tuple[Bits, Bits, Bits]:
    """Consensus per miner, trust per row, rank per miner, from ``votes`` [n, R] of which each row's share counts.

    Consensus is the stake-weighted median of a miner's weights; weights over it are cut to it, none is raised.
    Trust is what is left of a validator's weights, rank the active stake behind a miner's clipped weights.
    """
    n, rows = votes.shape
    voters = int(np.count_nonzero(voting_stake))
    median_stake = normalize(voting_stake[:voters])
    consensus, ranks = np.empty(n, np.int64), np.empty(n, np.int64)

    def agree_on(tile: slice) -> Bits:
        weights = divide(votes[tile], vote_sums)
        consensus[tile] = weighted_median(weights[:, :voters], median_stake, kappa)
        clipped = np.minimum(weights, consensus[tile, None], out=weights)
        ranks[tile] = multiply_shares(voting_stake, clipped).sum(axis=1)
        trust: Bits = clipped.sum(axis=0)
        return trust

    trust = sum(map_tiles(agree_on, tiles(n, rows)), np.zeros(rows, np.int64))
    return consensus, trust, ranks


# --- bonds, dividends, emission -------------------------------------------------------------------------------


def _kept_bonds(inputs: EpochInputs, arrays: EpochArrays, row_uids: npt.NDArray[np.int64]) -> U16Matrix:
    """The stored bonds [R, n], without those to uids registered since the epoch before."""
    bonds: U16Matrix = arrays.bonds.dense(row_uids, inputs.n)
    recent = arrays.registered >= inputs.last_tempo_block
    if recent.any():
        bonds = np.where(recent, np.uint16(0), bonds)
    return bonds


def _bonds_and_dividends(
    pairs: Pairs, incentive: Bits, new_permit: Flags, map_tiles: MapTiles
) -> tuple[Bits, DenseRows]:
    """Each row's share of the dividends [R], and the bonds as the next epoch reads them.

    Dividends are the incentive of the miners that a validator holds bonds in. Classic bonds already grew with stake;
    in Yuma 3 stake enters here. Stored are u16 rows in uid order, of uids that keep or gain a permit; a bond that
    rounds to 0 stays as an entry. One pass over the miners, since bonds of all pairs at once leave the cache.
    """
    n, rows = pairs.votes_u16.shape
    stored = np.empty((n, rows), np.uint16)
    rounded_away: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []

    def reward(tile: slice) -> Bits:
        bonds = pairs.bonds(tile)
        rounded = stored[tile] = pairs.rounded_for_storage(bonds)
        zeros = np.flatnonzero(rounded == 0)
        lost = zeros[bonds.ravel()[zeros] > 0]
        if lost.size:
            rounded_away.append((lost % rows, lost // rows + tile.start))
        shares = normalize(bonds, axis=1) if pairs.rule.is_yuma_3 else bonds
        held: Bits = multiply_shares(incentive[tile, None], shares).sum(axis=0)
        return held

    held = sum(map_tiles(reward, tiles(n, rows)), np.zeros(rows, np.int64))
    dividends = normalize(multiply_shares(held, pairs.voting_stake) if pairs.rule.is_yuma_3 else held)
    zeros = np.sort(np.concatenate([np.zeros(0, np.int64), *(row * n + miner for row, miner in rounded_away)]))
    stored_rows = DenseRows(n, pairs.row_uids, transposed(stored, map_tiles), zeros)
    by_uid = np.argsort(pairs.row_uids)
    return dividends, stored_rows.chosen(by_uid[new_permit[pairs.row_uids[by_uid]]])


def _emission_shares(incentive: Bits, dividends: Bits, active_stake: Bits, stake: Bits) -> tuple[Bits, Bits, Bits]:
    """Servers', validators' and combined shares of the emission; each of the first two sums to about one half.

    Where nobody is ranked (no weights, or only outdated ones) stake is paid: active stake, or all if none is active.
    """
    combined = incentive + dividends
    whole = np.maximum(combined.sum(keepdims=True), 1)
    if combined.any():
        return divide(incentive, whole), divide(dividends, whole), divide(combined, whole)
    fallback = active_stake if active_stake.any() else stake
    return incentive, fallback, fallback
