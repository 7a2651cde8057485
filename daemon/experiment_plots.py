"""Draws what the experiments found; needs matplotlib, which the extra ``plots`` installs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError
from .experiments import DRIFTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHOWN_AS_LOST = "0.6"  # the line whose losing side is filled
_OPEN, _HIDDEN = "#b3541e", "#1f5f8b"


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches and its axes. Raises `ConfigError` where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "a plot needs matplotlib", "pip install 'moed[plots]', or leave --png and --json out"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def check_plots() -> None:
    """Raise `ConfigError` now rather than after minutes of play if plots cannot be drawn."""
    new_figure(1, 1)


def plot_collusion(found: dict[str, Any], path: Path) -> None:
    """The retention map: a line for each honest stake, and the losing corner of 60 %."""
    figure, axes = new_figure(8, 6)
    stakes = list(found["lines"])
    for number, (stake, line) in enumerate(found["lines"].items()):
        shade = 0.15 + 0.7 * number / max(1, len(stakes) - 1)
        x, y = [point[0] for point in line], [point[1] for point in line]
        axes.plot(x, y, color=(0.1, shade * 0.7, shade), linewidth=2.2 if stake == _SHOWN_AS_LOST else 1.2)
        # at the foot the lines are farthest from each other
        axes.annotate(
            f"{float(stake):.0%}", (x[1], y[1]), ha="center", va="center", fontsize=8,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )  # fmt: skip
        if stake == _SHOWN_AS_LOST:
            axes.fill_betweenx(y, 0, x, color=_OPEN, alpha=0.13, linewidth=0)
    corner = found["losing_corner"]
    point = corner["honest_utility"], corner["cabal_weight"]
    axes.plot(*point, "o", color=_OPEN, markersize=7)
    axes.annotate(
        f"40 % stake + 30 % utility:\nthe honest 60 % get {corner['honest_part']:.1%}",
        point, xytext=(-12, 0), textcoords="offset points", ha="right", va="center", fontsize=9, color=_OPEN,
    )  # fmt: skip
    axes.text(
        0.03, 0.92, "left of the 60 % line (filled)\nan honest 60 % of the stake shrinks", color=_OPEN, fontsize=9
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("honest utility: share of the honest validators' weight on honest miners")
    axes.set_ylabel("cabal weight: share of the cabal's weight on its own miners")
    axes.set_title("Where an honest part of the stake (on each line) just keeps it", fontsize=11)
    axes.grid(alpha=0.25)
    save_figure(figure, path)


def plot_weight_copy(found: dict[str, Any], path: Path) -> None:
    """What a copier earns by how fast the miners' worth moves, with weights open and hidden."""
    figure, axes = new_figure(7, 4.5)
    for version, style in ((1, "-"), (3, "--")):
        for hidden, colour in ((False, _OPEN), (True, _HIDDEN)):
            rows = [row for row in found["rows"] if (row["yuma_version"], row["hidden"]) == (version, hidden)]
            means, spread = [row["copier_over_honest"] for row in rows], [row["deviation"] for row in rows]
            name = f"{'hidden first' if hidden else 'in the open'}, {'classic bonds' if version == 1 else 'Yuma 3'}"
            axes.errorbar(range(len(rows)), means, spread, color=colour, linestyle=style, capsize=2, label=name)
    axes.axhline(1, color="0.4", linewidth=0.8)
    axes.set_xticks(range(len(DRIFTS)), [f"{drift:g}" for drift in DRIFTS])
    axes.set_xlabel("drift of the miners' worth in an epoch (deviation of its logarithm)")
    axes.set_ylabel("copier's dividends / honest validator's")
    axes.set_title("What copying weights pays", fontsize=11)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture. Raises `ConfigError` where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # no date or version inside, so that the same numbers give the same file
        figure.savefig(path, dpi=110, metadata={"Software": None})
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", "give a path that can be written") from error
