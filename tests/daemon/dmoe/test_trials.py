"""Small slices of the dmoe experiment; `moed experiment dmoe` plays the whole."""

from __future__ import annotations

import math

from moed.daemon.dmoe import trials
from moed.daemon.dmoe.finding import find_experts
from moed.daemon.dmoe.trials import HARD, Play, play
from moed.daemon.dmoe.world import Conditions
from moed.models.digits import DigitsConfig

SMALL = DigitsConfig(width=16, grid=(4, 4))


def test_learning_goes_on_under_delays_and_failures() -> None:
    """The loss falls though calls are late and lost; nothing is NaN, and a life is repeated by its seed."""
    outcome = play(HARD, Play(steps=24, in_flight=4), seed=1, config=SMALL)
    losses = [one.loss for one in outcome.steps]
    assert all(math.isfinite(one) for one in losses)
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    assert sum(one.calls_failed for one in outcome.steps) > 0
    assert outcome.ended_s[-1] > 24 / 4  # seconds of virtual time: each batch waits for calls of a mean of 1 s
    again = play(HARD, Play(steps=24, in_flight=4), seed=1, config=SMALL)
    assert [one.loss for one in again.steps] == losses
    assert again.ended_s == outcome.ended_s


def test_dead_servers_are_left_out() -> None:
    """A quarter of the servers dies: in the end none of their experts is picked, and every row is answered."""
    conditions = Conditions(mean_delay_s=0.1, servers=4)
    outcome = play(conditions, Play(120, 4, 0.25, 16), seed=2, config=SMALL)
    assert math.isfinite(outcome.killed_at_s)
    assert all(math.isfinite(one.loss) for one in outcome.steps)
    late = outcome.steps[-4:]
    assert sum(one.rows_unanswered for one in late) == 0
    used = {int(one) for step in late for one in step.picked.flatten()}
    assert len({place % 4 for place in used}) == 3


def test_batches_under_way_hide_the_delay() -> None:
    """With sixteen at once much more is learned from in a second than with one, as calls travel meanwhile."""
    one = trials.throughput(0.05, 0, steps=8, in_flight=1)["rows_per_s"]
    many = trials.throughput(0.05, 0, steps=40, in_flight=16)["rows_per_s"]
    assert many > 4 * one


def test_a_cold_search_finds_the_best_experts() -> None:
    """In a small network of real DHT nodes a beam that is widened is exact, within a few round trips."""
    found = find_experts(14, 6, 3, lambda _text: None)
    assert found["widened"]["recall"] == 1.0
    assert found["fixed"]["recall"] >= 0.5
    assert 0 < found["widened"]["p50_s"] < 1.0
