"""The games that attackers play: what a copier earns, and where a team keeps its stake at no price or at any."""

from __future__ import annotations

from moed.consensus.games import CopyRules, GameRules, TeamGame, copier_advantage


def test_copying_pays_in_the_open_and_not_when_hidden_and_moving() -> None:
    """Open weights pay the copier more than work does; hidden ones pay it less, once the miners' worth moves."""
    for version in (1, 3):
        in_the_open, hidden, still = (
            [
                copier_advantage(seed, CopyRules(drift=drift, hidden=is_hidden, yuma_version=version))
                for seed in range(5)
            ]
            for drift, is_hidden in ((0.4, False), (0.4, True), (0.0, True))
        )
        assert min(in_the_open) > 1 > max(hidden)
        assert min(still) > 1  # where nothing changes an old copy is as good as a fresh one: no hiding helps


def test_a_team_keeps_its_stake_at_some_utility_or_at_none() -> None:
    """A majority keeps it from a point on, which moves with the cabal's weight; a tenth of the stake never does."""
    majority, tenth = (TeamGame(1, stake, GameRules(), validators=16, servers=32) for stake in (0.6, 0.1))
    assert tenth.retaining_utility(1.0) == 1.0
    for cabal_weight in (0.0, 0.8):
        point = majority.retaining_utility(cabal_weight)
        assert 0 < point < 1
        assert majority.play(point - 0.02, cabal_weight) < 0.6 <= majority.play(point + 0.02, cabal_weight)
