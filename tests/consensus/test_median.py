"""Tests of the weighted median: the sort, the short cut for many voters, and the definition agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moed.consensus import median
from moed.consensus.fixedpoint import ONE, U16_MAX, normalize, ratio
from moed.consensus.median import weighted_median

KAPPA = ratio(32_767, U16_MAX)


def by_definition(scores: list[int], stake: list[int], kappa: int) -> int:
    """The smallest score with more than the minority of the stake at or under it; the largest if there is none."""
    minority = sum(stake) - kappa
    for candidate in sorted(scores):
        if sum(held for score, held in zip(scores, stake, strict=True) if score <= candidate) > minority:
            return candidate
    return max(scores)


@given(
    st.lists(st.tuples(st.integers(0, ONE), st.integers(1, 1 << 40)), min_size=1, max_size=60),
    st.integers(0, U16_MAX),
    st.booleans(),
)
def test_median_is_what_the_definition_says(votes: list[tuple[int, int]], kappa_u16: int, few_scores: bool) -> None:
    """By sorting and by narrowing, with many equal scores and with few, for any kappa."""
    scores = [score % 4 if few_scores else score for score, _ in votes]
    stake = normalize(np.array([held for _, held in votes], np.int64))
    stake = np.maximum(stake, 1)
    kappa = ratio(kappa_u16, U16_MAX)
    expected = by_definition(scores, stake.tolist(), kappa)
    given_scores = np.array([scores, scores], np.int64)
    assert weighted_median(given_scores, stake, kappa).tolist() == [expected] * 2
    minority = int(stake.sum()) - kappa
    if 0 <= minority < int(stake.sum()):
        assert median._by_narrowing(given_scores, stake, minority).tolist() == [expected] * 2


@pytest.mark.parametrize("kind", ["random", "mostly zero", "equal", "sorted", "sample misleads"])
def test_narrowing_finds_what_sorting_finds(kind: str) -> None:
    """Two thousand voters: whatever the sample of voters looks like, it changes the time and not the result."""
    draw = np.random.default_rng(7)
    voters = 2 * median.SORTED_VOTERS
    scores = draw.integers(0, ONE // 500, (20, voters))
    stake = normalize(draw.integers(1, 1 << 40, voters))
    if kind == "mostly zero":
        scores *= draw.random(scores.shape) < 0.55
    elif kind == "equal":
        scores[:] = 7
    elif kind == "sorted":
        scores.sort(axis=1)
    elif kind == "sample misleads":
        scores[:, ::8] = ONE // 400  # all that the sample sees lies above the rest
    minority = int(stake.sum()) - KAPPA
    by_sorting = median._by_sorting(scores, stake, minority)
    assert (median._by_narrowing(scores, stake, minority) == by_sorting).all()
    assert (weighted_median(scores, stake, KAPPA) == by_sorting).all()


def test_without_voters_the_median_is_zero() -> None:
    """A network in which nobody may vote agrees on nothing."""
    assert weighted_median(np.zeros((3, 0), np.int64), np.zeros(0, np.int64), KAPPA).tolist() == [0, 0, 0]
