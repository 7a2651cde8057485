"""The pairs of validator and miner in one epoch: weights, and the bonds that grow from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .bonds import (
    BondRule,
    U16Matrix,
    alphas_by_consensus,
    bought_bonds,
    column_upscaled,
    column_upscaled_u16,
    has_bond_entry,
    liquid_alphas,
    liquid_average,
    moving_average,
    old_bonds,
    weights_for_bonds,
)
from .epoch_inputs import Flags
from .fixedpoint import Bits, normalize_near_one, to_u16

ALL = slice(None)

TILE = 1 << 16
"""Matrix elements per step at most: a few arrays of this size stay in a core's second-level cache."""

_TILE_AT_LEAST = 1 << 13  # below it the calls cost more than the work
_TILES = 8  # for threads to share, and in a small network to keep arrays small enough to be allocated from the heap


def tiles(miners: int, rows: int) -> Iterator[slice]:
    """Slices of miners, each with its pairs with ``rows`` validators at most one ``TILE`` where that is possible."""
    rows = max(rows, 1)
    width = max(1, min(TILE // rows, max(miners // _TILES, _TILE_AT_LEAST // rows)))
    return (slice(start, start + width) for start in range(0, miners, width))


def columns(matrix: npt.NDArray[Any], tile: slice) -> npt.NDArray[Any]:
    """Some columns of a matrix [R, n] as rows of their own [width, R].

    The first copy makes the block small and dense; transposing over the whole matrix would miss the cache each step.
    """
    return np.ascontiguousarray(np.ascontiguousarray(matrix[:, tile]).T)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Pairs:
    """The matrices of one epoch. Every method gives [miners, R] for a slice of miners, by default for all.

    Column r belongs to uid ``row_uids[r]``: every uid that may set weights or holds bonds, those with active stake
    first. Kept are the ``weights`` [n, R], each validator's summing to 1; what they were made from, as rows [R, n]:
    ``kept_bonds_u16`` (stored by the epoch before, without those to uids registered since) and ``explicit_zeros``
    (zero weights that were sent; empty without liquid alpha); ``consensus`` [n] and ``voting_stake`` [R]. The rest is
    computed when asked for, by the same steps as in the epoch itself.
    """

    row_uids: npt.NDArray[np.int64]
    weights: Bits
    explicit_zeros: Flags
    kept_bonds_u16: U16Matrix
    consensus: Bits
    voting_stake: Bits
    rule: BondRule

    def clipped_weights(self, miners: slice = ALL) -> Bits:
        """Weights cut at consensus; none is raised, no row is normalised again."""
        return np.minimum(self.weights[miners], self.consensus[miners, None])

    def weights_for_bonds(self, miners: slice = ALL) -> Bits:
        """Weights after the bonds penalty: between the clipped ones (penalty 1) and the unclipped (penalty 0)."""
        return weights_for_bonds(self.weights[miners], self.clipped_weights(miners), self.rule.penalty)

    def old_bonds(self, miners: slice = ALL) -> Bits:
        """The bonds of the epoch before: shares of each miner (classic), or one bond in [0, 1] per pair (Yuma 3)."""
        return old_bonds(columns(self.kept_bonds_u16, miners), self.rule.is_yuma_3)

    def bought_bonds(self, miners: slice = ALL) -> Bits:
        """Classic: what this epoch's weights and stake buy, as shares of each miner."""
        return bought_bonds(self.weights_for_bonds(miners), self.voting_stake)

    def alphas(self, miners: slice = ALL) -> Bits:
        """How much of the new goes into the bonds: [1], [miners, 1] with classic liquid alpha, else per pair."""
        if self.rule.is_liquid and self.consensus.any():
            new, old = self.weights_for_bonds(miners), self.old_bonds(miners)
            return liquid_alphas(new, old, self.consensus[miners], self.rule)
        if self.rule.is_classic_liquid and self.consensus.any():
            return alphas_by_consensus(self.consensus, miners, self.rule)[:, None]
        return np.full(1, self.rule.alpha, np.int64)

    def bonds(self, miners: slice = ALL) -> Bits:
        """Bonds after this epoch: the moving average of old and new, for classic as shares of each miner."""
        old, alphas = self.old_bonds(miners), self.alphas(miners)
        if not self.rule.is_yuma_3:
            return normalize_near_one(moving_average(self.bought_bonds(miners), old, alphas))
        bonds = moving_average(self.weights_for_bonds(miners), old, alphas)
        if self.rule.is_liquid and self.consensus.any():
            return liquid_average(bonds, self._has_entry(miners))
        return bonds

    def _has_entry(self, miners: slice) -> Flags:
        zeros = columns(self.explicit_zeros, miners)
        new = self.weights_for_bonds(miners)
        return has_bond_entry(self.weights[miners], self.clipped_weights(miners), new, zeros, self.rule.penalty)

    def rounded_for_storage(self, bonds: Bits) -> U16Matrix:
        """``bonds`` [miners, R] as they are stored: ``scaled_for_storage``, floored to fractions of 65535."""
        return to_u16(bonds) if self.rule.is_yuma_3 else column_upscaled_u16(bonds)

    def scaled_for_storage(self, bonds: Bits) -> Bits:
        """``bonds`` [miners, R] as they are stored, still unrounded: classic ones with each miner's largest at 1."""
        return bonds if self.rule.is_yuma_3 else column_upscaled(bonds)
