"""How bonds grow from weights: the classic shares of each miner, and Yuma 3's one bond per pair.

Every matrix here is [miners, validators]: a miner's validators lie side by side, since most steps run over them.
Values are fixed-point numbers in [0, 1]. Steps as in the reference chain's sparse epoch (opentensor/subtensor,
pallets/subtensor/src/epoch, commit 14bc6f9f).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .epoch_inputs import EpochInputs, Flags
from .fixedpoint import (
    FRACTION_BITS,
    ONE,
    U16_MAX,
    Bits,
    divide,
    ln,
    logistic,
    multiply,
    multiply_shares,
    normalize,
    ratio,
    to_u16,
)

U16Matrix = npt.NDArray[np.uint16]

_FLOAT_MARGIN = 2.0**-30  # float64 carries numbers up to 65535 to 2**-36, through two roundings
_TWICE_FLOORED = 2.0**-16 + 2.0**-29  # 65535 / 2**32, and the margin on both sides


@dataclass(frozen=True, slots=True)
class BondRule:
    """The bond parameters as fixed-point numbers."""

    is_yuma_3: bool
    penalty: int
    alpha: int
    alpha_low: int
    alpha_high: int
    steepness: int  # already divided by -100, as the reference does before it multiplies
    is_liquid: bool
    is_classic_liquid: bool

    @classmethod
    def of(cls, inputs: EpochInputs) -> BondRule:
        kept = (inputs.bonds_moving_average_ppm << FRACTION_BITS) // 1_000_000
        return cls(
            is_yuma_3=inputs.yuma_version == 3,
            penalty=ratio(inputs.bonds_penalty_u16, U16_MAX),
            alpha=ONE - kept,
            alpha_low=ratio(inputs.alpha_low_u16, U16_MAX),
            alpha_high=ratio(inputs.alpha_high_u16, U16_MAX),
            steepness=ratio(inputs.alpha_sigmoid_steepness, -100),
            is_liquid=inputs.yuma_version == 3 and inputs.liquid_alpha,
            is_classic_liquid=inputs.yuma_version == 1 and inputs.classic_liquid_alpha,
        )


def weights_for_bonds(weights: Bits, clipped: Bits, penalty: int) -> Bits:
    """W + penalty (Wc - W), floored, for a penalty under 1."""
    if penalty == 0:
        return weights
    # the product is negative, and its floor is minus the ceiling of the positive one
    lost = (weights - clipped).view(np.uint64) * np.uint64(penalty) + np.uint64(ONE - 1)
    return weights - (lost >> np.uint64(FRACTION_BITS)).view(np.int64)


def bought_bonds(for_bonds: Bits, active_stake: Bits) -> Bits:
    """Classic: each validator's stake in each miner this epoch, as a share of the miner's whole."""
    return normalize(multiply_shares(active_stake, for_bonds), axis=1)


def old_bonds(stored: U16Matrix, is_yuma_3: bool) -> Bits:
    """The bonds stored by the epoch before: shares of each miner (classic), or fractions of 65535 (Yuma 3)."""
    return divide(stored, np.full(1, U16_MAX, np.int64)) if is_yuma_3 else normalize(stored, axis=1)


def moving_average(new: Bits, old: Bits, alpha: Bits) -> Bits:
    """alpha new + (1 - alpha) old, each product floored; ``alpha`` [1] or [miners, 1]."""
    average = multiply_shares(alpha, new)
    average += multiply_shares(ONE - alpha, old)
    return average


def liquid_alphas(for_bonds: Bits, old: Bits, consensus: Bits, rule: BondRule) -> Bits:
    """Yuma 3: a rate per pair. Moving fast away from consensus, or out of a bond, costs a validator its inertia.

    The distance is weight over consensus where the validator buys, bond over weight where it sells; the rate climbs
    from low to high along 1 / (1 + exp(-steepness (distance - 1/2))).
    """
    distance = np.where(for_bonds >= old, for_bonds - consensus[:, None], old - for_bonds)
    distance = np.clip(distance, 0, ONE)
    exponent = multiply(distance - ONE // 2, np.full(1, rule.steepness, np.int64))
    sigmoid = logistic(-exponent)
    spread = np.full(1, rule.alpha_high - rule.alpha_low, np.int64)
    return np.clip(multiply_shares(spread, sigmoid) + rule.alpha_low, rule.alpha_low, rule.alpha_high)


def liquid_average(bonds: Bits, has_entry: Flags) -> Bits:
    """With a rate per pair, bonds are at most 1, and a bond whose validator now omits the miner is dropped."""
    return np.where(has_entry, np.minimum(bonds, ONE), 0)


def has_bond_entry(weights: Bits, clipped: Bits, for_bonds: Bits, explicit_zeros: Flags, penalty: int) -> Flags:
    """Which pairs the reference's sparse rows would still hold after clipping and the penalty.

    A weight cut to 0 loses its entry; an explicit zero keeps it, unless a fractional penalty rebuilds the row.
    """
    if penalty == 0:
        return (weights > 0) | explicit_zeros
    if penalty == ONE:
        return (clipped > 0) | explicit_zeros
    return for_bonds > 0


def column_upscaled(bonds: Bits) -> Bits:
    """Classic, for storage: each miner's bonds divided by its largest, so that u16 rounding costs the least."""
    return divide(bonds, np.maximum(bonds.max(axis=1, keepdims=True, initial=0), 1))


