"""Whole lives of networks under faults: no promise breaks, planted bugs are found, and a seed says it all."""

from __future__ import annotations

import pytest

from moed.daemon.simulation.faults import Profile
from moed.daemon.simulation.mutants import planted
from moed.daemon.simulation.witness import InvariantBroken
from moed.daemon.simulation.world import simulate


@pytest.mark.parametrize("seed", range(4))
def test_a_life_breaks_no_promise(seed: int) -> None:
    """Four nodes, liars under a third of the stake: one chain, one root, supply conserved, progress after healing."""
    report = simulate(seed, nodes=4, hours=0.12)
    print(report.line())
    assert max(report.heights) > 0


def test_the_same_seed_is_the_same_life() -> None:
    """Every final block at the same virtual moment on the same node, so that a failure can be replayed."""
    one, two = (simulate(3, nodes=4, hours=0.1) for _ in range(2))
    assert one == two
    assert one.trace != simulate(5, nodes=4, hours=0.1).trace


@pytest.mark.parametrize(
    ("bug", "profile"),
    [
        ("vote-twice", Profile.WEATHER),
        ("no-journal", Profile.POWER),
        pytest.param("late-journal", Profile.POWER, marks=pytest.mark.slow),
        ("no-lock", Profile.SCHEDULE),
        pytest.param("old-validators", Profile.STAKE, marks=pytest.mark.slow),
    ],
)
def test_a_planted_bug_is_found(bug: str, profile: Profile) -> None:
    """The simulation is worth something: one of a few lives of the kind that is made for it shows each of these."""
    with planted(bug), pytest.raises(InvariantBroken, match="seed"):
        live_eight(profile)


def live_eight(profile: Profile) -> None:
    for seed in range(8):
        simulate(seed, nodes=4, hours=0.2, profile=profile)
