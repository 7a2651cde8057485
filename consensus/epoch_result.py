"""What one epoch decides, with every intermediate that explains a reward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .dense_rows import DenseRows
from .epoch_inputs import EpochInputs, Flags
from .fixedpoint import Bits, max_upscale_to_u16, to_u16
from .pairs import Pairs


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EpochResult:
    """Vectors per uid [n], matrices per pair in ``pairs``, and what the ledger stores.

    ``*_bits`` are int64 fixed-point numbers (1.0 is 2**32) in [0, 1]; ``*_share_bits`` are the parts of the emission,
    and ``server_emission``, ``validator_emission`` and ``emission`` (both together) the same in ledger units, rounded
    down, so that nothing sums to more than was to be handed out. Server units pay miners, validator units
    validators. ``is_emergency`` says that nobody was ranked, so that stake alone was paid.

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
    pairs: Pairs
    stored_bonds_u16: DenseRows

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
    def ema_bonds_bits(self) -> DenseRows:
        """Bonds in the scale in which they are stored, before rounding to u16, as a row per uid; computed anew."""
        by_uid = np.argsort(self.pairs.row_uids)
        rows = self.pairs.scaled_for_storage(self.pairs.bonds()).T[by_uid]
        return DenseRows(self.inputs.n, self.pairs.row_uids[by_uid], rows, np.zeros(0, np.int64))
