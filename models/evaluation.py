"""Compares the mixture with its members on held-out text, every system on the same rows and the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import NotEnoughAnswers
from .gate import choose, decision_scores
from .mixture import mixture_bits, mixture_log_weights
from .plans import Plan
from .training import BITS_PER_NAT
from .validation import ValidatorBrain

HELD_OUT_SEED = 2023  # the rows are the same for every validator and every run


@dataclass(frozen=True, slots=True)
class HeldOutReport:
    """Losses in bits per byte, over all domains with equal weight.

    ``oracle`` sends each domain to its best single member, and knows which that is; ``share`` is the top-k gate's mean
    weight by domain and uid, ``member_losses`` each member's loss by domain.
    """

    mixture: float
    best_single: float
    uniform_average: float
    oracle: float
    best_uid: int
    rows: int
    share: Mapping[str, Mapping[int, float]]
    member_losses: Mapping[int, Mapping[str, float]]


def held_out_plans(brain: ValidatorBrain, rows_per_domain: int, *, seed: int = HELD_OUT_SEED) -> list[Plan]:
    """Probe plans over ``rows_per_domain`` held-out rows of each corpus, no larger than the brain's own plans.

    Without decoys: on rows that are the same every time they would be the same evidence counted again. A miner that
    was found out on the private stream counts as silent here too.
    """
    rng = np.random.default_rng(seed)
    # Domains in turn, so that losing one plan's answers thins all of them alike.
    domains = np.tile(np.arange(len(brain.corpora)), rows_per_domain)
    parts = np.array_split(domains, -(-len(domains) // brain.config.rows))
    return [brain.plan_over("held_out", rng, part, has_decoys=False) for part in parts]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows that every member answered: [B, T] bytes and positions, [B, T, K] target log-probabilities."""

    tokens: Tensor
    scored: Tensor
    target_log_probs: Tensor
    domains: npt.NDArray[np.str_]


def held_out_losses(
    brain: ValidatorBrain, answered_plans: Sequence[tuple[Plan, Mapping[int, object]]]
) -> HeldOutReport:
    """Evaluate the answers to the plans of one `held_out_plans`.

    Members are the miners that answered at least half of the rows; the rows that all of them answered count, for
    every system. Raises `NotEnoughAnswers` where that leaves some domain without a row.
    """
    if not answered_plans:
        raise NotEnoughAnswers("no held-out plan was asked")
    plans = [brain.still_known(plan) for plan, _ in answered_plans]
    reads = [brain.read(plan, answers) for plan, (_, answers) in zip(plans, answered_plans, strict=True)]
    answered = torch.cat([read.answered for read in reads])
    is_member = answered.float().mean(dim=0) >= 0.5
    uids = tuple(uid for uid, member in zip(plans[0].uids, is_member.tolist(), strict=True) if member)
    if not uids:
        raise NotEnoughAnswers("no miner answered half of the held-out rows")
    kept = answered[:, is_member].all(dim=-1)
    domains = np.array([name for plan in plans for name in plan.domains])[kept.numpy()]
    missing = {corpus.domain for corpus in brain.corpora} - set(domains)
    if missing:
        raise NotEnoughAnswers(f"no held-out row of {', '.join(sorted(missing))} was answered by every member")
    rows = _Rows(
        torch.cat([torch.from_numpy(plan.tokens) for plan in plans])[kept],
        torch.cat([torch.from_numpy(plan.scored) for plan in plans])[kept],
        torch.cat([read.target_log_probs for read in reads])[kept][..., is_member],
        domains,
    )
    return _compare(brain, uids, rows)


@torch.no_grad()
def _compare(brain: ValidatorBrain, uids: tuple[int, ...], rows: _Rows) -> HeldOutReport:
    config = brain.config.gate
    scores = brain.gate_scores(rows.tokens, uids)
    chosen = choose(decision_scores(scores, config.prefix_bytes), config.k)
    everyone = torch.ones_like(chosen)
    weighed = scores + brain.gate.evidence(rows.target_log_probs)
    mixture = mixture_bits(weighed, rows.target_log_probs, chosen)
    uniform = mixture_bits(torch.zeros_like(scores), rows.target_log_probs, everyone)
    single = rows.target_log_probs * -BITS_PER_NAT
    weights = mixture_log_weights(weighed, chosen.unsqueeze(1).expand_as(scores)).exp()

    names = [corpus.domain for corpus in brain.corpora]
    places = {name: rows.scored & torch.from_numpy(rows.domains == name).unsqueeze(-1) for name in names}
    # One mean a domain, then the mean of those: a domain with more rows does not count for more.
    by_domain = torch.stack([single[places[name]].mean(dim=0) for name in names])  # [D, K]
    overall = by_domain.mean(dim=0)
    return HeldOutReport(
        mixture=_domain_mean(mixture, places),
        best_single=float(overall.min()),
        uniform_average=_domain_mean(uniform, places),
        oracle=float(by_domain.min(dim=1).values.mean()),
        share={name: dict(zip(uids, weights[places[name]].mean(dim=0).tolist(), strict=True)) for name in names},
        member_losses={uid: dict(zip(names, by_domain[:, at].tolist(), strict=True)) for at, uid in enumerate(uids)},
        rows=len(rows.tokens),
        best_uid=uids[int(overall.argmin())],
    )


def _domain_mean(bits: Tensor, places: Mapping[str, Tensor]) -> float:
    return float(torch.stack([bits[place].mean() for place in places.values()]).mean())
