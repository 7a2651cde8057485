"""Does the mixture beat its best member? Miners that learned real text, one validator's gate over their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from moed.models.corpora import Corpus, load_corpus
from moed.models.evaluation import (
    HeldOut,
    HeldOutReport,
    MemberWorth,
    compare,
    gather_held_out,
    held_out_plans,
    member_worths,
)
from moed.models.gate import choose, decision_scores
from moed.models.mixture import mixture_bits, mixture_log_weights
from moed.models.plans import ValidatorConfig
from moed.models.validation import ValidatorBrain

from .members import Answering, Member, Say, ask, rank_correlation, text_of, train_member

DOMAINS = ("prose", "python", "tables", "c")
SPECIALIST_STEPS = 500
PLANS = 160
HELD_OUT_ROWS = 128
OVERLAP_SHARE = 0.2
"""How much of what each of the eight reads is of the domain after its own."""
RAISED_AT_MOST = 40.0
"""A score so much above the others has all of the weight."""
TARGETS = {
    "under_best_single": 0.25,
    "under_uniform": 0.10,
    "over_oracle": 0.03,
    "share": 0.80,
    "rank_correlation": 0.9,
}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to train and to measure: the defaults are the experiment's, a test takes less."""

    domains: Sequence[str] = DOMAINS
    steps: int = SPECIALIST_STEPS
    plans: int = PLANS
    held_out_rows: int = HELD_OUT_ROWS


def run_mixture(*, seed: int, say: Say, scale: Scale | None = None) -> dict[str, Any]:
    """Four specialists, then eight miners of overlapping domains, each with a gate of its own, on held-out text."""
    scale = scale or Scale()
    corpora = {name: load_corpus(name) for name in scale.domains}
    say(f"{len(corpora)} specialists, {scale.steps} steps each ...")
    four = {
        uid: train_member(name, corpora[name], steps=scale.steps, seed=seed + uid, say=say)
        for uid, name in enumerate(corpora)
    }
    specialists = measure(corpora, four, scale, seed, say)
    say(f"{2 * len(corpora)} miners of overlapping domains ...")
    eight = overlapping_members(corpora, scale, seed + 100, say)
    overlapping = measure(corpora, eight, scale, seed, say)
    losses = specialists["losses"]
    return {
        "experiment": "mixture",
        "seed": seed,
        "steps": scale.steps,
        "plans": scale.plans,
        "losses": losses,
        "share": specialists["share"],
        "specialists": specialists,
        "overlapping": overlapping,
        "held": verdict(specialists, overlapping),
        "targets": TARGETS,
    }


def verdict(specialists: Mapping[str, Any], overlapping: Mapping[str, Any]) -> dict[str, bool]:
    """Which of the targets the numbers keep."""
    losses, eight = specialists["losses"], overlapping["losses"]
    return {
        "under_best_single": losses["mixture"] <= (1 - TARGETS["under_best_single"]) * losses["best_single"],
        "under_uniform": losses["mixture"] <= (1 - TARGETS["under_uniform"]) * losses["uniform_average"],
        "near_oracle": losses["mixture"] <= (1 + TARGETS["over_oracle"]) * losses["oracle"],
        "share": min(specialists["share"][name][name] for name in specialists["share"]) >= TARGETS["share"],
        "rank_correlation": specialists["rank_correlation"] >= TARGETS["rank_correlation"],
        "eight_beat_the_oracle": eight["mixture"] < eight["oracle"],
    }


def overlapping_members(corpora: Mapping[str, Corpus], scale: Scale, seed: int, say: Say) -> dict[int, Member]:
    """Two miners for each domain, from different seeds, one of which also reads some of the next domain."""
    names = list(corpora)
    members = {}
    for at, name in enumerate(names):
        following = names[(at + 1) % len(names)]
        for number, shares in enumerate(({name: 1.0}, {name: 1 - OVERLAP_SHARE, following: OVERLAP_SHARE})):
            uid = 2 * at + number
            label = name if len(shares) == 1 else f"{name}+{following}"
            members[uid] = train_member(label, text_of(corpora, shares), steps=scale.steps, seed=seed + uid, say=say)
    return members


