"""What a validator's brain is configured with, hands out and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from moed.protocol.codec import Record

from .corpora import Tokens
from .gate import GateConfig
from .optimizer import LearningRate

Purpose = Literal["route", "probe"]


class ValidatorConfig(Record, frozen=True):
    """How a validator asks and learns.

    ``rows`` rows of ``length`` bytes a plan: an answer to all of them is rows x length x 256 numbers. Every
    ``probe_every``-th plan asks every miner about every row.
    """

    gate: GateConfig = GateConfig()
    rows: int = 12
    length: int = 128
    rate: LearningRate = LearningRate(peak=0.03, warmup_steps=3, decay_from_step=20, floor=0.005)
    probe_every: int = 4
    # Answers are dear and gate steps are cheap: each plan is learned from once when it comes and ``replays`` more
    # steps (one: three were seen to overfit within 60 plans) go to plans drawn from the last ``memory_plans``,
    # whose answers are a little out of date.
    replays: int = 1
    # Steps on the features for each plan, on rows that nobody is asked about.
    feature_steps: int = 6
    feature_rows: int = 48
    memory_plans: int = 48
    score_alpha: float = 0.1
    decoy_chance: float = 0.25
    # Rows of each probe that are no task at all: what shows whose answers are whose.
    canary_rows: int = 2

    def __post_init__(self) -> None:
        if self.rows < 1 or self.length <= self.gate.prefix_bytes + 1:
            raise ValueError(f"rows of {self.length} bytes leave nothing after {self.gate.prefix_bytes} to score")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask: ``rows_for(uid)`` goes to each uid of ``assignment``, whose answer is [rows, T, 256].

    tokens   uint8 [B, T] as sent, a false byte at ``decoys[row]`` where that is not -1
    targets  uint8 [B, T], what tells a good answer; in text the true byte after each position
    weights  float32 [B, T], how much each position counts, 0 where it does not
    domains  the name of each row's lock; the last ``canaries`` rows belong to none
    """

    purpose: Purpose
    tokens: Tokens
    targets: Tokens
    weights: npt.NDArray[np.float32]
    decoys: npt.NDArray[np.int64]
    domains: tuple[str, ...]
    uids: tuple[int, ...]
    assignment: Mapping[int, npt.NDArray[np.int64]]
    canaries: int = 0

    @property
    def scored(self) -> npt.NDArray[np.bool_]:
        """The positions that count, bool [B, T]."""
        return self.weights > 0

    @property
    def is_task(self) -> npt.NDArray[np.bool_]:
        """The rows that belong to a lock, bool [B]."""
        return np.arange(len(self.tokens)) < len(self.tokens) - self.canaries

    def rows_for(self, uid: int) -> Tokens:
        """The rows to send to ``uid``."""
        return self.tokens[self.assignment[uid]]


@dataclass(frozen=True, slots=True)
class LearnReport:
    """What one plan taught.

    ``loss_bits`` is the mixture's loss before the step (None where no row was answered), ``share`` each miner's mean
    weight, ``values`` its Shapley value in bits per byte (probe plans only), ``invalid`` the reason of each refusal.
    """

    loss_bits: float | None
    rows_unanswered: int
    unanswered: tuple[int, ...]
    invalid: Mapping[int, str]
    share: Mapping[int, float]
    values: Mapping[int, float] | None


@dataclass(frozen=True, slots=True)
class Route:
    """The miners to ask about one context, best first, with their gate scores."""

    uids: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Mixed:
    """The mixture's answer to one context: next-byte ``log_probs`` float32 [256], each answering miner's weight in it,
    and the code of each refused answer."""

    log_probs: npt.NDArray[np.float32]
    weights: Mapping[int, float]
    refused: Mapping[int, str]
