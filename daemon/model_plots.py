"""Draws what the experiments with models found; needs matplotlib, which the extra ``plots`` installs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .experiment_plots import new_figure, save_figure

_MIXTURE, _OTHER, _ORACLE = "#1f5f8b", "#9aa7b0", "#b3541e"


def plot_mixture(found: Mapping[str, Any], path: Path) -> None:
    """Bars of losses for both casts of miners."""
    figure, axes = new_figure(7, 4.5)
    names = ("mixture", "oracle", "uniform_average", "best_single")
    colours = (_MIXTURE, _ORACLE, _OTHER, "#5d6a73")
    for cast, offset in (("specialists", 0), ("overlapping", len(names) + 1)):
        for at, (name, colour) in enumerate(zip(names, colours, strict=True)):
            value = found[cast]["losses"][name]
            axes.bar(offset + at, value, color=colour, label=name.replace("_", " ") if not offset else None)
            axes.annotate(f"{value:.2f}", (offset + at, value), ha="center", va="bottom", fontsize=8)
    axes.set_xticks([1.5, len(names) + 2.5], ["4 specialists", "8 overlapping miners"])
    axes.set_ylabel("bits per byte of held-out text")
    axes.set_title(f"The mixture beside its members (seed {found['seed']})", fontsize=11)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def plot_specialist(found: Mapping[str, Any], path: Path) -> None:
    """How alike honest pairs and disguised copies are, with the threshold."""
    figure, axes = new_figure(7, 5)
    rates = found["detection"]
    for at, (name, row) in enumerate(rates["disguises"].items()):
        axes.plot([row["likeness_min"], row["likeness_mean"]], [at, at], color=_ORACLE, linewidth=2)
        axes.plot(row["likeness_mean"], at, "o", color=_ORACLE)
        axes.annotate(f"{name} (costs {row['costs_bits']:.2f} bits)", (0.02, at), fontsize=8, va="center")
    below = -1
    means = [mean for mean, _most in rates["honest"].values()]
    axes.plot(means, [below] * len(means), "|", color=_MIXTURE, markersize=14)
    axes.plot(rates["honest_max"], below, "|", color=_MIXTURE, markersize=20)
    axes.annotate("honest pairs", (0.02, below), fontsize=8, va="bottom", color=_MIXTURE)
    axes.axvline(rates["threshold"], color="0.3", linewidth=0.9, linestyle="--")
    axes.set_xlim(0, 1.02)
    axes.set_yticks([])
    axes.set_xlabel("likeness on canaries (correlation of log-probabilities)")
    axes.set_title("Copies and relays in disguise, and honest pairs", fontsize=11)
    save_figure(figure, path)


def plot_distillation(found: Mapping[str, Any], path: Path) -> None:
    """The students' losses as they learn."""
    figure, axes = new_figure(7, 4.5)
    colours = {"alone": _OTHER, "exchange": _MIXTURE, "newcomer": _ORACLE}
    for name, student in found["students"].items():
        steps, losses = zip(*student["curve"], strict=True)
        axes.plot(steps, losses, color=colours[name], label=name)
    axes.axhline(found["lone_best"], color="0.5", linewidth=0.8, linestyle="--")
    axes.set_ylim(top=min(5.0, axes.get_ylim()[1]))
    axes.set_xlabel("steps (those of trials that were given up among them)")
    axes.set_ylabel("bits per byte of held-out text")
    axes.set_title(f"A student with {found['own_bytes'] // 1024} KiB of text (seed {found['seed']})", fontsize=11)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    save_figure(figure, path)
