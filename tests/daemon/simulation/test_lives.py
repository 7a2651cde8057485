"""Whole lives of networks under faults: no promise breaks, a planted bug is found, and a seed says it all."""

from __future__ import annotations

import pytest

from moed.consensus.blocks import Vote
from moed.consensus.tally import Tally
from moed.consensus.turns import power_of
from moed.daemon.simulation.world import InvariantBroken, simulate


@pytest.mark.parametrize("seed", range(4))
def test_a_life_breaks_no_promise(seed: int) -> None:
    """Four nodes, liars under a third of the stake: one chain, one root, supply conserved, progress after healing."""
    report = simulate(seed, nodes=4, hours=0.15)
    print(report.line())
    assert max(report.heights) > 0


def test_the_same_seed_is_the_same_life() -> None:
    """Every final block at the same virtual moment on the same node, so that a failure can be replayed."""
    one, two = (simulate(3, nodes=4, hours=0.12) for _ in range(2))
    assert one == two
    assert one.trace != simulate(5, nodes=4, hours=0.12).trace


def test_a_vote_counted_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation is worth something: with this bug planted, one of a few seeds shows it."""
    honest = Tally.add

    def add(self: Tally, vote: Vote) -> Vote | None:
        if self.has_vote(vote):
            ballot = self._ballots[vote.kind, vote.round]
            ballot.power += power_of(self.validators, vote.validator)
            ballot.power_by_hash[vote.block_hash] += power_of(self.validators, vote.validator)
            return None
        return honest(self, vote)

    monkeypatch.setattr(Tally, "add", add)
    with pytest.raises(InvariantBroken, match="seed"):
        live_ten()


def live_ten() -> None:
    for seed in range(10):
        simulate(seed, nodes=4, hours=0.15)
