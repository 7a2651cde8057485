"""Tests of the fixed-point arithmetic, against Python's integers and the published numbers."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from fractions import Fraction
from math import exp as float_exp
from math import log as float_log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moed.consensus.bonds import column_upscaled, weights_for_bonds
from moed.consensus.fixedpoint import (
    EXP_LIMIT,
    ONE,
    U16_MAX,
    Bits,
    divide,
    exp,
    ln,
    logistic,
    max_upscale_to_u16,
    multiply,
    multiply_shares,
    normalize,
    normalize_near_one,
    ratio,
    to_u16,
)

ORACLE = runpy.run_path(str(Path(__file__).with_name("yuma_oracle.py")))

Reader = Callable[[str], Any]
shares = st.one_of(st.integers(0, ONE), st.sampled_from([0, 1, ONE - 1, ONE]))
signed = st.integers(-(1 << 47), 1 << 47)


def bits(values: Any, is_double: bool = False) -> Bits:
    """Decimals as the published file means them: binary32 (or 64), then the nearest fixed-point number."""
    literals = np.float64(values) if is_double else np.float64(np.float32(values))
    rounded: Bits = np.rint(literals * ONE).astype(np.int64)
    return rounded


def one(value: int) -> Bits:
    return np.array([value], np.int64)


@given(signed, signed)
@example(-1, 1)
def test_multiply_floors(a: int, b: int) -> None:
    """A product of any signs is the floor of the exact one."""
    if abs(a * b) >> 32 < 1 << 63:
        assert multiply(one(a), one(b)).tolist() == [(a * b) >> 32]


@given(shares, shares)
@example(ONE, ONE)
@example(ONE, ONE - 1)
def test_multiply_shares_includes_one(a: int, b: int) -> None:
    """1.0 x 1.0, whose raw product is 2**64, is 1.0 and not 0."""
    assert multiply_shares(one(a), one(b)).tolist() == [(a * b) >> 32]


@given(st.integers(0, (1 << 63) - 1), st.integers(1, (1 << 62) - 1))
@example(ONE, 1 << 31)
@example((1 << 21) - 1, 3)
@example(1 << 21, (1 << 33) - 1)
@example(ONE - 1, ONE)
def test_divide_truncates(a: int, b: int) -> None:
    """A quotient is the floor of the exact one, by whichever way its size takes."""
    if (a << 32) // b < 1 << 63:
        assert divide(one(a), one(b)).tolist() == [(a << 32) // b]


@given(st.integers(1, 1 << 52), st.integers(1, (1 << 21) - 1))
def test_divide_is_exact_next_to_whole_quotients(quotient: int, a: int) -> None:
    """The float division never rounds up to a whole quotient that the numbers just miss."""
    for b in {(a << 32) // quotient, (a << 32) // quotient + 1} - {0}:
        assert divide(one(a), one(b)).tolist() == [(a << 32) // b]


@given(st.lists(st.integers(0, 1 << 40), max_size=20))
def test_normalize_never_exceeds_one(values: list[int]) -> None:
    """Truncated shares sum to 1 at most, and lose less than one bit each; zeros stay zeros."""
    total = int(normalize(np.array(values, np.int64)).sum())
    assert total <= ONE
    assert total > ONE - len(values) - 1 if any(values) else total == 0


def test_normalize_of_one_holder_is_one() -> None:
    """2**32 shifted by 32 bits overflows; a single holder of everything still has exactly 1.0."""
    assert normalize(one(ONE)).tolist() == [ONE]
    column = np.array([[ONE, 0, 0], [3, 0, 0]], np.int64)
    assert normalize(column, axis=1).tolist() == [[ONE, 0, 0], [ONE, 0, 0]]


@given(shares)
def test_to_u16_floors(value: int) -> None:
    """Storage in 16 bits rounds down, and reading back never gives more than was stored."""
    stored = int(to_u16(one(value))[0])
    assert stored == value * U16_MAX >> 32
    assert ratio(stored, U16_MAX) <= value


@given(st.one_of(st.integers(-40 * ONE, 40 * ONE), st.sampled_from([0, ONE, -ONE, 20 * ONE, -20 * ONE])))
def test_exp_is_the_oracle(x: int) -> None:
    """The exponential has the oracle's bits, and the accuracy that its docstring claims."""
    result = int(exp(one(x))[0])
    assert result == ORACLE["exp"](x)
    if abs(x) <= 10 * ONE and x != ONE:
        assert result / ONE == pytest.approx(float_exp(x / ONE), rel=4e-8, abs=4e-8)