def column_upscaled_u16(bonds: Bits) -> U16Matrix:
    """``to_u16(column_upscaled(bonds))``, which floors twice, for the price of one division.

    Flooring the quotient first loses under 2**-32 of 65535, so the result is the floor of a number that lies between
    the plain quotient and that much under it. Where both of these floor alike that is it; the few others (in each
    column at least its largest) take the two steps. Float64 is off by far less than the margin taken here.
    """
    largest = np.maximum(bonds.max(axis=1, keepdims=True, initial=0), 1)
    plain = bonds.astype(np.float64)
    plain *= U16_MAX / largest
    plain += _FLOAT_MARGIN
    result = plain.astype(np.uint16)
    plain -= _TWICE_FLOORED
    differs = np.flatnonzero(result != plain.astype(np.uint16))
    if differs.size:
        miner = differs // bonds.shape[1]
        exact = divide(bonds.ravel()[differs], largest[miner, 0])
        result.ravel()[differs] = to_u16(exact)
    return result


def alphas_by_consensus(consensus: Bits, miners: slice, rule: BondRule) -> Bits:
    """Classic liquid alpha (the reference chain's of June 2024 to March 2025): a rate for each of ``miners``.

    A logistic curve over consensus that reaches the low rate at its lower quartile and the high rate at its upper one.
    Where the upper quartile is 0 there is no curve and the fixed rate holds, as in that source; where the quartiles
    coincide the curve is flat at one half.
    """
    lower, upper = _quartile(consensus, 1), _quartile(consensus, 3)
    if upper == 0:
        return np.full(len(consensus[miners]), rule.alpha, np.int64)
    slope = offset = 0
    if upper > lower and rule.alpha_low and rule.alpha_high:
        at_low = ln(ratio(ONE, rule.alpha_low) - ONE)
        at_high = ln(ratio(ONE, rule.alpha_high) - ONE)
        slope = ratio(at_high - at_low, lower - upper)
        offset = at_low + ((slope * lower) >> FRACTION_BITS)
    # a steep curve leaves 64 bits, so plain integers; exp looks no further than 20 anyway
    points = [((slope * c) >> FRACTION_BITS) - offset for c in consensus[miners].tolist()]
    bounded = np.clip(np.array(points, object), -(ONE << 5), ONE << 5).astype(np.int64)
    return np.clip(logistic(bounded), rule.alpha_low, rule.alpha_high)


def _quartile(values: Bits, quarters: int) -> int:
    """The value at ``quarters`` fourths of the ascending list, linear between neighbours, all zeros counted."""
    ascending = np.sort(values)
    below, rest = divmod(quarters * (len(values) - 1), 4)
    low = int(ascending[below])
    if rest == 0:
        return low
    return low + (((int(ascending[below + 1]) - low) * (rest * ONE // 4)) >> FRACTION_BITS)
