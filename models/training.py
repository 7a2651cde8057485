"""One miner's training: short steps on its own text, and the running average of the weights that it serves."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from moed.protocol.codec import Record

from .corpora import Split, TextSource, Tokens
from .device import device_of
from .errors import CheckpointCorrupt, TrainingDiverged
from .lessons import Lesson, distillation_loss
from .optimizer import Adam, LearningRate, clip_gradients

BITS_PER_NAT = 1 / math.log(2)
# So many steps in a row without a finite gradient are not a bad batch any more.
MAX_SKIPPED_IN_A_ROW = 20


class TrainingConfig(Record, frozen=True):
    """How one expert trains: ``rows`` windows of ``length`` bytes a step.

    The size keeps a step under about 100 ms on one core, which bounds how long a request waits behind it.
    ``average_steps`` is the span of the running average: averaging does what a falling rate does at the end of a
    planned run, at every moment of a run without an end.
    """

    rows: int = 32
    length: int = 64
    rate: LearningRate = LearningRate(peak=1.2e-2)
    gradient_limit: float = 1.0
    average_steps: int = 50

    def __post_init__(self) -> None:
        if self.rows < 1 or self.length < 2:
            raise ValueError(f"a step of {self.rows} rows of {self.length} bytes teaches nothing")


def next_byte_bits(log_probs: Tensor, targets: Tensor) -> Tensor:
    """Loss in bits of each byte of ``targets`` [B, T] under ``log_probs`` [B, T, 256]: float [B, T]."""
    return log_probs.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1) * -BITS_PER_NAT


class Trainer:
    """Trains ``module`` in place; ``averaged`` is the copy to serve and to measure.

    ``seed`` decides every batch. Not thread-safe: one device worker runs `step` and the forwards in turn.
    """

    def __init__(self, module: nn.Module, corpus: TextSource, config: TrainingConfig, seed: int) -> None:
        self.module = module
        self.averaged = copy.deepcopy(module).requires_grad_(False).eval()
        self.corpus = corpus
        self.config = config
        self._device = device_of(module)
        self.steps = 0
        self.loss_bits = math.log2(256)
        self._seed = seed
        self._adam = Adam()
        self._skipped_in_a_row = 0
        corpus.sample("train", np.random.default_rng(seed), 1, config.length + 1)  # refuse text too short now

    def step(self, lesson: Lesson | None = None, *, trust: float = 0.0) -> float:
        """One step on one batch; returns the loss in bits per byte on the miner's own rows in it, before the step.

        The rows of a ``lesson`` take the place of as many own ones, so a step costs the same; how far the teacher's
        word counts for more than the true byte is ``trust``, 0 to 1. A batch without a finite loss or gradient
        changes nothing; raises `TrainingDiverged` after `MAX_SKIPPED_IN_A_ROW` of them.
        """
        config = self.config
        self.steps += 1
        # A generator per step: a restart from a checkpoint draws what the unbroken run would have drawn.
        rng = np.random.default_rng((self._seed, self.steps))
        rows = torch.from_numpy(self.corpus.sample("train", rng, config.rows, config.length + 1)).to(self._device)
        self.module.train()
        taught = 0 if lesson is None else min(lesson.rows, config.rows - 1)
        own = rows[taught:]
        own_loss = loss = next_byte_bits(self.module(own[:, :-1]), own[:, 1:]).mean()
        if lesson is not None:
            lesson = lesson.on(self._device)
            told = distillation_loss(self.module(lesson.tokens), lesson, trust)
            loss = own_loss + (told - own_loss) * (taught / config.rows)
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships this method without types
        norm = clip_gradients(self.module.parameters(), config.gradient_limit)
        bits = float(own_loss.detach())
        if not (math.isfinite(bits) and math.isfinite(norm)):
            self._skip()
            return bits
        self._skipped_in_a_row = 0
        self._adam.step(self.module.named_parameters(), config.rate.at(self.steps))
        self._average()
        self.loss_bits += (bits - self.loss_bits) * max(0.05, 1 / self.steps)
        return bits

    def _skip(self) -> None:
        self.module.zero_grad(set_to_none=True)
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingDiverged(
                f"no finite gradient in {self._skipped_in_a_row} steps; lower the learning rate "
                f"(now {self.config.rate.peak:g}) and restart"
            )

    @torch.no_grad()
    def _average(self) -> None:
        # The span grows with the steps, so that the first random weights are soon out of the average.
        share = 1 / min(self.config.average_steps, 1 + self.steps / 5)
        for averaged, current in zip(self.averaged.parameters(), self.module.parameters(), strict=True):
            averaged.lerp_(current, share)
        for kept, latest in zip(self.averaged.buffers(), self.module.buffers(), strict=True):
            kept.copy_(latest)

    def evaluate(self, split: Split = "held_out", *, rows: int = 64, length: int = 128, seed: int = 0) -> float:
        """Mean loss of the averaged weights over ``rows`` windows of ``split``, in bits per byte."""
        drawn = self.corpus.sample(split, np.random.default_rng(seed), rows, length + 1)
        return float(np.mean([evaluate_rows(self.averaged, part) for part in np.array_split(drawn, -(-rows // 16))]))

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on as if nothing had happened, as tensors to store."""
        stored = {f"weights/{name}": value for name, value in self.module.state_dict().items()}
        stored |= {f"averaged/{name}": value for name, value in self.averaged.state_dict().items()}
        stored |= {f"adam/{name}": value for name, value in self._adam.state().items()}
        stored["steps"] = torch.tensor(self.steps, dtype=torch.int64)
        stored["loss_bits"] = torch.tensor(self.loss_bits, dtype=torch.float64)
        return stored

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of `state`, which stays as it is while training goes on."""
        return {name: value.clone() for name, value in self.state().items()}

    def restore(self, stored: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave. Raises `CheckpointCorrupt` where it belongs to another model."""
        try:
            self.module.load_state_dict(_under(stored, "weights/"))
            self.averaged.load_state_dict(_under(stored, "averaged/"))
            self._adam.restore(_under(stored, "adam/"))
            self.steps = int(stored["steps"])
            self.loss_bits = float(stored["loss_bits"])
        except (RuntimeError, KeyError) as error:  # what load_state_dict raises on other names or shapes
            raise CheckpointCorrupt(f"the stored weights are of another model: {error}") from error


def _under(stored: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}


@torch.inference_mode()
def evaluate_rows(module: nn.Module, rows: Tokens) -> float:
    """Mean loss in bits per byte of ``module`` over the bytes after the first in each of ``rows``."""
    tokens = torch.from_numpy(rows).to(device_of(module))
    return float(next_byte_bits(module(tokens[:, :-1]), tokens[:, 1:]).mean())
