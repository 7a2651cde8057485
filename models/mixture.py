"""Mixes the answers of several experts in probability space, over those who answered."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .training import BITS_PER_NAT

# Neighbouring bytes of a row tell nearly the same about its members: so many nats of its record count as one.
FORESIGHT_SHARPNESS = 0.1
# What knowing nothing costs: the loss of a byte that nobody answered for.
UNIFORM_BITS = 8.0


def mixture_log_weights(scores: Tensor, answered: Tensor) -> Tensor:
    """Log-weights [..., K] from scores [..., K], normalised over the members where ``answered`` (bool [..., K]).

    At least one member of each row has answered; the others get minus infinity.
    """
    return scores.masked_fill(~answered, -math.inf).log_softmax(dim=-1)


def mixture_bits(scores: Tensor, target_log_probs: Tensor, answered: Tensor) -> Tensor:
    """Loss in bits of each byte under the mixture: [B, T] from scores and target log-probabilities [B, T, K] and
    ``answered`` bool [B, K], with at least one answer to each row.

    The log of the weighted mean of probabilities, in logs throughout (log-sum-exp), so no probability underflows.
    """
    log_weights = mixture_log_weights(scores, answered.unsqueeze(1).expand_as(scores))
    return (log_weights + target_log_probs).logsumexp(dim=-1) * -BITS_PER_NAT


def foresight_loss(decision: Tensor, target_log_probs: Tensor, answered: Tensor, scored: Tensor) -> Tensor:
    """How badly the scores at the decision point foresaw whose answers would be best, in bits per row.

    decision [B, K], target_log_probs [B, T, K], answered bool [B, K], scored bool [B, T]. The cross-entropy to the
    posterior that the row's scored bytes leave of the members, softened by `FORESIGHT_SHARPNESS`; only members that
    answered are compared.
    """
    record = (target_log_probs * scored.unsqueeze(-1)).sum(dim=1) * FORESIGHT_SHARPNESS
    posterior = record.masked_fill(~answered, -math.inf).softmax(dim=-1)
    # A finite floor: minus infinity times a posterior of zero would not be zero.
    foreseen = mixture_log_weights(decision, answered).masked_fill(~answered, 0.0)
    return -(posterior * foreseen).sum(dim=-1).mean() * BITS_PER_NAT


def mix_distributions(scores: Tensor, log_probs: Tensor) -> Tensor:
    """One next-byte distribution from those of K experts: scores [K] and log-probabilities [K, 256] to [256]."""
    return (scores.log_softmax(dim=0).unsqueeze(-1) + log_probs).logsumexp(dim=0)


@dataclass(frozen=True, slots=True)
class Fallback:
    """A model that everybody has: its score and its log-probability of the true byte at each position, [B, T]."""

    scores: Tensor
    log_probs: Tensor


@torch.no_grad()
def coalition_bits(
    members: Tensor,
    scores: Tensor,
    decision: Tensor,
    target_log_probs: Tensor,
    answered: Tensor,
    scored: Tensor,
    k: int,
    fallback: Fallback | None = None,
) -> Tensor:
    """What the top-``k`` mixture would lose if only some of the miners existed, for many such coalitions at once.

    members            bool [M, K], one coalition a row
    scores             [B, T, K] at every position, ``decision`` [B, K] at the decision points
    target_log_probs   [B, T, K], ``answered`` bool [B, K], ``scored`` [B, T], bool or the weight of each position

    Returns the mean loss in bits per scored byte, [M]. The ``fallback`` is one more member of every coalition; without
    one a row for which no member answered costs `UNIFORM_BITS`.
    """
    rows, length, miners = scores.shape
    places = min(k, miners)
    open_to = members.unsqueeze(1) & answered  # [M, B, K]
    ranked = decision.masked_fill(~open_to, -math.inf)
    picked = ranked.topk(places, dim=-1).indices  # [M, B, k]
    present = open_to.gather(-1, picked)
    index = picked.unsqueeze(2).expand(-1, rows, length, places)
    spread = (len(members), rows, length, miners)
    some = present.any(dim=-1)
    # A row without any answer is priced below; one place is opened so that its softmax stays a number.
    usable = present if fallback is not None else present | ~some.unsqueeze(-1)
    usable = usable.unsqueeze(2).expand_as(index)
    picked_scores = scores.expand(spread).gather(-1, index)
    picked_log_probs = target_log_probs.expand(spread).gather(-1, index)
    if fallback is not None:
        column = (len(members), rows, length, 1)
        picked_scores = torch.cat([picked_scores, fallback.scores.unsqueeze(-1).expand(column)], dim=-1)
        picked_log_probs = torch.cat([picked_log_probs, fallback.log_probs.unsqueeze(-1).expand(column)], dim=-1)
        usable = torch.cat([usable, torch.ones(column, dtype=torch.bool)], dim=-1)
    bits = (mixture_log_weights(picked_scores, usable) + picked_log_probs).logsumexp(dim=-1) * -BITS_PER_NAT
    if fallback is None:
        bits = torch.where(some.unsqueeze(-1), bits, UNIFORM_BITS)
    return (bits * scored).sum(dim=(1, 2)) / scored.sum()
