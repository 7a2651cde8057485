"""What one epoch decides, with every intermediate that explains a reward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .bonds import (
    BondRule,
    U16Matrix,
    bought_bonds,
    column_upscaled,
    liquid_alphas,
    old_bonds,
    weights_for_bonds,
)
from .epoch_inputs import EpochInputs, Flags
from .fixedpoint import Bits, max_upscale_to_u16, to_u16
from .sparse_rows import SparseRows, sparse_from_dense


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EpochResult:
    """Vectors per uid [n], matrices [n miners, R validators], and what the ledger stores.

    ``*_bits`` are int64 fixed-point numbers (1.0 is 2**32) in [0, 1]; ``*_share_bits`` are the parts of the emission,
    and ``server_emission``, ``validator_emission`` and ``emission`` (both together) the same in ledger units, rounded
    down, so that nothing sums to more than was to be handed out. Server units pay miners, validator units
    validators. ``is_emergency`` says that nobody was ranked, so that stake alone was paid.

    Column r of a matrix belongs to uid ``row_uids[r]``: every uid that may set weights or holds bonds, those with
    active stake first. ``weights`` are normalised, before clipping; ``bonds`` are after the moving average, for
    classic normalised per miner. The other matrices of the epoch are made from these on request.

    Stored for the next epoch: ``new_validator_permit`` and ``stored_bonds_u16``. A uid that has no new permit has an
    empty row there.
    """

    inputs: EpochInputs
    active: Flags
    stake_bits: Bits
    active_stake_bits: Bits
    new_validator_permit: Flags
    consensus_bits: Bits
    validator_trust_bits: Bits
    ranks_bits: Bits
    incentive_bits: Bits
    dividends_bits: Bits
    server_share_bits: Bits
    validator_share_bits: Bits
    combined_share_bits: Bits
    is_emergency: bool
    server_emission: Bits
    validator_emission: Bits
    emission: Bits
    row_uids: npt.NDArray[np.int64]
    weights: Bits
    bonds: Bits
    kept_bonds_u16: U16Matrix
    stored_bonds_u16: SparseRows

    @property
    def stake_u16(self) -> npt.NDArray[np.uint16]:
        return to_u16(self.stake_bits)

    @property
    def consensus_u16(self) -> npt.NDArray[np.uint16]:
        return to_u16(self.consensus_bits)

    @property
    def incentive_u16(self) -> npt.NDArray[np.uint16]:
        return to_u16(self.incentive_bits)

    @property
    def dividends_u16(self) -> npt.NDArray[np.uint16]:
        return to_u16(self.dividends_bits)

    @property
    def validator_trust_u16(self) -> npt.NDArray[np.uint16]:
        return to_u16(self.validator_trust_bits)

    @property
    def pruning_scores_u16(self) -> npt.NDArray[np.uint16]:
        """Combined share scaled so that the best uid has 65535: the score that the reference kept until 2025."""
        return max_upscale_to_u16(self.combined_share_bits)

    @property
    def clipped_weights(self) -> Bits:
        """Weights cut at consensus [n, R]."""
        return np.minimum(self.weights, self.consensus_bits[:, None])

    @property
    def weights_for_bonds(self) -> Bits:
        """Weights after the bonds penalty [n, R]."""
        return weights_for_bonds(self.weights, self.clipped_weights, BondRule.of(self.inputs).penalty)

    @property
    def old_bonds(self) -> Bits:
        """The bonds of the epoch before, without those to uids registered since [n, R]."""
        return old_bonds(self.kept_bonds_u16, BondRule.of(self.inputs).is_yuma_3)

    @property
    def bought_bonds(self) -> Bits:
        """Classic: the bonds that this epoch's weights buy, as shares of each miner [n, R]."""
        return bought_bonds(self.weights_for_bonds, self.active_stake_bits[self.row_uids])

    @property
    def liquid_alphas(self) -> Bits:
        """Yuma 3 with liquid alpha: the rate of each pair [n, R], whether or not it has an entry."""
        return liquid_alphas(self.weights_for_bonds, self.old_bonds, self.consensus_bits, BondRule.of(self.inputs))

    @property
    def ema_bonds_bits(self) -> SparseRows:
        """Bonds in the scale in which they are stored, before rounding to u16, as a row per uid."""
        scaled = self.bonds if self.inputs.yuma_version == 3 else column_upscaled(self.bonds)
        by_uid = np.argsort(self.row_uids)
        dense = scaled.T[by_uid]
        return sparse_from_dense(dense, dense > 0, self.row_uids[by_uid], self.inputs.n)
