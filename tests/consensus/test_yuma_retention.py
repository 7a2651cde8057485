"""Tests of the epoch on the published two-team game: how much honest work keeps an honest majority its stake.

Numbers: the retention plots of the reference's docs/consensus.md (opentensor/subtensor). They were drawn with another
generator of random numbers, so a mean over seeds is compared, within the spread between draws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from moed.consensus.fixedpoint import U16_MAX
from moed.consensus.games import GRID_POINTS, GRID_STEP, GameRules, TeamGame
from support.published_draws import PublishedDraws

Reader = Callable[[str], Any]

SEEDS = 3
VERTICES_PER_LINE = 3
SPREAD = 0.006  # of honest emission between these means and the published draw; seen: 0.003 from stake .60 up
SPREAD_AT_HALF = 0.02  # near an even split single validators decide: one draw's deviation is 0.009; seen: 0.015


@cache
def games(honest_stake: float, rules: GameRules) -> list[TeamGame]:
    """The draws that every vertex of a line is played with."""
    return [TeamGame(seed, honest_stake, rules) for seed in range(SEEDS)]


def mean_emission(honest_stake: float, x: float, y: float, params: dict[str, float]) -> float:
    rules = GameRules(
        sigma=params["weight_stddev"],
        kappa=params["kappa"],
        beta=params["bonds_penalty"],
        xi=params["validator_share_xi"],
    )
    return float(np.mean([game.play(x, max(y, 0.0)) for game in games(honest_stake, rules)]))


def sampled(contour: list[list[list[float]]]) -> list[list[float]]:
    """A few vertices of a line, its first and last among them."""
    vertices = [vertex for part in contour for vertex in part]
    return [vertices[round(at * (len(vertices) - 1) / (VERTICES_PER_LINE - 1))] for at in range(VERTICES_PER_LINE)]


def test_published_retention_lines(published_vectors: Reader) -> None:
    """On the published lines an honest majority earns just its share of the stake.

    Left out: stakes up to .60 under kappa .6, where no majority decides and the line jumps.
    """
    lines = 0
    for name, plot in published_vectors("yuma/retention_contours.json")["plots"].items():
        for stake, contour in plot.get("contours", {}).items():
            share = float(stake)
            if share <= plot["params"]["kappa"]:
                continue
            spread = SPREAD if share >= 0.6 else SPREAD_AT_HALF
            for x, y in sampled(contour):
                emission = mean_emission(share, x, y, plot["params"])
                assert emission == pytest.approx(share, abs=spread), (name, stake, x, y)
            lines += 1
    assert lines == 9 * 11 - 3


def on_the_grid(game: TeamGame, x: float, y: float) -> float:
    """Honest emission between four points of the published grid."""
    left, low = min(int(x / GRID_STEP), GRID_POINTS - 2), min(int(y / GRID_STEP), GRID_POINTS - 2)
    right_part, high_part = x / GRID_STEP - left, y / GRID_STEP - low
    corners = [
        (1 - right_part, 1 - high_part, left, low),
        (right_part, 1 - high_part, left + 1, low),
        (1 - right_part, high_part, left, low + 1),
        (right_part, high_part, left + 1, low + 1),
    ]
    return sum(
        across * along * game.play(column * GRID_STEP, row * GRID_STEP)
        for across, along, column, row in corners
        if across * along > 1e-9
    )


def test_published_draws_give_the_published_point() -> None:
    """With the generator of the plots: 60 % of the stake is kept from a utility of .7329 on."""
    game = TeamGame(0, 0.6, GameRules(), normal=PublishedDraws())
    assert game.retaining_utility(0.8) == pytest.approx(0.7329, abs=6e-4)


def test_published_draws_lie_on_the_published_lines(published_vectors: Reader) -> None:
    """On every plot, for .51 and .60 of the stake, within the rounding of the printed grid and of its vertices.

    Left out, as above: both stakes under kappa .6, where no majority decides and the line jumps.
    """
    checked = 0
    for name, plot in published_vectors("yuma/retention_contours.json")["plots"].items():
        params = plot["params"]
        rules = GameRules(
            sigma=params["weight_stddev"],
            kappa=params["kappa"],
            beta=params["bonds_penalty"],
            xi=params["validator_share_xi"],
        )
        for stake in sorted({"0.51", "0.60"} & set(plot.get("contours", {}))):
            if float(stake) <= params["kappa"]:
                continue
            game = TeamGame(0, float(stake), rules, normal=PublishedDraws())
            for x, y in sampled(plot["contours"][stake]):
                assert on_the_grid(game, x, max(y, 0.0)) == pytest.approx(float(stake), abs=6e-4), (name, stake, x, y)
                checked += 1
    assert checked == 8 * 2 * VERTICES_PER_LINE


def test_published_emission_lines(published_vectors: Reader) -> None:
    """The published lines of equal honest emission, at 60 % and 70 % of honest stake."""
    for plot in published_vectors("yuma/retention_contours.json")["emission_plots"].values():
        for level, contour in plot["contours"].items():
            for x, y in sampled(contour):
                emission = mean_emission(plot["honest_stake"], x, y, plot["params"])
                assert emission == pytest.approx(float(level), abs=SPREAD), (level, x, y)


def test_published_guarantees(published_vectors: Reader) -> None:
    """Eighteen points at which the source's authors expected an honest majority to keep its stake."""
    cases = published_vectors("yuma/retention_contours.json")["disabled_tests"]["cases"]
    assert len(cases) == 18
    for stake, utility, cabal_weight, stddev, penalty in cases:
        params = {"kappa": 0.5, "bonds_penalty": penalty / U16_MAX, "weight_stddev": stddev, "validator_share_xi": 0.5}
        assert mean_emission(stake, utility, cabal_weight, params) >= stake - SPREAD
