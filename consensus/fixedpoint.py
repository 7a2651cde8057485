"""Fixed-point arithmetic on arrays of integers, the same bits on every machine.

A number is a signed 64-bit integer with 32 bits after the point (I32F32): 1.0 is ``ONE``. Products are floored,
quotients truncated, as the reference chain's number type does (substrate-fixed 0.6.0); its exponential and logarithm
are rebuilt term by term, since their rounding is part of the result. Nothing here rounds through a float: the one
float division there is is exact, for the reason given where it stands.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.int64]
"""Raw integers of fixed-point numbers."""

Counts = npt.NDArray[np.int64] | npt.NDArray[np.uint16]
"""Plain integers or raw ones: a ratio of two is the same either way."""

FRACTION_BITS = 32
ONE = 1 << FRACTION_BITS
U16_MAX = 65_535
MAX_BITS = (1 << 63) - 1

EXP_LIMIT = 20  # e**20 still fits 31 bits before the point; the reference clamps the argument here
_EXP_TERMS = 31  # the last power in the reference's series
_E_BITS = 0x15BF0A8 << 9  # e cut to 23 bits after the point: what the reference returns for exp(1)
_LOG2_E_BITS = 0xB8AA3B << 9  # log2(e) cut likewise

_SHORT_LIMIT = 1 << 16
_EXACT_FLOAT = 1 << 53  # below this every integer is a float64
_LOW_HALF = np.int64(ONE - 1)


def ratio(numerator: int, denominator: int) -> int:
    """``numerator / denominator`` truncated toward zero, as bits; 0 where the denominator is 0."""
    if denominator == 0:
        return 0
    magnitude = (abs(numerator) << FRACTION_BITS) // abs(denominator)
    return magnitude if (numerator < 0) == (denominator < 0) else -magnitude


def multiply(a: Bits, b: Bits) -> Bits:
    """``floor(a b)`` for any signs; exact where the result fits 64 bits, which the caller knows.

    The four partial products of 32-bit halves: only the one of the low halves needs the unsigned type.
    """
    a_high, a_low = a >> FRACTION_BITS, a & _LOW_HALF
    b_high, b_low = b >> FRACTION_BITS, b & _LOW_HALF
    low = (a_low.view(np.uint64) * b_low.view(np.uint64)) >> np.uint64(FRACTION_BITS)
    return ((a_high * b_high) << FRACTION_BITS) + a_high * b_low + a_low * b_high + low.view(np.int64)


def multiply_shares(a: Bits, b: Bits) -> Bits:
    """``floor(a b)`` for values in [0, 1], in one unsigned product.

    1.0 x 1.0 is the one pair whose 64-bit product overflows; it needs the long way. ``b`` is looked at only when
    ``a`` holds a 1.0, so pass the smaller array as ``a``.
    """
    if a.size and b.size and a.max() == ONE and b.max() == ONE:
        return multiply(a, b)
    product = a.view(np.uint64) * b.view(np.uint64)
    product >>= np.uint64(FRACTION_BITS)
    return product.view(np.int64)


def divide(a: Counts, b: Bits) -> Bits:
    """``floor(a / b)`` as bits, for a >= 0 and b > 0; also of plain integers, since only their ratio counts.

    Three ways to the same integer, by the size of the numerator ``a << 32``. Under 2**53 a float64 division truncates
    to the exact quotient: a true quotient below an integer k is at least 1/b below it, more than half a unit in the
    last place of any quotient under 2**53 / b. Under 2**64 it is one unsigned division; above, a long one.
    """
    if not a.size or not b.size:
        return np.zeros(np.broadcast_shapes(a.shape, b.shape), np.int64)
    largest = U16_MAX if a.dtype == np.uint16 else int(np.maximum.reduce(a, axis=None))
    divisor = int(b.max())
    if largest << FRACTION_BITS < _EXACT_FLOAT and divisor < _EXACT_FLOAT:
        scaled = b.astype(np.float64) / ONE  # exact, a power of two; one pass less than scaling the numerators
        quotient = np.true_divide(a, scaled)
        return quotient.astype(np.int64)
    a = a.astype(np.int64, copy=False)
    if largest < ONE:
        return ((a.view(np.uint64) << np.uint64(FRACTION_BITS)) // b.view(np.uint64)).view(np.int64)
    return _divide_long(a, b, divisor)


def _divide_long(a: Bits, b: Bits, divisor: int) -> Bits:
    """School division: whole part first, then as many fraction bits at a time as keep the remainder in 64 bits."""
    unsigned = b.view(np.uint64)
    quotient, remainder = np.divmod(a.view(np.uint64), unsigned)
    step, left = 64 - divisor.bit_length(), FRACTION_BITS
    while left:
        shift = np.uint64(min(step, left))
        digits, remainder = np.divmod(remainder << shift, unsigned)
        quotient = (quotient << shift) | digits
        left -= int(shift)
    return quotient.astype(np.int64)


def normalize(values: Counts, axis: int = 0) -> Bits:
    """Divide non-negative values by their sum along ``axis``; where the sum is 0 they stay as they are, all 0."""
    # 32768 of the largest u16 fit 32 bits, in which numpy adds twice as fast
    narrow = values.dtype == np.uint16 and values.shape[axis] <= 1 << 15
    sums = values.sum(axis=axis, keepdims=True, dtype=np.uint32 if narrow else np.int64).astype(np.int64, copy=False)
    return divide(values, np.maximum(sums, 1))


def normalize_near_one(values: Bits) -> Bits:
    """``normalize`` along the last axis, for rows that sum to a little under 1.0 as most bonds do, at half its price.

    With b = 2**32 - e the quotient a 2**32 / b is a + a e / b. Let a e = t 2**32 + low; then a e / b is t, or t + 1
    where low + (t + 1) e reaches 2**32. For e under 2**16, so t as well, neither that sum nor a product leaves 64 bits.
    """
    sums = values.sum(axis=-1, keepdims=True)
    short = np.where(sums == 0, 0, ONE - sums)
    if int(short.min(initial=0)) < 0 or int(short.max(initial=0)) >= _SHORT_LIMIT:
        return divide(values, np.maximum(sums, 1))
    extra = values * short
    carry = extra >> FRACTION_BITS
    carry += 1
    carry *= short
    extra += carry
    extra >>= FRACTION_BITS
    extra += values
    return extra


def to_u16(shares: Bits) -> npt.NDArray[np.uint16]:
    """``floor(x 65535)`` of values in [0, 1]."""
    return ((shares * U16_MAX) >> FRACTION_BITS).astype(np.uint16)


def exp(x: Bits) -> Bits:
    """e**x, with x clamped to [-20, 20]; a negative x as 1 / e**|x|.

    The series 1 + x + x^2/2! + ... + x^31/31!, each term cut to 32 bits, as in the reference. It is within 3e-8 of
    e**x up to 10 and 0.8 % low at 20; the reference's answer is the right one here.
    """
    limit = EXP_LIMIT * ONE
    size = np.minimum(np.abs(np.maximum(x, -limit)), limit)
    whole, part = size >> FRACTION_BITS, size & _LOW_HALF
    result = size + ONE
    term = size
    for power in range(2, _EXP_TERMS + 1):
        # ``multiply`` for factors of which one is at most 20.0 and the other under 2**27: three products, not four
        low = ((term & _LOW_HALF).view(np.uint64) * part.view(np.uint64)) >> np.uint64(FRACTION_BITS)
        term = (term * whole + (term >> FRACTION_BITS) * part + low.view(np.int64)) // power
        if not term.any():  # every later term is 0 as well
            break
        result += term
    result = np.where(x < 0, divide(np.full(1, ONE, np.int64), result), result)
    return np.where(x == ONE, np.int64(_E_BITS), result)


def logistic(x: Bits) -> Bits:
    """1 / (1 + e**-x): from 0 to 1, one half at 0."""
    return divide(np.full(1, ONE, np.int64), exp(-x) + ONE)


def ln(x: int) -> int:
    """Natural logarithm of one number, in bits; 0 for x <= 0, as the reference's safe form gives."""
    if x <= 0:
        return 0
    log2 = -_log2_from_one(ratio(ONE, x)) if x < ONE else _log2_from_one(x)
    return ratio(log2, _LOG2_E_BITS)


