"""The stake-weighted median of each miner's weights: the most that kappa of the stake stands behind."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .fixedpoint import ONE, Bits

SORTED_VOTERS = 1_024
"""Up to so many voters are sorted as they are; among more, most are ruled out first."""

_SAMPLE_STEP = 8  # every eighth voter is asked where the median lies
_MARGIN_SHARE = 16  # one part in so many of the sample, to each side: over three standard deviations at 4096 voters


def weighted_median(scores: Bits, stake: Bits, kappa: int) -> Bits:
    """Per row of ``scores`` [columns, voters] the smallest score v with stake(score <= v) > sum(stake) - kappa.

    ``stake`` [voters] is positive and normalised; its fixed-point sum is a little under 1. An exact tie takes the
    larger score, kappa 0 the largest, a kappa over the whole stake the smallest. Without voters the median is 0.
    """
    columns, voters = scores.shape
    if voters == 0:
        return np.zeros(columns, np.int64)
    minority = int(stake.sum()) - kappa
    if voters <= SORTED_VOTERS or not 0 <= minority < int(stake.sum()):
        return _by_sorting(scores, stake, minority)
    return _by_narrowing(scores, stake, minority)


def _by_sorting(scores: Bits, stake: Bits, minority: int) -> Bits:
    """Sorting one integer that holds the score and, under it, the voter's number gives the order with no second pass.

    Scores are at most 1.0 (33 bits), which leaves 30 bits for the number.
    """
    bits = stake.size.bit_length()
    keys = scores << bits
    keys |= np.arange(stake.size)
    keys.sort(axis=1)
    return _median_of_sorted(keys, stake, bits, np.full(len(scores), minority))


def _median_of_sorted(keys: Bits, stake: Bits, bits: int, minority: Bits) -> Bits:
    """The score of the first key at which the running sum of stakes is over ``minority``, or of the last key."""
    running = np.cumsum(stake.take(keys & ((1 << bits) - 1)), axis=1)
    above = running > minority[:, None]
    above[:, -1] = True
    found: Bits = keys[np.arange(len(keys)), above.argmax(axis=1)] >> bits
    return found


def _by_narrowing(scores: Bits, stake: Bits, minority: int) -> Bits:
    """Sort only the scores between two bounds that have the median between them.

    A sample of the voters suggests the bounds; the stake under and up to them, summed over all voters, shows whether
    they hold, and a column where they do not is sorted whole. So the sample decides how long it takes and never what
    comes out. The sums are float64 products with whole numbers under 2**53: exact, in whatever order they are added.
    """
    low, high = _bounds(scores, stake, minority)
    under, up_to = scores < low[:, None], scores <= high[:, None]
    exact_stake = stake.astype(np.float64)
    stake_under, stake_up_to = under @ exact_stake, up_to @ exact_stake
    holds = (stake_under <= minority) & (stake_up_to > minority)
    median = low.copy()  # where the bounds hold and are equal
    unsure = np.flatnonzero(~holds)
    median[unsure] = _by_sorting(scores[unsure], stake, minority)
    open_columns = np.flatnonzero(holds & (low < high))
    if open_columns.size:
        inside = (up_to ^ under)[open_columns]
        left = minority - stake_under[open_columns].astype(np.int64)
        median[open_columns] = _median_inside(scores[open_columns], inside, stake, left)
    return median


def _bounds(scores: Bits, stake: Bits, minority: int) -> tuple[Bits, Bits]:
    """Two scores per column that are likely to have the median between them, from every eighth voter."""
    stake_there = stake[::_SAMPLE_STEP]
    voters = stake_there.size
    bits = voters.bit_length()
    keys = scores[:, ::_SAMPLE_STEP] << bits
    keys |= np.arange(voters)
    keys.sort(axis=1)
    running = np.cumsum(stake_there.take(keys & ((1 << bits) - 1)), axis=1)
    part = minority / float(stake.sum())  # a guess may be rounded
    position = np.minimum((running <= running[:, -1:] * part).sum(axis=1), voters - 1)
    margin, columns = voters // _MARGIN_SHARE, np.arange(len(scores))
    low = keys[columns, np.maximum(position - margin, 0)] >> bits
    high = keys[columns, np.minimum(position + margin, voters - 1)] >> bits
    return np.where(position < margin, 0, low), np.where(position + margin >= voters, ONE, high)


def _median_inside(scores: Bits, inside: npt.NDArray[np.bool_], stake: Bits, minority: Bits) -> Bits:
    """The median when ``minority`` [columns] of the stake is left to be passed by the scores that are ``inside``."""
    columns, voters = scores.shape
    flat = np.flatnonzero(inside)
    column, voter = np.divmod(flat, voters)
    counts = np.bincount(column, minlength=columns)
    place = np.arange(flat.size) - np.repeat(np.cumsum(counts) - counts, counts)
    bits = (voters + 1).bit_length()
    # a place left free sorts last and has no stake
    keys = np.full((columns, int(counts.max())), ((2 * ONE) << bits) | voters)
    keys[column, place] = (scores.ravel()[flat] << bits) | voter
    keys.sort(axis=1)
    return _median_of_sorted(keys, np.append(stake, 0), bits, minority)
