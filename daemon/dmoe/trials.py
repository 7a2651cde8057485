"""What the dmoe experiment plays: learning with and without failures, throughput by delay, and servers that die."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import trio

from moed.daemon.simulation.schedule import same_schedule
from moed.models.beam import Grid
from moed.models.digits import PREFIX, DigitsConfig, Learner, StepReport, load_digits

from .world import Conditions, VirtualClock, World, make_layers

EXPERT_RATE = 1e-3
HARD = Conditions(mean_delay_s=1.0, failure_rate=0.1)
CALM = Conditions()
WINDOW_S = 2.0
IMPATIENT_GRACE_S = 0.3
"""Where throughput is measured, the slowest answers are left out after this; the share of calls that this costs is
told."""
RECOVERED_SHARE = 0.7
"""The throughput counts as recovered with the first window at this share of what it was: about what is left of servers.
Single windows hold few batches, and some are slow before the death as after it."""


@dataclass(frozen=True, slots=True)
class Play:
    """How long, how many batches at a time, and when a share of the servers dies (after ``kill_after`` steps)."""

    steps: int
    in_flight: int
    kill_share: float = 0.0
    kill_after: int = 0


@dataclass(slots=True)
class Outcome:
    """Every step with the time of its end, when servers died, and the accuracy at the end: under the same conditions,
    and without delays and failures."""

    ended_s: list[float] = field(default_factory=list)
    steps: list[StepReport] = field(default_factory=list)
    killed_at_s: float = math.nan
    accuracy: float = math.nan
    accuracy_calm: float = math.nan


def play(conditions: Conditions, plan: Play, seed: int, config: DigitsConfig | None = None) -> Outcome:
    """One life on virtual time; the same arguments always do the same. Raises `CorpusUnavailable`."""
    config = config or DigitsConfig()
    clock, outcome, grid = VirtualClock(), Outcome(), Grid(PREFIX, config.grid)
    data = load_digits(seed)

    async def live(folder: Path) -> None:
        names = [grid.name(place) for place in range(grid.places)]
        world = World(clock, conditions, make_layers(names, config.width, EXPERT_RATE, folder, seed), seed)
        learner = Learner(config, data, world, seed)
        async with trio.open_nursery() as nursery:
            await nursery.start(world.run)
            await _learn(clock, world, learner, plan, outcome)
            if not plan.kill_share:
                outcome.accuracy = await clock.compute(learner.accuracy)
                world.conditions = CALM
                outcome.accuracy_calm = await clock.compute(learner.accuracy)
            nursery.cancel_scope.cancel()

    with same_schedule(seed), tempfile.TemporaryDirectory(prefix="moed-dmoe-") as folder:
        trio.run(live, Path(folder), clock=clock.clock)
    return outcome


async def _learn(clock: VirtualClock, world: World, learner: Learner, plan: Play, outcome: Outcome) -> None:
    started = 0

    async def caller(number: int) -> None:
        nonlocal started
        await trio.sleep(number / 1000)  # two that compute at one moment would come in the order of the machine
        while started < plan.steps:
            started += 1
            report = await clock.compute(learner.step)
            outcome.ended_s.append(trio.current_time())
            outcome.steps.append(report)
            if plan.kill_share and len(outcome.steps) == plan.kill_after:
                world.kill(math.ceil(plan.kill_share * len(world.servers)))
                outcome.killed_at_s = trio.current_time()

    async with trio.open_nursery() as callers:
        for number in range(plan.in_flight):
            callers.start_soon(caller, number)


def converge(seed: int, *, steps: int, in_flight: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The same learning twice: without delays and failures, and with both."""
    runs = {}
    for name, conditions in (("calm", CALM), ("hard", HARD)):
        outcome = play(conditions, Play(steps, in_flight), seed)
        runs[name] = _describe(outcome, DigitsConfig())
        say(f"seed {seed} {name}: accuracy {outcome.accuracy_calm:.4f}, {outcome.ended_s[-1]:.0f} s of virtual time")
    return {"seed": seed, **runs}


