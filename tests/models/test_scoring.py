"""Shapley values against their definition, and whole-number weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moed.models.scoring import (
    MAX_WEIGHT,
    Coalitions,
    Floats,
    ScoreBook,
    all_coalitions,
    integer_weights,
    shapley,
    shapley_exact,
    shapley_sampled,
)

values_of_games = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.floats(-8, 8), min_size=1 << n, max_size=1 << n).map(np.array)
)


@given(values_of_games)
@settings(max_examples=60, deadline=None)
def test_exact_values_are_the_mean_over_all_orders(values: Floats) -> None:
    """Against the definition: every order of arrival, one by one."""
    players = len(values).bit_length() - 1
    expected = np.zeros(players)
    orders = list(itertools.permutations(range(players)))
    for order in orders:
        mask = 0
        for player in order:
            expected[player] += values[mask | 1 << player] - values[mask]
            mask |= 1 << player
    assert shapley_exact(values) == pytest.approx(expected / len(orders), abs=1e-9)


@given(values_of_games)
@settings(max_examples=60, deadline=None)
def test_values_share_out_what_all_are_worth(values: Floats) -> None:
    """They add up to v(all) - v(none)."""
    assert shapley_exact(values).sum() == pytest.approx(values[-1] - values[0], abs=1e-9)


def glove_game(coalitions: Coalitions) -> Floats:
    """Twelve players: the first three own left gloves, the others right ones; a pair is worth 1."""
    pairs: Floats = np.minimum(coalitions[:, :3].sum(axis=1), coalitions[:, 3:].sum(axis=1)).astype(np.float64)
    return pairs


def test_sampled_values_approach_the_exact_ones() -> None:
    """Twelve players are 4,096 coalitions: exact by brute force here, sampled to within 0.05."""
    exact = shapley_exact(glove_game(all_coalitions(12)))
    sampled = shapley_sampled(glove_game, 12, 400, np.random.default_rng(2))
    assert np.abs(sampled - exact).max() < 0.05
    assert sampled.sum() == pytest.approx(exact.sum())


def test_up_to_eight_players_nothing_is_sampled() -> None:
    """The generator is not touched, and the value is that of the definition."""
    rng = np.random.default_rng(2)
    state = rng.bit_generator.state
    worth = np.arange(8.0)
    assert shapley(lambda coalitions: coalitions @ worth, 8, rng) == pytest.approx(worth)
    assert rng.bit_generator.state == state


def test_beyond_eight_players_it_samples_and_still_shares_out_everything() -> None:
    """An additive game is exact even then, because every order gives the same."""
    worth = np.arange(9.0)
    assert shapley(lambda coalitions: coalitions @ worth, 9, np.random.default_rng(0)) == pytest.approx(worth)


def test_the_average_starts_as_a_mean_and_then_moves() -> None:
    """Three measurements average evenly; with alpha 0.5 the share of the newest never falls below a half."""
    book = ScoreBook(alpha=0.1)
    for value in (1.0, 2.0, 6.0):
        book.record({4: value})
    assert book.scores == pytest.approx({4: 3.0})
    quick = ScoreBook(alpha=0.5)
    for value in (0.0, 0.0, 8.0):
        quick.record({1: value})
    assert quick.scores == {1: 4.0}
    assert quick.counts == {1: 3}
    quick.keep_only([])
    assert quick.scores == {}


def test_weights_are_whole_proportional_and_never_negative() -> None:
    """The best weighs the most there is; who harms weighs nothing; nobody worth anything gives all zeros."""
    assert integer_weights({2: 0.5, 1: 1.0, 3: -2.0}) == {1: MAX_WEIGHT, 2: round(MAX_WEIGHT / 2), 3: 0}
    assert integer_weights({1: -1.0, 2: 0.0}) == {1: 0, 2: 0}
    assert integer_weights({}) == {}
