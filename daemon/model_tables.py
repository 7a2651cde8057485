"""The findings of the experiments with models as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .tables import Table


def _bits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _held(found: Mapping[str, Any]) -> Table:
    rows = [[name.replace("_", " "), "yes" if held else "NO"] for name, held in found["held"].items()]
    return Table(f"Targets (seed {found['seed']})", ("what", "held"), rows)


def mixture_tables(found: Mapping[str, Any]) -> list[Table]:
    """Losses of both casts, then who the gate asks, then what each miner is worth."""
    casts = {"4 specialists": found["specialists"], "8 overlapping": found["overlapping"]}
    names = ("mixture", "best_single", "uniform_average", "oracle")
    losses = [
        [label, *(_bits(cast["losses"][name]) for name in names), f"{cast['rank_correlation']:.2f}"]
        for label, cast in casts.items()
    ]
    heads = ("miners", ">mixture", ">best single", ">uniform", ">oracle", ">shapley ~ leave-one-out")
    tables = [Table("Held-out text, bits per byte (less is better)", heads, losses)]
    for label, cast in casts.items():
        members = list(cast["shapley"])
        share = [[domain, *(_share(row[one]) for one in members)] for domain, row in cast["share"].items()]
        worth = [
            ["shapley", *(_bits(cast["shapley"][one]) for one in members)],
            ["leave one out", *(_bits(cast["leave_one_out"][one]) for one in members)],
        ]
        title = f"Share of the answer by domain, and worth in bits per byte: {label}"
        tables.append(Table(title, ("", *(f">{one}" for one in members)), share + worth))
    return [*tables, _held(found)]


def specialist_tables(found: Mapping[str, Any]) -> list[Table]:
    """The niche's pay, the field with a copy in it, and how disguises fare."""
    pay = [
        [f"{row['niche_weight']:g}", _share(row["niche_share_of_stream"]), _share(row["niche_pay"])]
        for row in found["pay"]
    ]
    field = found["field"]
    caught = [
        [name, _bits(likeness), field["flagged"].get(name, "-"), _share(field["pay"][name])]
        for name, likeness in field["likeness"].items()
    ]
    rates = found["detection"]
    disguises = [
        [name, _bits(row["likeness_mean"]), _bits(row["likeness_min"]), f"{row['missed']} of {row['tests']}",
         _bits(row["costs_bits"])]
        for name, row in rates["disguises"].items()
    ]  # fmt: skip
    honest = (
        f"{rates['honest_flagged']} of {rates['honest_tests']} honest pairs flagged, likeness at most "
        f"{rates['honest_max']:.3f} (mean {rates['honest_mean']:.3f}, threshold {rates['threshold']})"
    )
    return [
        Table(f"What {found['niche']} pays", (">weight", ">of the stream", ">of the pay"), pay),
        Table("A copy and a relay in the field", ("miner", ">likeness", "flagged as", ">pay"), caught),
        Table(f"Disguises; {honest}", ("disguise", ">mean", ">least", ">missed", ">costs bits"), disguises),
        _held(found),
    ]


def distillation_tables(found: Mapping[str, Any]) -> list[Table]:
    """The students, and what the exchange found its teachers worth."""
    students = [
        [name, _bits(one["final"]), _bits(one["best"]), _share(found["steps_share"].get(name)), one["teacher"] or "-",
         str(one["rows_asked"])]
        for name, one in found["students"].items()
    ]  # fmt: skip
    heads = ("student", ">final", ">best", ">of the lone steps", "learns from", ">rows asked")
    teachers = [
        [name, _bits(one["complement_bits"]), str(one["trials"]), _bits(one["credit_bits"]),
         _share(found["credit_share"][name]), str(one["rows_asked"])]
        for name, one in found["students"]["exchange"]["teachers"].items()
    ]  # fmt: skip
    return [
        Table("Students: held-out bits per byte, and steps to the lone one's best", heads, students),
        Table("Teachers", ("teacher", ">complement", ">trials", ">gain", ">of the credit", ">rows asked"), teachers),
        _held(found),
    ]
