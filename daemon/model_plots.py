"""Draws what the experiments with models found; needs matplotlib, which the extra ``plots`` installs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .experiment_plots import new_figure, save_figure

_LEAST_SHOWN = 1e-5  # nothing missing has no place on a logarithmic axis
_MIXTURE, _OTHER, _ORACLE = "#1f5f8b", "#9aa7b0", "#b3541e"


_LABELS = {
    "mixture": "mixture of two, chosen by the gate",
    "oracle": "oracle: the kind is told, its best miner answers",
    "uniform_average": "uniform average of all",
    "best_single": "best single miner",
}


def plot_mixture(found: Mapping[str, Any], path: Path) -> None:
    """Bars of losses for both casts of miners, the mean over the seeds with their range."""
    figure, axes = new_figure(7, 4.5)
    names = ("mixture", "oracle", "uniform_average", "best_single")
    colours = (_MIXTURE, _ORACLE, _OTHER, "#5d6a73")
    for cast, offset in (("specialists", 0), ("overlapping", len(names) + 1)):
        for at, (name, colour) in enumerate(zip(names, colours, strict=True)):
            one = found["spread"][f"{cast}: {name}"]
            reach = [[one["mean"] - one["min"]], [one["max"] - one["mean"]]]
            label = _LABELS[name] if not offset else None
            axes.bar(offset + at, one["mean"], yerr=reach, capsize=3, color=colour, label=label)
            axes.annotate(f"{one['mean']:.2f}", (offset + at, one["max"]), ha="center", va="bottom", fontsize=8)
    axes.set_xticks([1.5, len(names) + 2.5], ["4 specialists", "8 overlapping miners"])
    axes.set_ylabel("bits per byte of held-out text")
    axes.set_title(f"The mixture beside its members ({_seeds(found)})", fontsize=11)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def _seeds(found: Mapping[str, Any]) -> str:
    return f"{len(found['seeds'])} seeds" if len(found["seeds"]) > 1 else f"seed {found['seeds'][0]}"


def plot_specialist(found: Mapping[str, Any], path: Path) -> None:
    """How alike honest pairs and disguised copies are and what is missing, with the thresholds."""
    figure, axes = new_figure(7, 5)
    rates = [run["detection"] for run in found["runs"]]
    for name in rates[0]["disguises"]:
        rows = [one["disguises"][name] for one in rates]
        at = min(row["likeness_min"] for row in rows), max(max(row["missing_max"], _LEAST_SHOWN) for row in rows)
        axes.plot(*at, "o", color=_ORACLE)
        crowded = at[1] <= _LEAST_SHOWN  # there many stand side by side
        tilt = {"rotation": 75, "rotation_mode": "anchor", "va": "bottom"} if crowded else {"va": "center"}
        axes.annotate(f"  {name}", at, fontsize=7, **tilt)
    for one in rates:
        _mean, alike, missing = zip(*one["honest"].values(), strict=True)
        axes.plot(alike, missing, "x", color=_MIXTURE, markersize=5)
    axes.plot([], [], "o", color=_ORACLE, label="copies and relays, the worst test of each kind")
    axes.plot([], [], "x", color=_MIXTURE, label="honest pairs, the worst test of each")
    axes.axvline(rates[0]["threshold"], color="0.3", linewidth=0.9, linestyle="--")
    axes.hlines(rates[0]["max_missing"], rates[0]["akin"], rates[0]["threshold"], color="0.3", linewidth=0.9)
    axes.set_yscale("log")
    axes.set_xlabel("likeness on canaries (correlation of log-probabilities)")
    axes.set_ylabel("missing part of the original")
    axes.set_title(f"Flagged is who is right of or below the line ({_seeds(found)})", fontsize=11)
    axes.legend(fontsize=8, loc="center left")
    save_figure(figure, path)


def plot_distillation(found: Mapping[str, Any], path: Path) -> None:
    """The students' losses as they learn."""
    figure, axes = new_figure(7, 4.5)
    colours = {"alone": _OTHER, "exchange": _MIXTURE, "newcomer": _ORACLE}
    for number, run in enumerate(found["runs"]):
        for name, student in run["students"].items():
            steps, losses = zip(*student["curve"], strict=True)
            axes.plot(steps, losses, color=colours[name], linewidth=1.2, label=None if number else name)
        label = None if number else "the lone student's best"
        axes.axhline(run["lone_best"], color="0.5", linewidth=0.8, linestyle="--", label=label)
    axes.set_ylim(top=min(5.0, axes.get_ylim()[1]))
    axes.set_xlabel("steps (those of trials that were given up among them)")
    axes.set_ylabel("bits per byte of held-out text")
    axes.set_title(f"A student with {found['runs'][0]['own_bytes'] // 1024} KiB of text ({_seeds(found)})", fontsize=11)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    save_figure(figure, path)
