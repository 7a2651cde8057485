"""`moed experiment dmoe`: 64 remote experts learn digits while links are late, calls fail and servers die."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from moed.daemon.errors import ConfigError
from moed.daemon.parallel_plays import play_all
from moed.daemon.tables import Table
from moed.models.digits import load_digits
from moed.models.errors import CorpusUnavailable

from . import trials
from .finding import find_experts

Say = Callable[[str], None]

STEPS, IN_FLIGHT = 350, 4
CROWDS = {64: (0.0, 0.1, 0.2, 0.4), 128: (0.0, 0.2)}
"""Batches under way where throughput is measured, and the mean delays: as many as the published trial had callers, and
twice as many."""
SEARCHES = 60


def dmoe(*, seeds: int, nodes: Sequence[int], say: Say) -> dict[str, Any]:
    """All of it; ``nodes`` are the sizes of the networks that experts are searched in. Raises `ConfigError`.

    The parts are played beside each other in processes, to which ``say`` must be able to go.
    """
    say(f"seeds 0 to {seeds - 1}")
    try:
        load_digits(0)
    except CorpusUnavailable as error:
        raise ConfigError(str(error), "and start again") from error
    parts: dict[tuple[str, float, int, int], Callable[[], dict[str, Any]]] = {
        **{("search", n, 0, 0): partial(find_experts, n, SEARCHES, 0, say) for n in sorted(nodes, reverse=True)},
        **{
            ("convergence", 0, 0, seed): partial(trials.converge, seed, steps=STEPS, in_flight=IN_FLIGHT, say=say)
            for seed in range(seeds)
        },
        **{
            ("throughput", delay_s, crowd, seed): partial(_measure_throughput, delay_s, crowd, seed, say)
            for crowd, delays_s in CROWDS.items()
            for delay_s in delays_s
            for seed in range(seeds)
        },
        **{("deaths", 0, 0, seed): partial(_kill_servers, seed, say) for seed in range(seeds)},
    }
    played = dict(zip(parts, play_all(list(parts.values())), strict=True))
    found = {
        kind: [one for (of, *_), one in sorted(played.items(), key=lambda item: item[0]) if of == kind]
        for kind in ("convergence", "throughput", "deaths", "search")
    }
    return {
        "experiment": "dmoe",
        "seeds": list(range(seeds)),
        "steps": STEPS,
        "in_flight": IN_FLIGHT,
        "settings": trials.settings(),
        "verdict": verdict(found),
        **found,
    }


def _measure_throughput(delay_s: float, crowd: int, seed: int, say: Say) -> dict[str, Any]:
    measured = trials.throughput(delay_s, seed, steps=5 * crowd, in_flight=crowd)
    say(f"seed {seed}, {crowd} batches under way, mean delay {delay_s:g} s: {measured['rows_per_s']:.0f} rows/s")
    return measured


def _kill_servers(seed: int, say: Say) -> dict[str, Any]:
    outcome = trials.die(seed, steps=260, in_flight=16)
    say(f"seed {seed}: recovered {outcome['recovered_after_s']:.1f} s after servers died")
    return outcome


def verdict(found: dict[str, Any]) -> dict[str, Any]:
    """Each number that was promised, its bound, and whether it holds."""
    calm = [run["calm"]["accuracy"] for run in found["convergence"]]
    hard = [run["hard"]["accuracy"] for run in found["convergence"]]
    every = [run[kind] for run in found["convergence"] for kind in ("calm", "hard")]
    rate = {
        (crowd, delay_s): float(np.mean(rates)) for crowd, delay_s, rates, _ in trials.by_delay(found["throughput"])
    }
    lost = 100 * (float(np.mean(calm)) - float(np.mean(hard)))
    rows = {
        "accuracy_lost_points": (lost, "at most 1", lost <= 1),
        "load_max_over_mean": _most([one["load_max_over_mean"] for one in every], 3.0),
        "idle_share": _most([one["idle_share"] for one in every], 0.05),
        **{f"kept_at_200_ms_{crowd}_under_way": _least([rate[crowd, 0.2] / rate[crowd, 0.0]], 0.7) for crowd in CROWDS},
        "recovered_after_s": _most([one["recovered_after_s"] for one in found["deaths"]], 10.0),
    }
    for one in found["search"]:
        rows[f"search_recall_{one['nodes']}_nodes"] = _least([one["widened"]["recall"]], 0.95)
    return {
        name: {"value": value if math.isfinite(value) else None, "target": target, "met": met}
        for name, (value, target, met) in rows.items()
    }


def _most(values: Sequence[float], bound: float) -> tuple[float, str, bool]:
    return max(values), f"at most {bound:g}", max(values) <= bound


def _least(values: Sequence[float], bound: float) -> tuple[float, str, bool]:
    return min(values), f"at least {bound:g}", min(values) >= bound


SPEED_HEADS = (">under way", ">mean delay (s)", ">rows/s", ">least", ">most", ">calls left out")


def dmoe_tables(found: dict[str, Any]) -> list[Table]:
    """The numbers for people."""
    runs = [
        [
            str(run["seed"]),
            name,
            f"{run[name]['accuracy']:.4f}",
            f"{run[name]['accuracy_under_the_same_conditions']:.4f}",
            f"{run[name]['load_max_over_mean']:.2f}",
            f"{run[name]['idle_share']:.1%}",
            f"{run[name]['calls_without_answer']:,}",
            str(run[name]["rows_unanswered"]),
        ]
        for run in found["convergence"]
        for name in ("calm", "hard")
    ]
    heads = (">seed", "links", ">accuracy", ">as trained", ">max load", ">idle", ">calls lost", ">rows unanswered")
    spreads = [
        [name, f"{np.mean(values):.4f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.4f}"]
        for name in ("calm", "hard")
        for values in [[run[name]["accuracy"] for run in found["convergence"]]]
    ]
    speeds = [
        [
            str(crowd),
            f"{delay_s:g}",
            f"{np.mean(rates):.0f}",
            f"{min(rates):.0f}",
            f"{max(rates):.0f}",
            f"{left_out:.1%}",
        ]
        for crowd, delay_s, rates, left_out in trials.by_delay(found["throughput"])
    ]
    searches = [
        [str(one["nodes"]), kind, *(f"{one[kind][name]:.3f}" for name in ("p50_s", "p95_s", "recall"))]
        for one in found["search"]
        for kind in ("widened", "fixed")
    ]
    verdicts = [
        [name, "never" if one["value"] is None else f"{one['value']:.3f}", one["target"], "yes" if one["met"] else "NO"]
        for name, one in found["verdict"].items()
    ]
    return [
        Table("Learning digits through 64 remote experts, top 4", heads, runs),
        Table("Held-out accuracy, mean ± deviation", ("links", ">accuracy"), spreads),
        Table("Throughput by batches under way, over the seeds", SPEED_HEADS, speeds),
        Table("Cold search for the best 4", (">nodes", "beam", ">p50 (s)", ">p95 (s)", ">recall"), searches),
        Table("Promised", ("what", ">value", ">target", "met"), verdicts),
    ]