def test_exp_takes_arrays_of_mixed_sign() -> None:
    """An array gives what its elements give one by one, the special values among them."""
    values = np.array([[0, ONE, -ONE, 5], [-5, 19 * ONE, -(1 << 63), (1 << 63) - 1]], np.int64)
    expected = [[ORACLE["exp"](x) for x in row] for row in values.tolist()]
    assert exp(values).tolist() == expected
    assert exp(one(99 * ONE)).tolist() == exp(one(EXP_LIMIT * ONE)).tolist()


@given(st.one_of(st.integers(-5, 1 << 62), st.integers(1, 4 * ONE)))
def test_ln_is_the_oracle(x: int) -> None:
    """The logarithm has the oracle's bits; it is good to the 23 bits of its constant where its inverse fits."""
    if x > 2 or x <= 0:
        assert ln(x) == ORACLE["ln"](x)
        if x > ONE >> 12:
            assert ln(x) / ONE == pytest.approx(float_log(x / ONE), abs=2e-5)


@given(st.integers(-(1 << 70), 1 << 70), st.integers(-(1 << 40), 1 << 40))
def test_ratio_truncates_toward_zero(numerator: int, denominator: int) -> None:
    """A quotient of single numbers loses its fraction toward zero; by zero it is 0."""
    exact = Fraction(numerator << 32, denominator) if denominator else Fraction(0)
    assert ratio(numerator, denominator) == int(exact)


# --- the published numbers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(published_vectors: Reader) -> Any:
    return published_vectors("yuma/math_functions.json")


def test_published_upscaling(published: Any) -> None:
    """Max-upscaling of fixed-point values, the largest number included."""
    for case in published["max_upscale_to_u16"]["cases"]:
        values = [(1 << 63) - 1 if x == "I32F32_MAX" else int(bits(x)) for x in case["input"]]
        assert max_upscale_to_u16(np.array(values, np.int64)).tolist() == case["output"], case


def test_published_limit(published: Any) -> None:
    """A row's largest share against a limit, where equality is allowed."""
    for case in published["max_limited"]["cases"]:
        largest = normalize(np.array(case["input"], np.int64)).max(initial=0)
        assert (largest <= ratio(case["limit_u16"], U16_MAX)) == case["ok"], case


def test_published_sigmoid(published: Any) -> None:
    """The former consensus curve, whose every digit hangs on the exponential."""
    extremes = {"I32F32_MIN": -(1 << 63), "I32F32_MAX": (1 << 63) - 1}
    for case in published["sigmoid"]["cases"]:
        for x, expected in zip(case["input"], case["output"], strict=True):
            value = extremes[x] if x in extremes else int(bits(x, is_double=case["rho"] == 30))
            kappa, rho = int(bits(case["kappa"])), case["rho"]
            x_bits = np.clip(np.array([rho * (value - kappa)], object), -(1 << 62), 1 << 62)
            result = logistic(x_bits.astype(np.int64))
            assert result.tolist() == [bits(expected, is_double=True)], (case["rho"], x)


def test_published_normalisation(published: Any) -> None:
    """Vectors, rows and columns by their sum, columns by their largest."""
    for case in published["normalize"]["cases"]:
        values = bits(case["input"]).tolist()
        result = [ratio(value, sum(values)) / ONE for value in values]
        assert result == pytest.approx(case["output"], abs=case["tolerance"])
    for case in published["vecdiv"]["cases"]:
        pairs = zip(bits(case["x"]).tolist(), bits(case["y"]).tolist(), strict=True)
        assert [ratio(x, y) / ONE for x, y in pairs] == pytest.approx(case["output"], abs=2.4e-10)
    by_axis: dict[str, Callable[[Bits], Bits]] = {
        "row_normalize": lambda matrix: normalize(matrix, axis=1),
        "col_normalize": lambda matrix: normalize(matrix, axis=0),
        "col_max_upscale": lambda matrix: column_upscaled(matrix.T).T,
    }
    for name, function in by_axis.items():
        case = published[name]
        assert function(bits(case["input"])) / ONE == pytest.approx(np.array(case["output"]), abs=case["tolerance"])


