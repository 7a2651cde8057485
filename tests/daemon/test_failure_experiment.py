"""What the failure experiment calls recovered, on made-up lives; the command itself plays with real daemons."""

from __future__ import annotations

import numpy as np
import pytest

from moed.daemon.failure_experiment import Recovery, measure_recovery

BATCH_S, ROWS = 0.05, 32


def life(silent_s: float, *, slower: float = 1.0, stalls: float = 0.0, seed: int = 0) -> Recovery:
    """Batches for 10 s before a kill and 20 s after it, none in the first ``silent_s``, then each ``slower`` times as
    long; a share ``stalls`` of all batches takes ten times as long."""
    draw = np.random.default_rng(seed)
    times, at = [], -10.0
    while at < 20.0:
        at += BATCH_S * (slower if at > 0 else 1.0) * (10.0 if draw.random() < stalls else 1.0)
        if not 0.0 <= at < silent_s:
            times.append(at)
    return measure_recovery(times, [ROWS] * len(times))


@pytest.mark.parametrize("silent_s", [1.5, 3.0, 8.0])
def test_a_gap_is_as_long_as_it_is(silent_s: float) -> None:
    """The time to recovery is that of the gap, give or take the windows by which it is told."""
    found = life(silent_s)
    assert silent_s <= found.recovered_after_s <= silent_s + 2.0
    assert found.longest_pause_s == pytest.approx(silent_s, abs=2 * BATCH_S)
    assert found.before == pytest.approx(found.after, rel=0.1) == pytest.approx(ROWS / BATCH_S, rel=0.1)


def test_what_is_left_of_the_servers_is_enough_and_half_of_it_is_not() -> None:
    """A quarter slower counts as recovered at once, half as fast never does."""
    assert life(0.0, slower=1.25).recovered_after_s == 0.0
    assert life(0.0, slower=1.25).longest_pause_s == pytest.approx(1.25 * BATCH_S)
    assert life(0.0, slower=2.0).recovered_after_s == float("inf")


@pytest.mark.parametrize("seed", range(5))
def test_stalls_of_the_machine_are_not_taken_for_the_failure(seed: int) -> None:
    """One batch in fifty takes ten times as long all the time: the gap is still told, and without one nothing is."""
    assert life(0.0, stalls=0.02, seed=seed).recovered_after_s <= 0.5 * 4
    assert 2.0 <= life(2.0, stalls=0.02, seed=seed).recovered_after_s <= 5.0
