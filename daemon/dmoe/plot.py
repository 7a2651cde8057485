"""Draws what the dmoe experiment found: learning, load, throughput, and what happens when servers die."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moed.daemon.experiment_plots import new_figure, save_figure

from .trials import by_delay

_CALM, _HARD = "#1f5f8b", "#b3541e"


def plot_dmoe(found: dict[str, Any], path: Path) -> None:
    """Four panels. Raises `ConfigError` where matplotlib is missing or the file cannot be written."""
    figure, first = new_figure(11, 7.5)
    first.remove()
    learning, load, speed, deaths = figure.subplots(2, 2).flatten()
    for name, colour in (("calm", _CALM), ("hard", _HARD)):
        runs = [run[name] for run in found["convergence"]]
        losses = np.array([run["loss"] for run in runs])
        steps = 10 * (np.arange(losses.shape[1]) + 1)
        label = "no delay, no failure" if name == "calm" else "1 s mean delay, 10 % of calls fail"
        learning.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        learning.plot(steps, losses.mean(axis=0), color=colour, label=label)
        loads = np.array([run["load"] for run in runs])
        load.plot(loads.mean(axis=0), color=colour, label=label)
    learning.set_xlabel("batches")
    learning.set_ylabel("loss (range of seeds)")
    learning.set_yscale("log")
    learning.set_title(f"Held-out accuracy lost: {found['verdict']['accuracy_lost_points']['value']:.2f} points")
    load.axhline(3, color="0.5", linewidth=0.8, linestyle="--")
    load.set_xlabel("experts by load")
    load.set_ylabel("load over the mean")
    load.set_title("Load of the experts, last quarter")
    for crowd, colour in zip(sorted({one["in_flight"] for one in found["throughput"]}), (_CALM, _HARD), strict=False):
        speeds = [
            (1000 * delay_s, min(rates), float(np.mean(rates)), max(rates))
            for of, delay_s, rates, _ in by_delay(found["throughput"])
            if of == crowd
        ]
        delays, least, mean, most = zip(*speeds, strict=True)
        speed.plot(delays, mean, "o-", color=colour, label=f"{crowd} batches under way")
        speed.fill_between(delays, least, most, color=colour, alpha=0.2)
    speed.legend(fontsize=8)
    speed.set_ylim(bottom=0)
    speed.set_xlabel("mean delay of a call (ms)")
    speed.set_ylabel("rows learned from per second")
    speed.set_title("Throughput (range of seeds)")
    for one in found["deaths"]:
        deaths.plot(*zip(*one["rates"], strict=True), linewidth=1, label=f"seed {one['seed']}")
    deaths.axvline(0, color="0.3", linewidth=0.9, linestyle="--")
    deaths.set_ylim(bottom=0)
    deaths.set_xlabel("seconds after 5 of 16 servers died")
    deaths.set_ylabel("rows learned from per second")
    deaths.set_title(f"Recovered after: {_seconds(found['verdict']['recovered_after_s']['value'])}")
    for axes in (learning, load, deaths):
        axes.legend(fontsize=8)
    for axes in (learning, load, speed, deaths):
        axes.grid(alpha=0.25)
        axes.title.set_fontsize(10)
    save_figure(figure, path)


def plot_failure(found: dict[str, Any], path: Path) -> None:
    """Rows learned from, before and after one server is killed. Raises as `plot_dmoe`."""
    figure, axes = new_figure(8, 4)
    axes.plot(*zip(*found["rates"], strict=True), color=_CALM)
    axes.axvline(0, color=_HARD, linewidth=0.9, linestyle="--")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"seconds after one of {found['servers']} servers was killed")
    axes.set_ylabel("rows learned from per second")
    axes.set_title(
        f"No batch for {found['longest_pause_s']:.1f} s; "
        f"rows that were not finite: {found['verdict']['rows_not_finite']['value']}",
        fontsize=11,
    )
    axes.grid(alpha=0.25)
    save_figure(figure, path)


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"
