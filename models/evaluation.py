"""Compares the mixture with its members on held-out text, every system on the same rows and the same bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import NotEnoughAnswers
from .gate import choose, decision_scores
from .mixture import coalition_bits, mixture_bits, mixture_log_weights
from .plans import Plan
from .scoring import Coalitions, Floats, shapley
from .training import BITS_PER_NAT
from .validation import ValidatorBrain

COALITIONS_AT_ONCE = 16
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
    """Probe plans over ``rows_per_domain`` held-out rows of each lock, no larger than the brain's own plans.

    Without decoys: on rows that are the same every time they would be the same evidence counted again. A miner that
    was found out on the private stream counts as silent here too.
    """
    rng = np.random.default_rng(seed)
    # Domains in turn, so that losing one plan's answers thins all of them alike.
    domains = np.tile(np.arange(len(brain.locks)), rows_per_domain)
    parts = np.array_split(domains, -(-len(domains) // brain.config.rows))
    return [brain.plan_over("held_out", rng, part, has_decoys=False) for part in parts]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The rows that every member answered: [B, T] bytes and positions, [B, T, K] target log-probabilities of ``uids``,
    what the baseline gives them [B, T], and each row's domain."""

    uids: tuple[int, ...]
    tokens: Tensor
    scored: Tensor
    target_log_probs: Tensor
    baseline_log_probs: Tensor
    domains: npt.NDArray[np.str_]


def gather_held_out(brain: ValidatorBrain, answered_plans: Sequence[tuple[Plan, Mapping[int, object]]]) -> HeldOut:
    """What the answers to the plans of one `held_out_plans` leave to compare.

    Members are the miners that answered at least half of the rows, those that answered most first; one that would leave
    some domain without a row that all have answered stays out. The rows that all members answered count, for every
    system. Raises `NotEnoughAnswers` where there is no member.
    """
    if not answered_plans:
        raise NotEnoughAnswers("no held-out plan was asked")
    plans = [brain.still_known(plan) for plan, _ in answered_plans]
    reads = [brain.judging.read(plan, answers) for plan, (_, answers) in zip(plans, answered_plans, strict=True)]
    answered = torch.cat([read.answered for read in reads])
    domains = np.array([name for plan in plans for name in plan.domains])
    members = _choose_members(answered.numpy(), domains, {lock.name for lock in brain.locks})
    if not members:
        raise NotEnoughAnswers("no miner answered half of the held-out rows, some of every domain among them")
    uids = tuple(plans[0].uids[at] for at in members)
    kept = answered[:, members].all(dim=-1)
    return HeldOut(
        uids,
        torch.cat([torch.from_numpy(plan.tokens) for plan in plans])[kept],
        torch.cat([torch.from_numpy(plan.scored) for plan in plans])[kept],
        torch.cat([read.target_log_probs for read in reads])[kept][..., members],
        torch.cat([brain.judge_baseline(plan) for plan in plans])[kept],
        domains[kept.numpy()],
    )


def _choose_members(
    answered: npt.NDArray[np.bool_], domains: npt.NDArray[np.str_], wanted: Collection[str]
) -> list[int]:
    """Which of the K miners that ``answered`` [B, K] rows of these ``domains`` [B] are compared, ascending."""
    counts = answered.sum(axis=0)
    kept = np.ones(len(domains), dtype=bool)
    members = []
    for at in np.argsort(-counts, kind="stable").tolist():
        common = kept & answered[:, at]
        if 2 * counts[at] >= len(domains) and set(domains[common]) == set(wanted):
            kept = common
            members.append(at)
    return sorted(members)


def held_out_losses(
    brain: ValidatorBrain, answered_plans: Sequence[tuple[Plan, Mapping[int, object]]]
) -> HeldOutReport:
    """Evaluate the answers to the plans of one `held_out_plans`. Raises as `gather_held_out` does."""
    return compare(brain, gather_held_out(brain, answered_plans))


@torch.no_grad()
def compare(brain: ValidatorBrain, rows: HeldOut) -> HeldOutReport:
    """The mixture of the brain's gate beside single members, their plain average and the oracle."""
    uids, config = rows.uids, brain.config.gate
    scores = brain.gate_scores(rows.tokens, uids)
    chosen = choose(decision_scores(scores, config.prefix_bytes), config.k)
    everyone = torch.ones_like(chosen)
    weighed = scores + brain.gate.evidence(rows.target_log_probs)
    mixture = mixture_bits(weighed, rows.target_log_probs, chosen)
    uniform = mixture_bits(torch.zeros_like(scores), rows.target_log_probs, everyone)
    single = rows.target_log_probs * -BITS_PER_NAT
    weights = mixture_log_weights(weighed, chosen.unsqueeze(1).expand_as(scores)).exp()

    names = [lock.name for lock in brain.locks]
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


@torch.no_grad()
def coalition_losses(brain: ValidatorBrain, rows: HeldOut, coalitions: Coalitions) -> Floats:
    """The mixture's loss [M] in bits per byte if only each coalition's members [M, K] and the baseline existed."""
    scores = brain.gate_scores(rows.tokens, rows.uids)
    weighed = scores + brain.gate.evidence(rows.target_log_probs)
    decision = decision_scores(scores, brain.config.gate.prefix_bytes)
    answered = torch.ones(len(rows.tokens), len(rows.uids), dtype=torch.bool)
    fallback = brain.fallback(rows.baseline_log_probs, scores)
    # A few at a time: each takes memory for all rows.
    parts = [coalitions[at : at + COALITIONS_AT_ONCE] for at in range(0, len(coalitions), COALITIONS_AT_ONCE)]
    bits = [
        coalition_bits(
            torch.from_numpy(part),
            weighed,
            decision,
            rows.target_log_probs,
            answered,
            rows.scored,
            brain.config.gate.k,
            fallback,
        )
        for part in parts
    ]
    return torch.cat(bits).double().numpy()


@dataclass(frozen=True, slots=True)
class MemberWorth:
    """What one member is worth to the mixture on held-out text, in bits per byte: its Shapley value, and by how much
    the loss rises without it."""

    shapley: float
    leave_one_out: float


def member_worths(brain: ValidatorBrain, rows: HeldOut, rng: np.random.Generator) -> dict[int, MemberWorth]:
    """Each member's worth; ``rng`` draws the orders where there are too many members for all coalitions."""
    count = len(rows.uids)
    nobody = coalition_losses(brain, rows, np.zeros((1, count), dtype=bool))[0]
    shares = shapley(lambda coalitions: nobody - coalition_losses(brain, rows, coalitions), count, rng)
    without = coalition_losses(brain, rows, np.vstack([np.ones((1, count), dtype=bool), ~np.eye(count, dtype=bool)]))
    return {
        uid: MemberWorth(float(shares[at]), float(without[1 + at] - without[0])) for at, uid in enumerate(rows.uids)
    }


def _domain_mean(bits: Tensor, places: Mapping[str, Tensor]) -> float:
    return float(torch.stack([bits[place].mean() for place in places.values()]).mean())
