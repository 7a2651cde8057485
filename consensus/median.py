"""The stake-weighted median of each miner's weights: the most that kappa of the stake stands behind."""

from __future__ import annotations

import numpy as np

from .fixedpoint import Bits


def weighted_median(scores: Bits, stake: Bits, kappa: int) -> Bits:
    """Per row of ``scores`` [columns, voters] the smallest score v with stake(score <= v) > sum(stake) - kappa.

    ``stake`` [voters] is positive and normalised; its fixed-point sum is a little under 1. An exact tie takes the
    larger score, kappa 0 the largest, a kappa over the whole stake the smallest. Without voters the median is 0.

    Sorting one integer that holds the score and, under it, the voter's number gives the order with no second pass;
    scores are at most 1.0 (33 bits), which leaves 30 bits for the number.
    """
    columns, voters = scores.shape
    if voters == 0:
        return np.zeros(columns, np.int64)
    number_bits = (voters - 1).bit_length()
    keys = (scores << number_bits) | np.arange(voters)
    keys.sort(axis=1)
    minority = int(stake.sum()) - kappa
    position = _first_above(stake[keys & ((1 << number_bits) - 1)], minority)
    median: Bits = np.take_along_axis(keys, position[:, None], axis=1)[:, 0] >> number_bits
    return median


def _first_above(stakes: Bits, minority: int) -> Bits:
    """Per row the first position whose running sum is over ``minority``, or the last position."""
    position: Bits = (np.cumsum(stakes, axis=1) <= minority).sum(axis=1)
    last: Bits = np.minimum(position, stakes.shape[1] - 1)
    return last