def _describe(outcome: Outcome, config: DigitsConfig) -> dict[str, Any]:
    losses = [one.loss for one in outcome.steps]
    late = outcome.steps[-len(outcome.steps) // 4 :]
    picked = torch.cat([one.picked.flatten() for one in late])
    load = torch.bincount(picked[picked >= 0], minlength=math.prod(config.grid)).double()
    load /= load.mean()
    return {
        "accuracy": outcome.accuracy_calm,
        "accuracy_under_the_same_conditions": outcome.accuracy,
        "loss": [float(np.nanmean(losses[at : at + 10])) for at in range(0, len(losses), 10)],
        "virtual_s": outcome.ended_s[-1],
        "rows_unanswered": sum(one.rows_unanswered for one in outcome.steps),
        "calls_without_answer": sum(one.calls_failed for one in outcome.steps),
        "gradient_rows_lost": sum(one.gradients_lost for one in outcome.steps),
        "load_max_over_mean": float(load.max()),
        "load_min_over_mean": float(load.min()),
        "idle_share": float((load == 0).double().mean()),
        "load": sorted((round(float(one), 3) for one in load), reverse=True),
    }


def throughput(delay_s: float, seed: int, *, steps: int, in_flight: int) -> dict[str, Any]:
    """Rows learned from in a second of virtual time, once all batches are under way."""
    config = DigitsConfig(grace_s=IMPATIENT_GRACE_S)
    outcome = play(Conditions(mean_delay_s=delay_s), Play(steps, in_flight), seed, config)
    start, end = len(outcome.steps) // 4, len(outcome.steps) - in_flight // 2
    rows = sum(one.rows_answered for one in outcome.steps[start:end])
    return {
        "mean_delay_s": delay_s,
        "in_flight": in_flight,
        "grace_s": IMPATIENT_GRACE_S,
        "calls_left_out": sum(one.calls_failed for one in outcome.steps)
        / sum(len(set(one.picked.flatten().tolist())) for one in outcome.steps),
        "rows_per_s": rows / (outcome.ended_s[end - 1] - outcome.ended_s[start - 1]),
    }


def by_delay(runs: Sequence[dict[str, Any]]) -> list[tuple[int, float, list[float], float]]:
    """Batches under way and mean delay, with the rows a second of every seed, and the share of calls left out."""
    rows = []
    for crowd, delay_s in sorted({(one["in_flight"], one["mean_delay_s"]) for one in runs}):
        same = [one for one in runs if (one["in_flight"], one["mean_delay_s"]) == (crowd, delay_s)]
        left_out = float(np.mean([one["calls_left_out"] for one in same]))
        rows.append((crowd, delay_s, [one["rows_per_s"] for one in same], left_out))
    return rows


def die(seed: int, *, steps: int, in_flight: int, share: float = 0.3) -> dict[str, Any]:
    """A share of the servers dies midway: how long until rows are learned from as fast as the rest can."""
    conditions = Conditions(mean_delay_s=0.2)
    # twenty mean delays: who waits for a dead server waits so long, once
    config = DigitsConfig(deadline_s=20 * conditions.mean_delay_s)
    outcome = play(conditions, Play(steps, in_flight, share, steps // 2), seed, config)
    times, rows = np.array(outcome.ended_s), np.array([one.rows_answered for one in outcome.steps])
    killed = outcome.killed_at_s
    losses = np.array([one.loss for one in outcome.steps])

    def rate(start_s: float, end_s: float) -> float:
        return float(rows[(times > start_s) & (times <= end_s)].sum() / (end_s - start_s))

    before = rate(killed / 2, killed)
    last_s = float(times[-in_flight])
    windows = np.arange(killed, last_s - WINDOW_S, 0.25)
    fast = (float(at) for at in windows if rate(at, at + WINDOW_S) >= RECOVERED_SHARE * before)
    first = next(fast, math.inf)
    return {
        "seed": seed,
        "conditions": asdict(conditions),
        "deadline_s": config.deadline_s,
        "servers_killed": math.ceil(share * conditions.servers),
        "killed_at_s": killed,
        "rows_per_s_before": before,
        "rows_per_s_at_the_end": rate((killed + last_s) / 2, last_s),
        "recovered_after_s": first + WINDOW_S - killed if first > killed else 0.0,
        "rows_unanswered": sum(one.rows_unanswered for one in outcome.steps),
        "loss_before": float(np.nanmean(losses[(times > killed / 2) & (times <= killed)])),
        "loss_at_the_end": float(np.nanmean(losses[-steps // 8 :])),
        "rates": [[float(at - killed), rate(at, at + 1.0)] for at in np.arange(killed - 10, last_s - 1.0, 0.5)],
    }


def settings() -> dict[str, Any]:
    """What the numbers stand for."""
    return {
        "data": "scikit-learn digits, 1,797 images, every fifth held out",
        "model": msgspec.to_builtins(DigitsConfig()),
        "expert": {"layer": "ffn", "rate": EXPERT_RATE, "optimizer": "Adam, a step for each batch of its device"},
        "hard": asdict(HARD),
        "calm": asdict(CALM),
    }
