"""The mixture in logs equals the mixture in plain probabilities, for one group of members and for many at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from moed.models.gate import choose
from moed.models.mixture import (
    UNIFORM_BITS,
    coalition_bits,
    foresight_loss,
    mix_distributions,
    mixture_bits,
    mixture_log_weights,
)
from moed.models.scoring import all_coalitions

ROWS, LENGTH, MINERS = 3, 4, 3


@pytest.fixture
def case() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        "scores": torch.randn(ROWS, LENGTH, MINERS, generator=generator),
        "target_log_probs": -torch.rand(ROWS, LENGTH, MINERS, generator=generator) * 8,
        "answered": torch.tensor([[True, True, True], [True, False, True], [False, True, False]]),
        "scored": torch.tensor([[False, True, True, True], [False, True, True, False], [False, True, True, True]]),
    }


def test_bits_are_those_of_the_weighted_probabilities(case: dict[str, torch.Tensor]) -> None:
    """-log2 of the sum of weight times probability, the weights renormalised over those who answered."""
    bits = mixture_bits(case["scores"], case["target_log_probs"], case["answered"])
    for row in range(ROWS):
        members = case["answered"][row].nonzero().flatten().tolist()
        for at in range(LENGTH):
            weights = [math.exp(case["scores"][row, at, m]) for m in members]
            chances = [math.exp(case["target_log_probs"][row, at, m]) for m in members]
            mixed = sum(w * c for w, c in zip(weights, chances, strict=True)) / sum(weights)
            assert bits[row, at].item() == pytest.approx(-math.log2(mixed), rel=1e-5)


def test_weights_of_those_who_answered_sum_to_one(case: dict[str, torch.Tensor]) -> None:
    """And the others weigh nothing."""
    answered = case["answered"].unsqueeze(1).expand_as(case["scores"])
    weights = mixture_log_weights(case["scores"], answered).exp()
    assert torch.allclose(weights.sum(-1), torch.ones(ROWS, LENGTH))
    assert bool((weights[~answered] == 0).all())


def test_each_coalition_loses_what_it_would_lose_alone(case: dict[str, torch.Tensor]) -> None:
    """All eight coalitions at once against one slow loop over rows, members and positions."""
    decision = case["scores"][:, 0]
    members = torch.from_numpy(all_coalitions(MINERS))
    got = coalition_bits(
        members, case["scores"], decision, case["target_log_probs"], case["answered"], case["scored"], 2
    )
    for coalition, bits in zip(members, got, strict=True):
        chosen = choose(decision, 2, allowed=case["answered"] & coalition)
        total = 0.0
        for row in range(ROWS):
            scored = case["scored"][row]
            if not chosen[row].any():
                total += UNIFORM_BITS * int(scored.sum())
                continue
            part = mixture_bits(
                case["scores"][row : row + 1], case["target_log_probs"][row : row + 1], chosen[row : row + 1]
            )
            total += float(part[0][scored].sum())
        assert bits.item() == pytest.approx(total / int(case["scored"].sum()), rel=1e-5)


def test_distributions_mix_to_a_distribution() -> None:
    """The mixed log-probabilities sum to one and are the weighted mean."""
    log_probs = torch.randn(3, 256).log_softmax(-1)
    scores = torch.tensor([0.0, 1.0, -2.0])
    mixed = mix_distributions(scores, log_probs).exp()
    expected = (scores.softmax(0).unsqueeze(-1) * log_probs.exp()).sum(0)
    assert torch.allclose(mixed, expected, atol=1e-6)
    assert mixed.sum().item() == pytest.approx(1, abs=1e-5)


def test_foresight_rewards_the_scores_that_name_the_best(case: dict[str, torch.Tensor]) -> None:
    """It is least at the softened posterior itself, its gradient is finite where members are missing, and the miner
    that did not answer gets none."""
    record = (case["target_log_probs"] * case["scored"].unsqueeze(-1)).sum(1) * 0.1
    names = ("target_log_probs", "answered", "scored")
    at_best = foresight_loss(record, *(case[n] for n in names))
    decision = (-record).clone().requires_grad_()
    worse = foresight_loss(decision, *(case[n] for n in names))
    assert worse > at_best
    worse.backward()  # type: ignore[no-untyped-call]  # torch ships this method without types
    assert decision.grad is not None
    assert bool(torch.isfinite(decision.grad).all())
    assert bool((decision.grad[~case["answered"]] == 0).all())


def test_choose_takes_the_best_that_are_allowed() -> None:
    """Top k by score, fewer where fewer are allowed, and none of those that are not."""
    scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert choose(scores, 2).tolist() == [[True, True, False], [False, True, True]]
    only = torch.tensor([[False, True, True], [True, False, False]])
    assert choose(scores, 2, allowed=only).tolist() == [[False, True, True], [True, False, False]]
    assert choose(scores, 9).all()


def test_exploration_tries_others_at_its_rate() -> None:
    """The last place goes to a miner outside the top k about as often as asked, evenly over them."""
    rows = 4000
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0]).expand(rows, 4)
    draws = torch.from_numpy(np.random.default_rng(5).random((rows, 5)))
    chosen = choose(scores, 2, exploration=0.3, draws=draws)
    assert bool((chosen.sum(1) == 2).all())
    assert bool(chosen[:, 0].all())
    assert chosen[:, 1].float().mean().item() == pytest.approx(0.7, abs=0.03)
    assert chosen[:, 2].float().mean().item() == pytest.approx(0.15, abs=0.03)
