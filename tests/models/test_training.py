"""Training lowers the loss, survives a restart to the bit, and stops when it cannot go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from moed.models.checkpoint import load_checkpoint, save_checkpoint
from moed.models.corpora import load_corpus
from moed.models.errors import CheckpointCorrupt, CorpusUnavailable, TrainingDiverged
from moed.models.experts import ExpertSpec, build_expert
from moed.models.optimizer import Adam, LearningRate, clip_gradients
from moed.models.training import MAX_SKIPPED_IN_A_ROW, Trainer, TrainingConfig

SPEC = ExpertSpec(name="x", options={"embedding": 16, "width": 24, "ngram_buckets": 256})
SHORT = TrainingConfig(rows=8, length=32)


def make_trainer(seed: int = 1, spec: ExpertSpec = SPEC) -> Trainer:
    return Trainer(build_expert(spec, seed).module, load_corpus("tables"), SHORT, seed)


def test_held_out_loss_falls() -> None:
    """Sixty short steps take the averaged weights well below the 8 bits of knowing nothing."""
    trainer = make_trainer()
    before = trainer.evaluate(rows=16, length=64)
    losses = [trainer.step() for _ in range(60)]
    assert before > 7.5
    assert trainer.evaluate(rows=16, length=64) < 5.0
    assert np.mean(losses[-5:]) < losses[0] - 2
    assert trainer.steps == 60


def test_restart_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    """Ten steps, a checkpoint, a new process's trainer and ten more give the weights of twenty, bit for bit."""
    unbroken = make_trainer()
    for _ in range(20):
        unbroken.step()
    first = make_trainer()
    for _ in range(10):
        first.step()
    save_checkpoint(tmp_path / "x.ckpt", "test", first.state())
    second = make_trainer()
    second.restore(load_checkpoint(tmp_path / "x.ckpt", "test").tensors)
    for _ in range(10):
        second.step()
    assert second.steps == 20
    for one, other in ((unbroken.module, second.module), (unbroken.averaged, second.averaged)):
        weights = other.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in one.state_dict().items())


def test_state_of_another_model_is_refused() -> None:
    """A checkpoint of another width does not load."""
    wider = ExpertSpec(name="x", options={"embedding": 16, "width": 32, "ngram_buckets": 256})
    with pytest.raises(CheckpointCorrupt, match="another model"):
        make_trainer(spec=wider).restore(make_trainer().state())


def test_not_finite_steps_change_nothing_and_then_stop() -> None:
    """Weights that give no finite loss are never averaged in, and training says so in the end."""
    trainer = make_trainer()
    trainer.step()
    averaged = {name: value.clone() for name, value in trainer.averaged.state_dict().items()}
    with torch.no_grad():
        next(trainer.module.parameters()).fill_(torch.nan)
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        trainer.step()
    with pytest.raises(TrainingDiverged, match="lower the learning rate"):
        trainer.step()
    assert all(torch.equal(value, averaged[name]) for name, value in trainer.averaged.state_dict().items())


def test_text_shorter_than_a_row_is_refused_at_once() -> None:
    """The mistake shows when the trainer is made, not at some later step."""
    with pytest.raises(CorpusUnavailable, match="tables"):
        Trainer(build_expert(SPEC, 0).module, load_corpus("tables"), TrainingConfig(length=1 << 22), 0)


def test_adam_is_the_published_algorithm() -> None:
    """Against algorithm 1 of the paper in plain numpy, over fifty random gradients."""
    rng = np.random.default_rng(3)
    parameter = torch.tensor(rng.normal(size=5))
    weights, mean, square = parameter.numpy().copy(), np.zeros(5), np.zeros(5)
    adam = Adam(beta1=0.9, beta2=0.98, epsilon=1e-8)
    for step in range(1, 51):
        gradient = rng.normal(size=5)
        parameter.grad = torch.tensor(gradient)
        adam.step([("p", parameter)], 0.01)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.98 * square + 0.02 * gradient**2
        weights -= 0.01 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.98**step)) + 1e-8)
    assert np.allclose(parameter.numpy(), weights, rtol=0, atol=1e-12)


def test_a_parameter_without_gradient_stays() -> None:
    """It neither moves nor loses its moments."""
    adam, parameter = Adam(), torch.zeros(2)
    parameter.grad = torch.ones(2)
    adam.step([("p", parameter)], 0.1)
    moved, remembered = parameter.clone(), {name: value.clone() for name, value in adam.state().items()}
    adam.step([("p", parameter)], 0.1)
    assert torch.equal(parameter, moved)
    assert all(torch.equal(adam.state()[name], value) for name, value in remembered.items())


def test_learning_rate_warms_up_holds_and_falls() -> None:
    """Each part of the curve, and the floor that it never falls below."""
    rate = LearningRate(peak=1.0, warmup_steps=10, decay_from_step=100, floor=0.25)
    assert [rate.at(step) for step in (1, 5, 10, 100, 400, 10_000)] == pytest.approx([0.1, 0.5, 1, 1, 0.5, 0.25])


def test_gradients_are_clipped_together() -> None:
    """The norm over all of them is brought to the limit; the direction stays."""
    one, two = torch.zeros(1), torch.zeros(1)
    one.grad, two.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients([one, two], 1.0) == pytest.approx(5.0)
    assert one.grad.item() == pytest.approx(0.6)
    assert two.grad.item() == pytest.approx(0.8)
