"""A hosted layer: gradients as autograd's, learning by Adam, and checkpoints that go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from moed.models.errors import ModelRefused, ShapeMismatch
from moed.models.hosted_layer import HostedLayer, LayerSpec, Rows, open_layer

WIDTH = 8
ROWS = np.random.default_rng(1).standard_normal((5, WIDTH), dtype=np.float32)


def layer(folder: Path, *, name: str = "x", kind: str = "ffn", rate: float = 1e-2, seed: int = 1) -> HostedLayer:
    return open_layer(LayerSpec(name=name, layer=kind, width=WIDTH, learning_rate=rate), folder, seed)


def test_gradients_are_autograds_own(tmp_path: Path) -> None:
    """Forward and backward through the hosted layer are those of its module; at rate 0 nothing is learned."""
    hosted = layer(tmp_path, rate=0.0)
    x = torch.from_numpy(ROWS.copy()).requires_grad_()
    y = hosted.module(x)
    torch.autograd.backward(y.square().sum())
    assert x.grad is not None
    assert np.allclose(hosted.forward(ROWS), y.detach().numpy(), atol=1e-6)
    assert np.allclose(hosted.backward(ROWS, 2 * y.detach().numpy()), x.grad.numpy(), atol=1e-5)
    assert hosted.training_steps == 0
    assert np.array_equal(hosted.forward(ROWS), layer(tmp_path, name="y", rate=0.0).forward(ROWS))


def test_it_learns_from_its_callers(tmp_path: Path) -> None:
    """Steps against the gradient of a squared error make the error fall."""
    hosted, target = layer(tmp_path), np.tanh(ROWS)
    errors = []
    for _ in range(60):
        difference = hosted.forward(ROWS) - target
        errors.append(float((difference**2).mean()))
        hosted.backward(ROWS, 2 * difference)
    assert errors[-1] < errors[0] / 4
    assert hosted.training_steps == 60


def test_backward_takes_up_the_forward_before_it_only_where_that_is_the_same_call(tmp_path: Path) -> None:
    """Kept or run again, gradients and weights are those of a layer that always runs again, bit for bit."""
    kept, again = layer(tmp_path, name="kept"), layer(tmp_path, name="again")
    runs: list[int] = []
    kept.module.register_forward_hook(lambda *_: runs.append(1))
    memory = ROWS.copy()
    for step in range(4):
        assert np.allclose(kept.forward(memory), again.forward(ROWS), atol=1e-6)
        memory[:] = np.nan  # what came in is used again once it is answered
        if step == 1:  # somebody else asks between: his rows are answered, and nobody gets another one's gradient
            kept.forward(ROWS + 1)
            again.forward(ROWS + 1)
        if step == 2:  # somebody else moves the weights between
            kept.backward(ROWS + 1, ROWS)
            again.backward(ROWS + 1, ROWS)
        memory[:] = ROWS
        again._kept = None
        assert np.allclose(kept.backward(memory, ROWS), again.backward(ROWS, ROWS), atol=1e-6)
    # forward and backward at first; then one run for both; two askers; two of whom the other was first; one again
    assert len(runs) == 2 + 3 + 3 + 1


def test_what_is_only_asked_keeps_nothing(tmp_path: Path) -> None:
    """Without a backward call, or with more rows than are kept, no graph waits for one."""
    hosted = layer(tmp_path)
    many = np.zeros(((4 << 20) // (4 * WIDTH) + 1, WIDTH), np.float32)

    def keeps(rows: Rows) -> bool:
        hosted.forward(rows)
        return hosted._kept is not None

    assert not keeps(ROWS)
    hosted.backward(ROWS, ROWS)
    assert not keeps(many)
    assert keeps(ROWS)
    assert not keeps(ROWS), "the one before was not followed by its backward"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_cannot_ruin_the_weights(tmp_path: Path, bad: float) -> None:
    """It is refused, and the layer answers as before."""
    hosted = layer(tmp_path)
    before = hosted.forward(ROWS).copy()
    gradients = np.ones_like(ROWS)
    gradients[2, 3] = bad
    with pytest.raises(ShapeMismatch):
        hosted.backward(ROWS, gradients)
    assert np.array_equal(hosted.forward(ROWS), before)


def test_huge_gradients_move_the_weights_no_further_than_a_step(tmp_path: Path) -> None:
    """Finite ones whose square is not, too: the answers stay finite."""
    hosted = layer(tmp_path)
    for scale in (1e4, 1e30, 3e38):
        try:
            hosted.backward(ROWS, np.full_like(ROWS, scale))
        except ShapeMismatch:
            continue
        assert np.isfinite(hosted.forward(ROWS)).all()


def test_a_checkpoint_goes_on_where_it_was(tmp_path: Path) -> None:
    """Weights, moments and steps: the next step is the same as without a restart."""
    hosted = layer(tmp_path)
    for _ in range(3):
        hosted.backward(ROWS, ROWS)
    hosted.save()
    again = layer(tmp_path, seed=9)
    assert again.training_steps == 3
    assert np.array_equal(hosted.backward(ROWS, ROWS), again.backward(ROWS, ROWS))
    assert np.array_equal(hosted.forward(ROWS), again.forward(ROWS))


def test_another_layers_checkpoint_is_set_aside(tmp_path: Path) -> None:
    """The expert starts anew and the file stays for a person to look at."""
    layer(tmp_path, kind="identity").save()
    assert layer(tmp_path).training_steps == 0
    assert (tmp_path / "x.ckpt.corrupt").exists()


def test_features_have_one_scale_and_classes_are_chances(tmp_path: Path) -> None:
    """Whatever the scale of what comes in: features have mean 0 and variance 1, and chances sum to one."""
    encoder = open_layer(LayerSpec(name="e", layer="encoder", width=WIDTH), tmp_path, 1)
    classifier = open_layer(LayerSpec(name="c", layer="classifier", width=WIDTH, classes=3), tmp_path, 1)
    assert (encoder.info.kind, classifier.info.kind) == ("features", "classify")
    assert classifier.info.output_shape == (3,)
    for scale in (0.1, 100.0):
        features = encoder.forward(scale * ROWS)
        assert features.shape == ROWS.shape
        assert np.allclose(features.mean(axis=1), 0, atol=1e-5)
        assert np.allclose(features.var(axis=1), 1, atol=0.05)
        log_probs = classifier.forward(features)
        assert log_probs.shape == (5, 3)
        assert np.allclose(np.exp(log_probs).sum(axis=1), 1, atol=1e-5)
    classifier.save()
    other = open_layer(LayerSpec(name="c", layer="classifier", width=WIDTH, classes=4), tmp_path, 1)
    assert other.forward(ROWS).shape == (5, 4)
    assert (tmp_path / "c.ckpt.corrupt").exists(), "the weights of three classes are not those of four"


@pytest.mark.parametrize(("kind", "classes"), [("classifier", 0), ("ffn", 3)])
def test_classes_go_with_a_classifier_alone(tmp_path: Path, kind: str, classes: int) -> None:
    """Both ways around it is refused, by name."""
    with pytest.raises(ModelRefused, match="classes"):
        open_layer(LayerSpec(name="c", layer=kind, width=WIDTH, classes=classes), tmp_path, 1)


def test_an_unknown_layer_is_refused(tmp_path: Path) -> None:
    """By name, before anything is built."""
    with pytest.raises(ModelRefused):
        layer(tmp_path, kind="attention")


def test_a_block_sees_only_what_comes_before_in_its_own_row(tmp_path: Path) -> None:
    """Changing the last vector of a row changes nothing before it, nor any other row; the width must fit."""
    block = open_layer(LayerSpec(name="b", layer="block", width=128), tmp_path, 1)
    rows = np.random.default_rng(2).standard_normal((3, 128), dtype=np.float32)
    before, changed = block.forward(rows).copy(), rows.copy()
    changed[1, -8:] += 1
    after = block.forward(changed)
    assert np.allclose(before[[0, 2]], after[[0, 2]], atol=1e-6)
    assert np.allclose(before[1, :-8], after[1, :-8], atol=1e-6)
    assert not np.allclose(before[1, -8:], after[1, -8:], atol=1e-3)
    assert block.backward(rows, rows).shape == (3, 128)
    with pytest.raises(ModelRefused, match="multiple"):
        open_layer(LayerSpec(name="c", layer="block", width=100), tmp_path, 1)
