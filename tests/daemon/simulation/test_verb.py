"""`moed simulate` names what it can do, prints what happened, and says how a failure is seen again."""

from __future__ import annotations

import json

from click.testing import CliRunner

from moed.daemon.simulate_verb import BUGS, PROFILES, simulate
from moed.daemon.simulation.faults import Profile
from moed.daemon.simulation.mutants import MUTANTS


def test_the_choices_are_those_of_the_simulation() -> None:
    """The verb lists bugs and profiles without importing the simulation; both lists are complete."""
    assert set(BUGS) == set(MUTANTS)
    assert set(PROFILES) == {profile.name.lower() for profile in Profile}


def test_a_life_is_one_json_object() -> None:
    """With --json each life is a line that a program reads."""
    result = CliRunner().invoke(simulate, ["--seed", "2", "--hours", "0.1", "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert (report["seed"], report["nodes"]) == (2, 4)
    assert min(report["heights"]) > 0


def test_a_hunt_for_a_bug_ends_at_its_seed() -> None:
    """A planted bug is named with its seed and moment; not to find it is a failure."""
    found = CliRunner().invoke(simulate, ["--hours", "0.1", "--mutant", "vote-twice"])
    assert found.exit_code == 0
    assert "vote-twice is found: seed 0, at" in found.output
    unfound = CliRunner().invoke(simulate, ["--hours", "0.1", "--profile", "weather", "--mutant", "lock-forgotten"])
    assert unfound.exit_code == 1
