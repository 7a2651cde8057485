"""What every benchmark prints: one shape of rows, as JSON for programs or as a table for people."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Row:
    """One measured number. ``value``, ``min`` and ``max`` are the median and the ends over the repeats, in ``unit``.

    ``anchor`` names what it is compared with, measured in the same run; its numbers are None where the anchor is not
    installed. ``ratio`` is value over anchor unless the row says otherwise, ``target`` the bound that ``met`` judges.
    """

    id: str
    unit: str
    value: float
    min: float
    max: float
    anchor: str | None = None
    anchor_value: float | None = None
    ratio: float | None = None
    target: str | None = None
    met: bool | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and ends of some repeats."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


def machine() -> dict[str, Any]:
    """The machine that the numbers are of."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def print_report(benchmark: str, rows: Sequence[Row], *, as_json: bool) -> None:
    """Print the rows on standard output."""
    if as_json:
        report = {"benchmark": benchmark, "machine": machine(), "rows": [_rounded(asdict(row)) for row in rows]}
        json.dump(report, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    heads = ("id", "value", "min", "max", "unit", "anchor", "anchor's", "ratio", "target", "met")
    table = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[at]) for line in table) for at in range(len(heads))]
    for line in table:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n")


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in row.items()}


def _cells(row: Row) -> tuple[str, ...]:
    show: Callable[[float | None], str] = lambda number: "-" if number is None else f"{number:.4g}"  # noqa: E731  # one line, used six times
    met = "-" if row.met is None else "yes" if row.met else "no"
    return (
        row.id,
        show(row.value),
        show(row.min),
        show(row.max),
        row.unit,
        row.anchor or "-",
        show(row.anchor_value),
        show(row.ratio),
        row.target or "-",
        met,
    )
