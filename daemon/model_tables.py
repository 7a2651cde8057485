"""The findings of the experiments with models as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .tables import Table


def _bits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _verdict(found: Mapping[str, Any]) -> list[Table]:
    """The numbers over all seeds, and which targets every seed held."""
    spread = [
        [name.replace("_", " "), *(_bits(one[part]) for part in ("mean", "deviation", "min", "max"))]
        for name, one in found["spread"].items()
    ]
    seeds = ", ".join(map(str, found["seeds"]))
    held = [
        [name.replace("_", " "), " ".join("yes" if run["held"][name] else "NO" for run in found["runs"]),
         "yes" if is_held else "NO"]
        for name, is_held in found["held"].items()
    ]  # fmt: skip
    return [
        Table(f"Over the seeds {seeds}", ("what", ">mean", ">deviation", ">least", ">most"), spread),
        Table("Targets", ("what", "by seed", "held"), held),
    ]


def mixture_tables(found: Mapping[str, Any]) -> list[Table]:
    """Of the first seed losses of both casts, who the gate asks and what each miner is worth; then all seeds."""
    run = found["runs"][0]
    return [*_mixture_run(run), *_verdict(found)]


def _mixture_run(found: Mapping[str, Any]) -> list[Table]:
    casts = {"4 specialists": found["specialists"], "8 overlapping": found["overlapping"]}
    names = ("mixture", "best_single", "uniform_average", "oracle")
    losses = [
        [label, *(_bits(cast["losses"][name]) for name in names), f"{cast['rank_correlation']:.2f}"]
        for label, cast in casts.items()
    ]
    heads = ("miners", ">mixture", ">best single", ">uniform", ">oracle", ">shapley ~ leave-one-out")
    tables = [Table(f"Held-out text, bits per byte (seed {found['seed']})", heads, losses)]
    for label, cast in casts.items():
        members = list(cast["shapley"])
        share = [[domain, *(_share(row[one]) for one in members)] for domain, row in cast["share"].items()]
        worth = [
            ["shapley", *(_bits(cast["shapley"][one]) for one in members)],
            ["leave one out", *(_bits(cast["leave_one_out"][one]) for one in members)],
        ]
        title = f"Share of the answer by domain, and worth in bits per byte: {label}"
        tables.append(Table(title, ("", *(f">{one}" for one in members)), share + worth))
    forced = [
        [domain, _share(one["share"]), _bits(one["loss"]), _bits(one["loss_at_target"])]
        for domain, one in found["specialists"]["raised"].items()
    ]
    raised_heads = ("domain", ">its specialist's share", ">loss", f">loss with {found['targets']['share']:.0%} or more")
    return [*tables, Table("What it would cost to give each specialist the share of the target", raised_heads, forced)]


def specialist_tables(found: Mapping[str, Any]) -> list[Table]:
    """Of the first seed the niche's pay, the field with a copy in it, and how disguises fare; then all seeds."""
    return [*_specialist_run(found["runs"][0]), *_verdict(found)]


def _specialist_run(found: Mapping[str, Any]) -> list[Table]:
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
        [name, _bits(row["likeness_mean"]), _bits(row["likeness_min"]), _bits(row["missing_max"]),
         f"{row['missed']} of {row['tests']}", _bits(row["costs_bits"])]
        for name, row in rates["disguises"].items()
    ]  # fmt: skip
    honest = (
        f"{rates['honest_flagged']} of {rates['honest_tests']} honest pairs flagged, likeness at most "
        f"{rates['honest_max']:.3f} (threshold {rates['threshold']}), missing at least "
        f"{rates['honest_missing_min']:.3f} (threshold {rates['max_missing']})"
    )
    return [
        Table(f"What {found['niche']} pays (seed {found['seed']})", (">weight", ">of the stream", ">of the pay"), pay),
        Table("A copy and a relay in the field", ("miner", ">likeness", "flagged as", ">pay"), caught),
        Table(
            f"Disguises; {honest}", ("disguise", ">likeness", ">least", ">missing", ">missed", ">costs bits"), disguises
        ),
    ]


def distillation_tables(found: Mapping[str, Any]) -> list[Table]:
    """Of the first seed the students, and what the exchange found its teachers worth; then all seeds."""
    return [*_distillation_run(found["runs"][0]), *_verdict(found)]


def _distillation_run(found: Mapping[str, Any]) -> list[Table]:
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
        Table(
            f"Students: held-out bits per byte, and steps to the lone one's best (seed {found['seed']})",
            heads,
            students,
        ),
        Table("Teachers", ("teacher", ">complement", ">trials", ">gain", ">of the credit", ">rows asked"), teachers),
    ]