def train_gate(
    corpora: Mapping[str, Corpus],
    members: Mapping[int, Answering],
    plans: int,
    seed: int,
    say: Say,
    config: ValidatorConfig | None = None,
) -> ValidatorBrain:
    """A validator's brain after ``plans`` plans over these miners."""
    brain = ValidatorBrain(list(corpora.values()), config or ValidatorConfig(), seed, gate_seed=seed)
    brain.set_miners(members)
    loss = 0.0
    for number in range(1, plans + 1):
        plan = brain.plan()
        report = brain.learn(plan, ask(members, plan))
        loss += ((report.loss_bits or 0.0) - loss) * max(0.1, 1 / number)
        if number % 40 == 0:
            say(f"  gate: {number} of {plans} plans, mixture {loss:.2f} bits per byte")
    return brain


def measure(
    corpora: Mapping[str, Corpus], members: Mapping[int, Member], scale: Scale, seed: int, say: Say
) -> dict[str, Any]:
    """Train a gate over ``members`` and compare on held-out rows; names in place of uids."""
    brain = train_gate(corpora, members, scale.plans, seed, say)
    held_out = gather_held_out(
        brain, [(plan, ask(members, plan)) for plan in held_out_plans(brain, scale.held_out_rows)]
    )
    report = compare(brain, held_out)
    worths = member_worths(brain, held_out, np.random.default_rng(seed))
    names = {uid: member.name for uid, member in members.items()}
    return {**_named(report, worths, names, brain), "raised": raise_specialists(brain, held_out, names)}


@torch.no_grad()
def raise_specialists(brain: ValidatorBrain, rows: HeldOut, names: Mapping[int, str]) -> dict[str, dict[str, float]]:
    """For each domain with a miner of that name: its share of the weight, the mixture's loss there, and what the loss
    would be if the miner's score were raised everywhere until its share is the target's.

    Where the share is below the target, the difference of the two is what the gate does wrong by that, or right.
    """
    config = brain.config.gate
    scores = brain.gate_scores(rows.tokens, rows.uids)
    evidence = brain.gate.evidence(rows.target_log_probs)
    found = {}
    for domain, at in ((name, rows.uids.index(uid)) for uid, name in names.items() if name in rows.domains):
        places = rows.scored & torch.from_numpy(rows.domains == domain).unsqueeze(-1)

        def mix(raised_by: float, at: int = at, places: torch.Tensor = places) -> tuple[float, float]:
            raised = scores.clone()
            raised[..., at] += raised_by
            chosen = choose(decision_scores(raised, config.prefix_bytes), config.k)
            weights = mixture_log_weights(raised + evidence, chosen.unsqueeze(1).expand_as(raised)).exp()
            bits = mixture_bits(raised + evidence, rows.target_log_probs, chosen)
            return float(weights[..., at][places].mean()), float(bits[places].mean())

        share, loss = mix(0.0)
        low, high = 0.0, RAISED_AT_MOST
        while share < TARGETS["share"] and high - low > 0.01:
            middle = (low + high) / 2
            low, high = (middle, high) if mix(middle)[0] < TARGETS["share"] else (low, middle)
        at_target = loss if share >= TARGETS["share"] else mix(high)[1]
        found[domain] = {"share": share, "loss": loss, "loss_at_target": at_target}
    return found


def _named(
    report: HeldOutReport, worths: Mapping[int, MemberWorth], names: Mapping[int, str], brain: ValidatorBrain
) -> dict[str, Any]:
    shapley = {names[uid]: worth.shapley for uid, worth in worths.items()}
    without = {names[uid]: worth.leave_one_out for uid, worth in worths.items()}
    return {
        "losses": {
            "mixture": report.mixture,
            "best_single": report.best_single,
            "uniform_average": report.uniform_average,
            "oracle": report.oracle,
        },
        "best_single": names[report.best_uid],
        "rows": report.rows,
        "share": {
            domain: {names[uid]: share for uid, share in shares.items()} for domain, shares in report.share.items()
        },
        "member_losses": {names[uid]: dict(losses) for uid, losses in report.member_losses.items()},
        "shapley": shapley,
        "leave_one_out": without,
        "rank_correlation": rank_correlation(list(shapley.values()), list(without.values())),
        "averaged_scores": {names[uid]: score for uid, score in brain.scores.scores.items()},
    }
