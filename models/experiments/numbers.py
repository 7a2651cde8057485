"""The numbers of one run that are compared between seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEVER = 10.0
"""Stands for the steps of a student that did not come so far: many times those of the lone one."""


def mixture_numbers(run: Mapping[str, Any]) -> dict[str, float]:
    """Losses of both casts, the mixture's against each other system, and the smallest share of a specialist."""
    found: dict[str, float] = {}
    for cast in ("specialists", "overlapping"):
        losses = run[cast]["losses"]
        found |= {f"{cast}: {name}": loss for name, loss in losses.items()}
        for other in ("best_single", "uniform_average", "oracle"):
            found[f"{cast}: mixture over {other}"] = losses["mixture"] / losses[other] - 1
    found["smallest share of a specialist"] = min(shares[name] for name, shares in run["specialists"]["share"].items())
    found["shapley ~ leave one out"] = run["specialists"]["rank_correlation"]
    return found


def specialist_numbers(run: Mapping[str, Any]) -> dict[str, float]:
    """The niche's pay, and how far honest pairs and copies are from the thresholds."""
    rates = run["detection"]
    pay = {f"pay at weight {row['niche_weight']:g}": row["niche_pay"] for row in run["pay"]}
    return {
        **pay,
        "honest pairs flagged": rates["honest_flagged"],
        "honest pairs tested": rates["honest_tests"],
        "most alike honest pair": rates["honest_max"],
        "copies missed": rates["copies_missed"],
        "copies tested": rates["copy_tests"],
    }


def distillation_numbers(run: Mapping[str, Any]) -> dict[str, float]:
    """The students' losses, their steps to the lone one's best, and what the useless teacher earned."""
    return {
        **{f"{name}: final": student["final"] for name, student in run["students"].items()},
        "lone student's best": run["lone_best"],
        **{
            f"{name}: of the lone steps": NEVER if share is None else share
            for name, share in run["steps_share"].items()
        },
        "useless teacher's share of the credit": run["credit_share"]["untrained"],
    }
