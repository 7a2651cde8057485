"""Handwritten digits learned through a layer of remote experts: a user's model with many batches under way at once.

The data are scikit-learn's digits (1,797 images of 8 × 8, a fifth of them held out). Each batch that is under way works
on its own copy of the caller's few weights, and its gradients go to the shared ones when it comes back: by then those
may have moved, so the caller's own part learns by delayed gradients too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from moed.protocol.codec import Record

from .errors import CorpusUnavailable
from .optimizer import Adam, LearningRate, clip_gradients
from .remote import Patience, Transport
from .remote_mixture import Mixed, RemoteMixture

PREFIX = "ffn."
PIXELS, CLASSES = 64, 10
HELD_OUT = 5
"""Every fifth image is held out."""


class DigitsConfig(Record, frozen=True, kw_only=True):
    """The model and how it learns; the experts' learning rate is in their own specification."""

    width: int = 32
    grid: tuple[int, ...] = (8, 8)
    k_best: int = 4
    k_min: int = 2
    deadline_s: float = 12.0
    grace_s: float = 2.0
    batch_rows: int = 64
    rate: LearningRate = LearningRate(peak=2e-3, warmup_steps=20, decay_from_step=100)
    balance: float = 0.3
    clip_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class Digits:
    """Images float32 [N, 64], each pixel's mean taken off, with their digits int64 [N], for learning and held out."""

    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def load_digits(seed: int) -> Digits:
    """The data, split by ``seed``. Raises `CorpusUnavailable` where scikit-learn is not installed."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise CorpusUnavailable("digits", "scikit-learn is missing", "pip install 'moed[digits]'") from error
    found = load()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(found.target)))
    images = torch.from_numpy(found.data.astype(np.float32) / 16)[order]
    images -= images.mean(dim=0)
    labels = torch.from_numpy(found.target.astype(np.int64))[order]
    is_held_out = torch.arange(len(order)) % HELD_OUT == 0
    return Digits(images[~is_held_out], labels[~is_held_out], images[is_held_out], labels[is_held_out])


class DigitsModel(nn.Module):
    """A linear layer in, the remote mixture, a linear layer out."""

    def __init__(self, config: DigitsConfig, transport: Transport) -> None:
        super().__init__()
        # no bias and no rectifier before the gate: what all rows share would send them all to the same experts
        self.enter = nn.Sequential(nn.Linear(PIXELS, config.width, bias=False), nn.LayerNorm(config.width))
        self.mixture = RemoteMixture(
            config.width,
            config.grid,
            transport=transport,
            prefix=PREFIX,
            k_best=config.k_best,
            k_min=config.k_min,
            patience=Patience(config.deadline_s, config.grace_s),
            is_strict=False,
        )
        self.leave = nn.Linear(config.width, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Mixed]:
        """Images [B, 64] to logits [B, 10], and what the mixture did; a row that nobody answered tells nothing."""
        mixed = self.mixture.mix(self.enter(images))
        return self.leave(mixed.values), mixed


@dataclass(frozen=True, slots=True)
class StepReport:
    """One batch: ``loss`` over its ``rows_answered`` rows (nan if none), the experts ``picked`` [B, k], and how many
    calls and gradients were lost."""

    loss: float
    rows_answered: int
    rows_unanswered: int
    calls_failed: int
    gradients_lost: int
    picked: Tensor


class Learner:
    """The shared weights of a `DigitsModel`, and the batches that move them. One thread at a time may be inside a call
    but for where it waits for the transport."""

    def __init__(self, config: DigitsConfig, data: Digits, transport: Transport, seed: int) -> None:
        self.config, self.data = config, data
        self._transport = transport
        self._order = np.random.default_rng(seed)
        self._waiting: list[Tensor] = []
        self._adam = Adam(beta2=0.999)
        self._steps = 0
        self._copies: list[DigitsModel] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = DigitsModel(config, transport)

    def step(self) -> StepReport:
        """Learn from the next batch."""
        rows = self._next_rows()
        copy = self._copies.pop() if self._copies else DigitsModel(self.config, self._transport)
        copy.load_state_dict(self.model.state_dict())
        copy.mixture.gradients_lost = 0
        logits, mixed = copy(self.data.images[rows])
        self.model.mixture.observe(mixed.picked)
        is_answered = mixed.answered.any(dim=1)
        loss = math.nan
        if is_answered.any():
            error = functional.cross_entropy(logits[is_answered], self.data.labels[rows][is_answered])
            torch.autograd.backward(error + self.config.balance * mixed.balance_loss)
            loss = error.item()
            self._take(copy)
        self._copies.append(copy)
        return StepReport(
            loss=loss,
            rows_answered=int(is_answered.sum()),
            rows_unanswered=len(mixed.rows_unanswered),
            calls_failed=len(mixed.failures),
            gradients_lost=copy.mixture.gradients_lost,
            picked=mixed.picked,
        )

    def accuracy(self) -> float:
        """The share of held-out images that are recognised; one that nobody answered is not."""
        right = 0
        self.model.eval()
        with torch.no_grad():
            for images, labels in zip(
                torch.split(self.data.held_out_images, self.config.batch_rows),
                torch.split(self.data.held_out_labels, self.config.batch_rows),
                strict=True,
            ):
                logits, mixed = self.model(images)
                right += int(((logits.argmax(dim=1) == labels) & mixed.answered.any(dim=1)).sum())
        self.model.train()
        return right / len(self.data.held_out_labels)

    def _next_rows(self) -> Tensor:
        if not self._waiting:
            order = torch.from_numpy(self._order.permutation(len(self.data.labels)))
            whole = len(order) // self.config.batch_rows
            self._waiting = list(torch.split(order[: whole * self.config.batch_rows], self.config.batch_rows))
        return self._waiting.pop()

    def _take(self, copy: DigitsModel) -> None:
        """Move the shared weights by a copy's gradients."""
        gradients = dict(copy.named_parameters())
        parameters = list(self.model.named_parameters())
        for name, parameter in parameters:
            parameter.grad = gradients[name].grad
            gradients[name].grad = None
        if math.isfinite(clip_gradients((one for _, one in parameters), self.config.clip_norm)):
            self._steps += 1
            self._adam.step(parameters, self.config.rate.at(self._steps))
        for _, parameter in parameters:
            parameter.grad = None
