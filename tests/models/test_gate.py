"""The gate sees no further than the experts, and miners come and go without disturbing the others."""

from __future__ import annotations

import pytest
import torch

from moed.models.gate import Gate, GateConfig, decision_scores

CONFIG = GateConfig(width=8, buckets=64, prefix_bytes=4)


def gate(*uids: int) -> Gate:
    made = Gate(CONFIG, uids, task_count=2, seed=1)
    with torch.no_grad():
        for uid in uids:
            made.miners[str(uid)].copy_(torch.randn(9, generator=torch.Generator().manual_seed(uid)))
    return made


def test_scores_at_a_position_do_not_depend_on_later_bytes() -> None:
    """Changing byte 6 leaves the scores of positions 0 to 5, the decision among them, as they were."""
    made = gate(3, 5)
    tokens = torch.randint(256, (2, 12), dtype=torch.uint8)
    changed = tokens.clone()
    changed[:, 6] ^= 255
    before, after = made(tokens), made(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6], after[:, 6])
    assert torch.equal(decision_scores(before, 4), decision_scores(made(tokens[:, :4]), 4))


def test_evidence_at_a_position_uses_earlier_answers_only() -> None:
    """What a member gave to the byte after position t counts from position t + 1 on, and fades."""
    made = gate(1, 2)
    target_log_probs = torch.zeros(1, 6, 2)
    target_log_probs[0, 2, 1] = -3.0
    evidence = made.evidence(target_log_probs)[0].detach()
    assert evidence[:3].abs().sum() == 0
    assert evidence[3, 1].item() == pytest.approx(-3 * CONFIG.evidence_gain, rel=1e-5)
    assert evidence[4, 1].item() == pytest.approx(evidence[3, 1].item() * CONFIG.evidence_decay, rel=1e-5)
    assert evidence[:, 0].abs().sum() == 0


def test_the_set_of_miners_may_change() -> None:
    """Others keep their rows, a newcomer starts at their mean, and the axis follows the uids in order."""
    made = gate(7, 2)
    tokens = torch.randint(256, (1, 6), dtype=torch.uint8)
    before = made(tokens)
    assert made.set_uids([2, 4, 7]) == ({4}, set())
    after = made(tokens)
    assert made.uids == (2, 4, 7)
    assert torch.allclose(after[..., [0, 2]], before)
    assert torch.allclose(after[..., 1], before.mean(-1), atol=1e-5)
    assert made.set_uids([4]) == (set(), {2, 7})
    assert made(tokens).shape == (1, 6, 1)


@pytest.mark.parametrize(
    "wrong", [{"k": 0}, {"prefix_bytes": 0}, {"evidence_decay": 1.0}, {"evidence_gain": 0.0}, {"buckets": 0}]
)
def test_a_configuration_that_cannot_work_is_refused(wrong: dict[str, float]) -> None:
    """Each field says what it may be."""
    with pytest.raises(ValueError, match=r"must be|is above"):
        GateConfig(**wrong)  # type: ignore[arg-type]  # the point of the test


def test_exploration_falls_to_its_floor() -> None:
    """With the square root of the batches, and never below."""
    config = GateConfig(exploration=0.5, exploration_floor=0.05)
    assert [config.exploration_at(batch) for batch in (1, 25, 10_000)] == [0.5, 0.1, 0.05]
