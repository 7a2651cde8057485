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
from .device import CPU, Device
from .errors import CheckpointCorrupt, ModelRefused, ShapeMismatch
from .layers import CLASSIFY, LAYERS
from .optimizer import Adam, clip_gradients

CHECKPOINT_KIND = "expert hidden"
Rows = npt.NDArray[Any]

KEPT_ROWS_BYTES = 4 << 20
"""Most bytes of inputs of a forward call that is kept for its backward; a layer holds about ten times as much."""


class LayerSpec(Record, frozen=True, kw_only=True):
    """One layer as the local configuration names it. ``learning_rate`` 0 keeps the weights as they are; ``classes`` is
    for a layer that classifies, and 0 for every other."""

    name: str
    layer: str
    width: int
    classes: int = 0
    max_rows: int = 1024
    learning_rate: float = 1e-3
    clip_norm: float = 1.0

    @property
    def out_width(self) -> int:
        """The numbers in one row of its answer."""
        return self.classes or self.width


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
    device: Device = CPU
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
            kind=LAYERS[spec.layer].kind,
            takes=BatchSchema(dtype="f32", max_rows=spec.max_rows, max_length=spec.width, is_exact=True),
            output_dtype="f32",
            output_shape=(spec.out_width,),
            forwards_per_s=0.0,
            has_backward=True,
        )

    @property
    def bytes_to_come(self) -> int:
        """The least memory that it takes beside its weights: moments and gradients, and a full batch's answer."""
        learned = 3 * sum(one.numel() * one.element_size() for one in self.module.parameters())
        return (learned if self.spec.learning_rate else 0) + self.spec.max_rows * self.spec.out_width * 4

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
        """float32 [B, D] to [B, out]; may be a view of ``inputs``. Raises `ExpertFailed` where torch gave up."""
        was_used, self._kept = self._kept is None, None
        self._is_trained = self._is_trained and was_used
        try:
            if self._is_trained and inputs.nbytes <= KEPT_ROWS_BYTES:
                # a copy: the memory of a request is used again when it has been answered
                self._kept = self._run(self.device.put(inputs.copy()))
                return self.device.fetch(self._kept.output)
            with torch.inference_mode(), self.device.computing():
                answer = self.module(self.device.put(inputs))
            return self.device.fetch(answer.float())
        except (RuntimeError, MemoryError) as error:  # torch's own failures
            self._kept = None
            raise self.device.failure(self.name, error) from error

    def backward(self, inputs: Rows, gradients: Rows) -> Rows:
        """`gradient`, and then `learn`."""
        at_input = self.gradient(inputs, gradients)
        self.learn()
        return at_input

    def gradient(self, inputs: Rows, gradients: Rows) -> Rows:
        """The gradient at ``inputs`` [B, D] from that at the outputs [B, out]. Next comes `learn`, and no other call.

        Raises `ShapeMismatch` for a gradient that is not finite: it would ruin the weights. `ExpertFailed` as above.
        """
        at_output = self.device.put(gradients)
        # the norm alone costs one pass; it is not finite if any element is not
        if not math.isfinite(float(torch.linalg.vector_norm(at_output))):
            raise ShapeMismatch(f"expert {self.name!r}: a gradient that is not finite")
        try:
            run = self._kept_forward(inputs) or self._run(self.device.put(inputs))
            self._kept, self._is_trained = None, True
            torch.autograd.backward(run.output, at_output)
            assert run.x.grad is not None
            return self.device.fetch(run.x.grad)
        except (RuntimeError, MemoryError) as error:
            for parameter in self.module.parameters():
                parameter.grad = None  # a part of a gradient is none
            raise self.device.failure(self.name, error) from error

    def _run(self, x: Tensor) -> _Forward:
        x = x.detach().requires_grad_()
        with torch.enable_grad():  # the caller may be inside a backward pass of its own
            return _Forward(x, self.module(x), self.training_steps)

    def _kept_forward(self, inputs: Rows) -> _Forward | None:
        kept = self._kept
        if kept is None or kept.training_steps != self.training_steps:
            return None
        return kept if np.array_equal(self.device.fetch(kept.x), inputs) else None

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
            "classes": self.spec.classes,
        }
        return save_checkpoint(self.path, CHECKPOINT_KIND, tensors, notes)

    def restore(self) -> None:
        """Go on from the checkpoint. Raises `CheckpointCorrupt`, for another layer's too, and `FileNotFoundError`."""
        checkpoint = load_checkpoint(self.path, CHECKPOINT_KIND)
        spec, notes = self.spec, checkpoint.notes
        # checkpoints from before there were classes have none
        if (notes.get("layer"), notes.get("width"), notes.get("classes", 0)) != (spec.layer, spec.width, spec.classes):
            raise CheckpointCorrupt(f"{self.path} is of another layer")
        try:
            self.module.load_state_dict(_below("weights/", checkpoint.tensors))
            self.optimizer.restore(_below("optimizer/", checkpoint.tensors))
            self.training_steps = int(checkpoint.tensors["steps"])
        except (RuntimeError, KeyError) as error:
            raise CheckpointCorrupt(f"{self.path} does not fit the layer: {error}") from error


def open_layer(spec: LayerSpec, folder: Path, seed: int, device: Device = CPU) -> HostedLayer:
    """Build ``spec`` on ``device`` with weights drawn from ``seed``, or go on from its checkpoint in ``folder``.

    A corrupt checkpoint is set aside. Raises `ModelRefused` for a layer that does not exist.
    """
    path = folder / f"{spec.name}.ckpt"
    hosted = HostedLayer(spec, build_layer(spec, seed, device), path, device)
    try:
        hosted.restore()
    except FileNotFoundError:
        pass
    except CheckpointCorrupt:
        set_aside(path)
        # built again: a restore that failed half-way may have left some weights in
        hosted = HostedLayer(spec, build_layer(spec, seed, device), path, device)
    return hosted


def build_layer(spec: LayerSpec, seed: int, device: Device = CPU) -> nn.Module:
    """The module of ``spec``, its weights drawn from ``seed``. Raises `ModelRefused` for one that does not exist."""
    if spec.layer not in LAYERS or not 1 <= spec.width <= 1 << 16:
        raise ModelRefused(f"expert {spec.name!r}: no layer {spec.layer!r} of width {spec.width}")
    if (LAYERS[spec.layer].kind == CLASSIFY) != (spec.classes >= 1):
        raise ModelRefused(f"expert {spec.name!r}: classes is for a layer that classifies, and needed there")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return device.place(LAYERS[spec.layer].make(spec.width, spec.classes))


def _below(prefix: str, tensors: Any) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
