"""What the device worker needs of an expert, and what it tells of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from moed.protocol.experts import ExpertInfo

Rows = npt.NDArray[Any]


class Hosted(Protocol):
    """What the worker needs of an expert: `moed.models.hosting.HostedExpert` has it."""

    @property
    def name(self) -> str: ...
    @property
    def info(self) -> ExpertInfo: ...
    @property
    def trains_itself(self) -> bool: ...
    @property
    def training_loss_bits(self) -> float: ...
    @property
    def training_steps(self) -> int: ...
    def forward(self, inputs: Rows) -> Rows: ...
    def train_step(self) -> float: ...
    def save(self) -> bytes: ...


class TeachableHosted(Hosted, Protocol):
    """An expert whose ``info.has_backward`` is true has this too. After `gradient`, `learn` is the next call."""

    def gradient(self, inputs: Rows, gradients: Rows) -> Rows: ...
    def learn(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """What one expert has done: ``forwards_per_s`` is the moving average of its rate while it works, 0 before."""

    name: str
    forwards_per_s: float
    rows_served: int
    training_loss_bits: float
    training_steps: int
    is_training: bool


@dataclass(frozen=True, slots=True)
class RuntimeLoad:
    """How busy the device is: ``queue_delay_ms`` is the moving average from submission to start."""

    queue_delay_ms: float
    waiting_requests: int
    waiting_rows: int
    experts: tuple[ExpertLoad, ...]
