"""One layer as a miner hosts it: answers forward, gives gradients backward and learns from them by Adam.

Backward takes up what the forward call before it computed where that is still there: same rows, same weights, one call
kept at most. Else it runs the layer again: between a stranger's two calls anything may happen, and memory that waits
for the second one is memory that he holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from moed.protocol.codec import Record
from moed.protocol.experts import BatchSchema, ExpertInfo

from .checkpoint import Note, load_checkpoint, save_checkpoint, set_aside
from .errors import CheckpointCorrupt, ModelRefused, ShapeMismatch, failed
from .layers import HIDDEN, LAYERS
from .optimizer import Adam, clip_gradients

CHECKPOINT_KIND = "expert hidden"
Rows = npt.NDArray[Any]

_KEPT_ROWS_BYTES = 4 << 20
"""Most bytes of inputs of a forward call that is kept for its backward; a layer holds about ten times as much."""


class LayerSpec(Record, frozen=True, kw_only=True):
    """One layer as the local configuration names it. ``learning_rate`` 0 keeps the weights as they are."""

    name: str
    layer: str
    width: int
    max_rows: int = 1024
    learning_rate: float = 1e-3
    clip_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class _Forward:
    """One forward call with its graph, and how often the weights had been moved before it."""

    x: Tensor
    output: Tensor
    training_steps: int


@dataclass(slots=True)
class HostedLayer:
    """A layer with its optimizer and the place of its checkpoint. Not thread-safe: one device worker calls it."""

    spec: LayerSpec
    module: nn.Module
    path: Path
    optimizer: Adam = field(default_factory=lambda: Adam(beta2=0.999))
    training_steps: int = 0
    _kept: _Forward | None = None
    _is_trained: bool = False  # callers follow a forward with its backward

    @property
    def name(self) -> str:
        """The name that it is served under."""
        return self.spec.name

    @property
    def info(self) -> ExpertInfo:
        """What it takes and gives."""
        spec = self.spec
        return ExpertInfo(
            name=spec.name,
            kind=HIDDEN,
            takes=BatchSchema(dtype="f32", max_rows=spec.max_rows, max_length=spec.width, is_exact=True),
            output_dtype="f32",
            output_shape=(spec.width,),
            forwards_per_s=0.0,
            has_backward=True,
        )

    @property
    def training_loss_bits(self) -> float:
        """Not a number: only its callers know the loss."""
        return math.nan

    @property
    def trains_itself(self) -> bool:
        """It learns from its callers' gradients alone."""
        return False

    def train_step(self) -> float:
        """Nothing to learn from without a caller; the worker asks only what `trains_itself`."""
        return math.nan

    def forward(self, inputs: Rows) -> Rows:
        """Vectors float32 [B, D] to [B, D]; may be a view of ``inputs``. Raises `ExpertFailed` where torch gave up."""
        was_used, self._kept = self._kept is None, None
        self._is_trained = self._is_trained and was_used
        try:
            if self._is_trained and inputs.nbytes <= _KEPT_ROWS_BYTES:
                # a copy: the memory of a request is used again when it has been answered
                self._kept = self._run(torch.from_numpy(inputs.copy()))
                kept: Rows = self._kept.output.detach().numpy()
                return kept
            with torch.inference_mode():
                answer: Rows = self.module(_tensor(inputs)).numpy()
        except (RuntimeError, MemoryError) as error:  # torch's own failures
            raise failed(self.name, error) from error
        return answer

    def backward(self, inputs: Rows, gradients: Rows) -> Rows:
        """`gradient`, and then `learn`."""
        at_input = self.gradient(inputs, gradients)
        self.learn()
        return at_input

    def gradient(self, inputs: Rows, gradients: Rows) -> Rows:
        """The gradient at ``inputs`` [B, D] from that at the outputs. `learn` comes next, before any other call.

        Raises `ShapeMismatch` for a gradient that is not finite: it would ruin the weights. `ExpertFailed` as above.
        """
        at_output = _tensor(gradients)
        # the norm alone costs one pass; it is not finite if any element is not
        if not math.isfinite(float(torch.linalg.vector_norm(at_output))):
            raise ShapeMismatch(f"expert {self.name!r}: a gradient that is not finite")
        try:
            run = self._kept_forward(inputs) or self._run(_tensor(inputs))
            self._kept, self._is_trained = None, True
            torch.autograd.backward(run.output, at_output)
        except (RuntimeError, MemoryError) as error:
            for parameter in self.module.parameters():
                parameter.grad = None  # a part of a gradient is none
            raise failed(self.name, error) from error
        assert run.x.grad is not None
        at_input: Rows = run.x.grad.numpy()
        return at_input

    def _run(self, x: Tensor) -> _Forward:
        x = x.detach().requires_grad_()
        with torch.enable_grad():  # the caller may be inside a backward pass of its own
            return _Forward(x, self.module(x), self.training_steps)

    def _kept_forward(self, inputs: Rows) -> _Forward | None:
        kept = self._kept
        if kept is None or kept.training_steps != self.training_steps:
            return None
        return kept if np.array_equal(kept.x.detach().numpy(), inputs) else None

    def learn(self) -> None:
        """One step of Adam along what `gradient` found: apart from it, because no caller has to wait for it."""
        parameters = list(self.module.named_parameters())
        norm = clip_gradients((parameter for _, parameter in parameters), self.spec.clip_norm)
        if self.spec.learning_rate and math.isfinite(norm):
            self.optimizer.step(parameters, self.spec.learning_rate)
            self.training_steps += 1
        for _, parameter in parameters:
            parameter.grad = None

    def save(self) -> bytes:
        """Store weights and moments; returns the content hash."""
        tensors = {f"weights/{name}": tensor for name, tensor in self.module.state_dict().items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.state().items()}
        tensors["steps"] = torch.tensor(self.training_steps, dtype=torch.int64)
        notes: dict[str, Note] = {
            "name": self.name,
            "layer": self.spec.layer,
            "width": self.spec.width,
        }
        return save_checkpoint(self.path, CHECKPOINT_KIND, tensors, notes)

    def restore(self) -> None:
        """Go on from the checkpoint. Raises `CheckpointCorrupt`, for another layer's too, and `FileNotFoundError`."""
        checkpoint = load_checkpoint(self.path, CHECKPOINT_KIND)
        if checkpoint.notes.get("layer") != self.spec.layer or checkpoint.notes.get("width") != self.spec.width:
            raise CheckpointCorrupt(f"{self.path} is of another layer")
        try:
            self.module.load_state_dict(_below("weights/", checkpoint.tensors))
            self.optimizer.restore(_below("optimizer/", checkpoint.tensors))
            self.training_steps = int(checkpoint.tensors["steps"])
        except (RuntimeError, KeyError) as error:
            raise CheckpointCorrupt(f"{self.path} does not fit the layer: {error}") from error


def open_layer(spec: LayerSpec, folder: Path, seed: int) -> HostedLayer:
    """Build ``spec`` with weights drawn from ``seed``, or go on from its checkpoint in ``folder``.

    A corrupt checkpoint is set aside. Raises `ModelRefused` for a layer that does not exist.
    """
    if spec.layer not in LAYERS or not 1 <= spec.width <= 1 << 16:
        raise ModelRefused(f"expert {spec.name!r}: no layer {spec.layer!r} of width {spec.width}")
    path = folder / f"{spec.name}.ckpt"
    hosted = HostedLayer(spec, _build(spec, seed), path)
    try:
        hosted.restore()
    except FileNotFoundError:
        pass
    except CheckpointCorrupt:
        set_aside(path)
        # built again: a restore that failed half-way may have left some weights in
        hosted = HostedLayer(spec, _build(spec, seed), path)
    return hosted


def _build(spec: LayerSpec, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LAYERS[spec.layer](spec.width)


def _below(prefix: str, tensors: Any) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _tensor(rows: Rows) -> Tensor:
    """A tensor over the received memory; a copy only where that is read-only, which torch would warn about."""
    return torch.from_numpy(rows if rows.flags.writeable else np.array(rows))