def test_published_products(published: Any) -> None:
    """Elementwise and matrix products of exact numbers."""
    case = published["row_hadamard"]
    product = multiply(bits(case["matrix"]), bits(case["vector"])[:, None])
    assert (product == bits(case["output"])).all()
    for case in published["matmul"]["cases"]:
        product = multiply(bits(case["matrix"]), bits(case["vector"])[:, None])
        assert (product.sum(axis=0) == bits(case["output"])).all()
    for case in published["matmul_transpose"]["cases"]:
        product = multiply(bits(case["matrix"]), bits(case["vector"]))
        assert (product.sum(axis=1) == bits(case["output"])).all()


def test_published_interpolation(published: Any) -> None:
    """a + ratio (b - a), upwards by the general product and downwards by the one that bonds use."""
    for case in published["interpolate"]["cases"]:
        a, b, part = bits(case["a"]), bits(case["b"]), int(bits(case["ratio"], is_double=True))
        result = a + multiply(one(part), b - a)
        assert result / ONE == pytest.approx(np.array(case["output"]), abs=case["tolerance"] + 2.4e-10)
        if part < ONE and b.max() <= ONE:
            assert (weights_for_bonds(b, a, part) == b + multiply(one(part), a - b)).all()


def test_published_moving_average(published: Any) -> None:
    """min(1, (1 - alpha) old + alpha new) with a rate per pair."""
    for case in published["ema_alpha"]["cases"]:
        if "output" not in case:
            continue  # the case of a dropped entry is a rule of the epoch, tested there
        new, old = bits(case["new"], case.get("literal") == "f64"), bits(case["old"], case.get("literal") == "f64")
        alpha = bits(case["alpha"], is_double=True)
        result = np.minimum(multiply(alpha, new) + multiply(ONE - alpha, old), ONE)
        assert result / ONE == pytest.approx(np.array(case["output"]), abs=case["tolerance"] + 1e-9), case["test"]


def test_published_first_chain_consensus(published_vectors: Reader) -> None:
    """The sigmoid consensus of the chain's first epochs: trust against kappa, through the same logistic curve."""
    legacy = published_vectors("yuma/whitepaper_sigmoid.json")["legacy_chain_consensus"]
    kappa = ratio(legacy["kappa_u16"], U16_MAX)
    consensus = logistic(legacy["rho"] * (bits(legacy["trust"]) - kappa)) / ONE
    assert consensus == pytest.approx(np.array(legacy["consensus"]), abs=legacy["tolerance"])
    large = legacy["large_graph"]
    trusted = logistic(one(large["rho"] * (ratio(large["trust_u16"], U16_MAX) - kappa)))
    assert to_u16(trusted).tolist() == [large["consensus_u16"]]


@given(
    st.lists(st.lists(st.integers(0, ONE), min_size=4, max_size=4), min_size=1, max_size=8),
    st.integers(0, 3 * (1 << 16)),
)
def test_normalising_near_one_is_normalising(rows: list[list[int]], short: int) -> None:
    """Rows made to sum to 1.0 but for a little, or for more, or to nothing: the quick way gives the slow one's bits."""
    values = normalize(np.array(rows, np.int64), axis=1)
    values[:, 0] = np.maximum(values[:, 0] - short, 0)
    assert (normalize_near_one(values) == normalize(values, axis=1)).all()


def test_normalising_near_one_at_its_limits() -> None:
    """One value that is all of the row, and rows just inside and outside of what the quick way takes."""
    for short in (0, 1, 2, 65_535, 65_536, 65_537, ONE - 1):
        for first in (0, 1, ONE // 2, ONE - short):
            row = np.array([[first, ONE - short - first]], np.int64)
            if row.min() >= 0:
                assert (normalize_near_one(row) == normalize(row, axis=1)).all(), (short, first)
