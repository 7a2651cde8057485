"""The pairs of validator and miner in one epoch: weights, and the bonds that grow from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

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
from .fixedpoint import ONE, Bits, divide, normalize_near_one, to_u16

ALL = slice(None)

T = TypeVar("T")


class MapTiles(Protocol):
    """How work on the tiles is done: ``map``, or the ``map`` of a pool of threads."""

    def __call__(self, work: Callable[[slice], T], tiles: Iterable[slice], /) -> Iterable[T]: ...


TILE = 1 << 16
"""Matrix elements per step at most: a few arrays of this size stay in a core's second-level cache."""

_TILE_AT_LEAST = 1 << 13  # below it the calls cost more than the work
_SQUARE = 128
_TILES = 8  # for threads to share, and in a small network to keep arrays small enough to be allocated from the heap


def tiles(miners: int, rows: int) -> Iterator[slice]:
    """Slices of miners, each with its pairs with ``rows`` validators at most one ``TILE`` where that is possible."""
    rows = max(rows, 1)
    width = max(1, min(TILE // rows, max(miners // _TILES, _TILE_AT_LEAST // rows)))
    return (slice(start, start + width) for start in range(0, miners, width))


def transposed(matrix: npt.NDArray[Any], map_tiles: MapTiles = map) -> npt.NDArray[Any]:
    """A contiguous copy of ``matrix`` [R, n] as [n, R], in small squares: whole columns would miss the cache."""
    rows, n = matrix.shape
    result = np.empty((n, rows), matrix.dtype)

    def turn(strip: slice) -> None:
        for first in range(0, rows, _SQUARE):
            side = slice(first, first + _SQUARE)
            result[strip, side] = np.ascontiguousarray(matrix[side, strip]).T

    for _ in map_tiles(turn, (slice(first, first + _SQUARE) for first in range(0, n, _SQUARE))):
        pass
    return result


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Pairs:
    """The matrices of one epoch. Every method gives [miners, R] for a slice of miners, by default for all.

    Column r belongs to uid ``row_uids[r]``: every uid that may set weights or holds bonds, those with active stake
    first. Kept is what the rest is made from, by the same steps as in the epoch itself when it is asked for:
    ``votes_u16`` [n, R], the weights as submitted, and ``vote_sums`` [R], each validator's sum of them (1 where that is
    0); ``kept_bonds_u16`` [n, R] (stored by the epoch before, without those to uids registered since);
    ``explicit_zeros`` [n, R] (zero weights that were sent; [n, 0] without liquid alpha); ``consensus`` [n] and
    ``voting_stake`` [R].
    """

    row_uids: npt.NDArray[np.int64]
    votes_u16: U16Matrix
    vote_sums: Bits
    explicit_zeros: Flags
    kept_bonds_u16: U16Matrix
    consensus: Bits
    voting_stake: Bits
    rule: BondRule

    def weights(self, miners: slice = ALL) -> Bits:
        """Each validator's weights as shares: over all miners they sum to 1 or 0."""
        return divide(self.votes_u16[miners], self.vote_sums)

    def clipped_weights(self, miners: slice = ALL) -> Bits:
        """Weights cut at consensus; none is raised, no row is normalised again."""
        weights = self.weights(miners)
        return np.minimum(weights, self.consensus[miners, None], out=weights)

    def weights_for_bonds(self, miners: slice = ALL) -> Bits:
        """Weights after the bonds penalty: between the clipped ones (penalty 1) and the unclipped (penalty 0)."""
        if self.rule.penalty == ONE:
            return self.clipped_weights(miners)
        return weights_for_bonds(self.weights(miners), self.clipped_weights(miners), self.rule.penalty)

    def old_bonds(self, miners: slice = ALL) -> Bits:
        """The bonds of the epoch before: shares of each miner (classic), or one bond in [0, 1] per pair (Yuma 3)."""
        return old_bonds(self.kept_bonds_u16[miners], self.rule.is_yuma_3)

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
        zeros = self.explicit_zeros[miners]
        new = self.weights_for_bonds(miners)
        return has_bond_entry(self.weights(miners), self.clipped_weights(miners), new, zeros, self.rule.penalty)

    def rounded_for_storage(self, bonds: Bits) -> U16Matrix:
        """``bonds`` [miners, R] as they are stored: ``scaled_for_storage``, floored to fractions of 65535."""
        return to_u16(bonds) if self.rule.is_yuma_3 else column_upscaled_u16(bonds)

    def scaled_for_storage(self, bonds: Bits) -> Bits:
        """``bonds`` [miners, R] as they are stored, still unrounded: classic ones with each miner's largest at 1."""
        return bonds if self.rule.is_yuma_3 else column_upscaled(bonds)
