"""Promises about who earns what, each kept by real blocks: hidden weights, reveals, epochs and their payments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moed.consensus.fixedpoint import U16_MAX
from moed.consensus.games import GameRules, TeamGame
from moed.consensus.transactions import AddStake, Transfer
from moed.daemon.game_chain import play_on_chain
from support.chains import key
from support.epoch_life import CREDIT, EpochLife

CURVE = Path(__file__).parents[2] / "docs" / "experiments" / "collusion.json"


def test_b11_stake_decides_whose_scores_count() -> None:
    """Two validators want different work: the miners of the larger one are paid, until the other has more stake."""
    prose, code = 2, 3
    life = EpochLife((60, 40), 2, balances=(100,))
    wanted = {0: {prose: 1}, 1: {code: 1}}
    life.epoch(wanted)
    metagraph = life.epoch(wanted)
    assert metagraph[prose].incentive_emission > 0 == metagraph[code].incentive_emission
    bank = 4  # the key after the miners' holds what validator 1 is about to stake
    life.block((bank, Transfer(to=key(2).public_key, amount=91 * CREDIT)))
    metagraph = life.epoch(wanted, (1, AddStake(amount=90 * CREDIT)))
    assert life.stake(1) > life.stake(0)
    assert metagraph[code].incentive_emission > 0 == metagraph[prose].incentive_emission
    assert life.metagraph[code].emission > 0


def lived_with_a_newcomer(early: list[int], bonds_penalty_u16: int) -> EpochLife:
    """Validators of 100, 50 and 50; those in ``early`` rate the newcomer three epochs before all do, for two more."""
    settled, newcomer = 3, 4
    life = EpochLife((100, 50, 50), 2, bonds_penalty_u16=bonds_penalty_u16)
    with_it, without_it = {settled: 1, newcomer: 1}, {settled: 1}
    for _ in range(3):
        life.epoch({uid: with_it if uid in early else without_it for uid in range(3)})
    for _ in range(3):
        life.epoch(dict.fromkeys(range(3), with_it))
    return life


def test_b15_bonds_share_in_later_rewards_the_earlier_the_more() -> None:
    """Two equal validators agree on a newcomer at last; the one that rated it early holds more of it and is paid more.

    With the full bonds penalty that holds for who was early together with a majority; a lone early one buys nothing
    while its weight is clipped, unless the network sets the penalty lower.
    """
    newcomer = 4
    for early, penalty in (([0, 1], U16_MAX), ([1], 0)):
        life = lived_with_a_newcomer(early, penalty)
        metagraph = life.metagraph
        bonds = [dict(neuron.bonds).get(newcomer, 0) for neuron in metagraph[:3]]
        assert metagraph[newcomer].incentive_emission > 0
        assert bonds[1] > bonds[2] > 0, (early, bonds)
        assert metagraph[1].dividends_u16 > metagraph[2].dividends_u16
        assert life.stake(1) > life.stake(2)


def test_b16_dishonest_ranking_does_not_pay_right_of_the_curve() -> None:
    """In blocks: right of the published curve a cabal of 49 or 40 % earns less than its stake, whatever it weighs.

    And in the losing corner, which the curve shows too, 40 % with 30 % of the useful work earn more than theirs.
    """
    found = json.loads(CURVE.read_text())
    for stake in (0.51, 0.6):
        rightmost = max(utility for utility, _ in found["lines"][str(stake)])
        game = TeamGame(0, stake, GameRules())
        for cabal_weight in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
            assert game.play(rightmost + 0.03, cabal_weight) > stake, (stake, cabal_weight)
            # and what the committed curve says is what comes out now
            line = {weight: utility for utility, weight in found["lines"][str(stake)]}
            games = [TeamGame(seed, stake, GameRules()) for seed in range(found["line_seeds"])]
            utilities = [one.retaining_utility(cabal_weight) for one in games]
            assert sum(utilities) / len(utilities) == pytest.approx(line[cabal_weight], abs=1e-9)


@pytest.mark.parametrize(("utility", "keeps"), [(0.8, True), (0.7, False)], ids=["right of it", "losing corner"])
def test_b16_and_so_it_is_in_blocks(utility: float, keeps: bool, tmp_path: Path) -> None:
    """The honest 60 % through the ledger, on either side of the curve."""
    outcome = play_on_chain(TeamGame(0, 0.6, GameRules()), utility, 0.8, tmp_path)
    assert (outcome.honest_part > 0.6) is keeps


def test_b13_a_push_of_the_minority_does_not_move_the_consensus() -> None:
    """Three validators write rankings; the merged one lies with the majority, and the odd one loses dividends."""
    life = EpochLife((35, 35, 30), 2)
    rows = {0: {3: 60, 4: 40}, 1: {3: 60, 4: 40}, 2: {4: 1}}
    life.epoch(rows)
    metagraph = life.epoch(rows)
    assert metagraph[3].incentive_u16 / U16_MAX == pytest.approx(42 / (42 + 40), abs=1e-3)
    honest = [metagraph[uid].dividends_u16 / life.stake(uid) for uid in (0, 1)]
    assert metagraph[2].dividends_u16 / life.stake(2) < min(honest)


def test_b14_pay_follows_rank_through_the_epochs() -> None:
    """Three miners with weights 5 : 3 : 2 are paid 5 : 3 : 2 of every epoch's miners' half, to the unit."""
    life = EpochLife((60, 40), 3)
    rows = {0: {2: 5, 3: 3, 4: 2}, 1: {2: 5, 3: 3, 4: 2}}
    life.epoch(rows)
    for _ in range(2):
        paid = [neuron.incentive_emission for neuron in life.epoch(rows)[2:]]
        total = sum(paid)
        assert [amount / total for amount in paid] == pytest.approx([0.5, 0.3, 0.2], abs=1e-4)
        assert total == pytest.approx(life.head.params.emission_per_block * life.head.params.tempo / 2, rel=1e-6)