def _log2_from_one(x: int) -> int:
    """Base-2 logarithm of x >= 1.0: halve (rounding up) to below 2, then one squaring per further bit."""
    result = 0
    while x >= 2 * ONE:
        x = (x >> 1) + (x & 1)
        result += 1
    for _ in range(FRACTION_BITS):
        x = (x * x) >> FRACTION_BITS
        result <<= 1
        if x >= 2 * ONE:
            result |= 1
            x = (x >> 1) + (x & 1)
    return result


def max_upscale_to_u16(values: Bits) -> npt.NDArray[np.uint16]:
    """Scale non-negative fixed-point values so that the largest becomes 65535; round half up.

    Values up to 32768.0 are multiplied first and divided after; larger ones the other way round, as in the reference,
    which would overflow otherwise. All zeros stay zeros.
    """
    largest = int(values.max(initial=0))
    if largest == 0:
        return np.zeros(values.shape, np.uint16)
    if largest > 32_768 * ONE:
        scaled = multiply(values, np.full(1, ratio(U16_MAX << FRACTION_BITS, largest), np.int64))
    else:
        scaled = divide(values * U16_MAX, np.full(1, largest, np.int64))
    rounded: Bits = (scaled + ONE // 2) >> FRACTION_BITS
    return np.minimum(rounded, U16_MAX).astype(np.uint16)
