"""Miners of an experiment: small models trained on real text, which answer a validator's plans in process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from moed.models.corpora import Blend, Corpus, TextSource, Tokens
from moed.models.experts import ExpertSpec, build_expert
from moed.models.plans import Plan
from moed.models.training import Trainer, TrainingConfig

Say = Callable[[str], None]
REPORT_EVERY_S = 10.0


class Answering(Protocol):
    """Whoever can be asked in process."""

    def answer(self, tokens: Tokens) -> npt.NDArray[Any]:
        """Log-probabilities [B, T, 256] of the byte after each of ``tokens`` [B, T]."""
        ...


@dataclass(frozen=True, slots=True)
class Member:
    """One miner: its name, the text that it learned, and the weights that it serves."""

    name: str
    text: TextSource
    module: nn.Module

    def answer(self, tokens: Tokens) -> npt.NDArray[np.float16]:
        """As it would travel: log-probabilities float16 [B, T, 256]."""
        with torch.inference_mode():
            answered: npt.NDArray[np.float32] = self.module(torch.from_numpy(np.array(tokens))).numpy()
        return answered.astype(np.float16)


def text_of(corpora: Mapping[str, Corpus], shares: Mapping[str, float]) -> TextSource:
    """One domain, or several in the proportion of ``shares``."""
    if len(shares) == 1:
        return corpora[next(iter(shares))]
    return Blend([corpora[name] for name in shares], list(shares.values()))


def train_member(
    name: str,
    text: TextSource,
    *,
    steps: int,
    seed: int,
    say: Say,
    options: Mapping[str, int] | None = None,
    training: TrainingConfig | None = None,
) -> Member:
    """A built-in recurrent model after ``steps`` steps on ``text``."""
    module = build_expert(ExpertSpec(name="member", options=dict(options or {})), seed).module
    trainer = Trainer(module, text, training or TrainingConfig(), seed)
    told_s = began_s = time.monotonic()
    for step in range(1, steps + 1):
        trainer.step()
        if time.monotonic() - told_s >= REPORT_EVERY_S:
            told_s = time.monotonic()
            say(f"  {name}: {step} of {steps} steps, training loss {trainer.loss_bits:.2f} bits per byte")
    took_s = time.monotonic() - began_s
    say(f"  {name}: {steps} steps in {took_s:.0f} s, training loss {trainer.loss_bits:.2f} bits per byte")
    return Member(name, text, trainer.averaged)


def ask(members: Mapping[int, Answering], plan: Plan) -> dict[int, object]:
    """Every assigned member's answer to ``plan``."""
    return {uid: members[uid].answer(plan.rows_for(uid)) for uid in plan.assignment if uid in members}


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rho: the correlation of ranks, ties averaged."""
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # how many are smaller, and half of those that are equal (itself among them)
    smaller = (values[:, None] > values).sum(axis=1)
    equal = (values[:, None] == values).sum(axis=1)
    ranks: npt.NDArray[np.float64] = smaller + (equal - 1) / 2
    return ranks
