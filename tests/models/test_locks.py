"""Locks: what a validator sets as a task may be anything that bytes can ask, and its judgement trains the gate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from moed.models.corpora import Split, load_corpus
from moed.models.errors import ModelRefused
from moed.models.experiments.members import Answering
from moed.models.gate import GateConfig
from moed.models.locks import Baseline, LockRows, NextByte, as_lock, load_lock
from moed.models.plans import ValidatorConfig
from moed.models.promptness import PATIENCE_S, Promptness
from moed.models.validation import ValidatorBrain
from support.locks import Guesser, Parity, Solver

LENGTH = 24


def test_a_lock_of_ones_own_pays_who_solves_it() -> None:
    """The gate learns from the lock's own judgement, no decoy is planted, and only the solver's answers are worth much:
    what everybody can count is worth nothing."""
    gate = GateConfig(k=1, prefix_bytes=8, buckets=64, width=8)
    config = ValidatorConfig(rows=6, length=LENGTH, decoy_chance=1.0, feature_steps=1, feature_rows=8, gate=gate)
    brain = ValidatorBrain([Parity()], config, seed=3)
    brain.set_miners({1, 2})
    miners: dict[int, Answering] = {1: Solver(), 2: Guesser()}
    for _ in range(12):
        plan = brain.plan(probe=True)
        assert (plan.decoys == -1).all()
        brain.learn(plan, {uid: one.answer(plan.rows_for(uid)) for uid, one in miners.items()})
    scores = brain.scores.scores
    assert scores[1] > 0.5
    assert abs(scores[2]) < 0.1
    weights = brain.weights()
    assert weights[1] > 10 * weights[2]


def test_the_weight_of_a_lock_is_the_weight_of_its_positions() -> None:
    """Rows of a lock that counts twice count twice in a plan; canaries count for nothing."""
    tables = load_corpus("tables")
    config = ValidatorConfig(rows=4, length=LENGTH, gate=GateConfig(prefix_bytes=8, buckets=64, width=8))
    brain = ValidatorBrain([NextByte(tables, weight=1.0), Parity()], config, seed=3)
    brain.set_miners({1, 2})
    plan = brain.plan(probe=True)
    assert plan.canaries == 2
    for row, name in enumerate(plan.domains):
        expected = {"tables": 1.0, "parity": 2.0, "canary": 0.0}[name]
        assert set(plan.weights[row, 7:].tolist()) <= {expected, 0.0}
        assert plan.weights[row, :7].sum() == 0
    assert plan.is_task.tolist() == [name != "canary" for name in plan.domains]


class Worth(Parity):
    """Parity whose every answer is judged alike, and of whose rows only some positions count."""

    def __init__(self, judgement: float, *, counts: bool) -> None:
        self._judgement = judgement
        self._counts = counts

    def draw(self, _split: Split, rng: np.random.Generator, rows: int, length: int) -> LockRows:
        drawn = super().draw(_split, rng, rows, length)
        return LockRows(drawn.tokens, drawn.targets, np.full((rows, length), self._counts))

    def judge(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        return torch.full(targets.shape, self._judgement)


@pytest.mark.parametrize(
    ("judgement", "counts"),
    [(-math.inf, True), (math.nan, True), (-1.0, False)],
    ids=["worth nothing", "not a number", "nothing counts"],
)
def test_what_a_lock_says_does_not_end_the_gate(judgement: float, counts: bool) -> None:
    """Answers that are worth nothing, a lock that is wrong, rows of which no position counts: the gate stays finite."""
    gate = GateConfig(k=1, prefix_bytes=8, buckets=64, width=8)
    config = ValidatorConfig(rows=4, length=LENGTH, feature_steps=1, feature_rows=8, gate=gate)
    brain = ValidatorBrain([Worth(judgement, counts=counts)], config, seed=3)
    brain.set_miners({1, 2})
    for _ in range(2):
        plan = brain.plan(probe=True)
        report = brain.learn(plan, {uid: Guesser().answer(plan.rows_for(uid)) for uid in (1, 2)})
        assert (report.rows_unanswered, report.invalid) == (0, {})
        assert (report.loss_bits is None) == (not counts)
    assert all(torch.isfinite(one).all() for one in brain.gate.parameters())
    assert not any(brain.weights().values())


def test_a_corpus_is_the_lock_of_its_text() -> None:
    """Its rows continue each other, and its judgement is the log-probability of the true byte."""
    lock = as_lock(load_corpus("tables"))
    rows = lock.draw("validation", np.random.default_rng(1), 3, LENGTH)
    assert (rows.tokens[:, 1:] == rows.targets[:, :-1]).all()
    log_probs = torch.randn(3, LENGTH, 256, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    judged = lock.judge(log_probs, torch.from_numpy(rows.targets))
    assert judged[2, 5] == log_probs[2, 5, int(rows.targets[2, 5])]
    assert as_lock(lock) is lock


def test_a_lock_comes_in_by_name() -> None:
    """As the configuration names it; what is no lock is refused with its name."""
    lock = load_lock("support.locks:make_parity")
    assert lock.name == "parity"
    for wrong in (
        "support.locks:nothing",
        "no_such_module:make",
        "support.locks:make_no_lock",
        "support.locks:make_trouble",
    ):
        with pytest.raises(ModelRefused, match=wrong.split(":")[1]):
            load_lock(wrong)


def test_the_baseline_is_the_counts_of_byte_pairs() -> None:
    """It sums to one everywhere, and gives the letters after a bit of parity half each."""
    answer = Baseline((Parity(),), seed=1, length=LENGTH).answer(torch.tensor([[ord("0")]], dtype=torch.uint8))
    assert answer.exp().sum().item() == pytest.approx(1, abs=1e-4)
    assert answer[0, 0, ord("e")].exp().item() == pytest.approx(0.5, abs=0.05)


def test_punctuality_is_what_a_miner_keeps() -> None:
    """In good time counts whole, late falls to nothing at the deadline, silence counts as nothing, the past fades."""
    clock = Promptness()
    assert clock.of(5) == 1
    clock.record(5, PATIENCE_S / 2, 10)
    assert clock.of(5) == 1
    clock.record(5, None, 10)
    assert clock.of(5) == pytest.approx(0.5)
    clock.record(6, (10 + PATIENCE_S) / 2, 10)
    assert clock.of(6) == pytest.approx(0.5)
    for _ in range(200):
        clock.record(5, 0.1, 10)
    assert clock.of(5) > 0.99
    clock.keep_only({6})
    assert clock.of(5) == 1
