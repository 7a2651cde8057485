"""Trains the gate on an application's own text: what it is shown, and what the mixture then loses on the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .corpora import Tokens
from .errors import NotEnoughAnswers
from .gate import choose, decision_scores
from .mixture import mixture_bits, mixture_log_weights
from .plans import Plan
from .validation import ValidatorBrain

APPLICATION = "application"
MEASURED_SHARE = 4
"""One row in so many is kept from the training, to measure by."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The mixture on an application's kept rows: its loss in bits per byte, and each miner's mean weight."""

    bits: float
    share: Mapping[int, float]


def application_rows(texts: Sequence[bytes], length: int, least: int) -> Tokens:
    """Rows of ``length`` + 1 bytes cut from ``texts``, uint8 [N, length + 1]; rests under ``least`` bytes are left out.

    A longer rest is made whole with bytes before it. Empty where no text is long enough.
    """
    rows = []
    for text in texts:
        ends = range(length + 1, len(text) + 1, length)
        pieces = [text[end - length - 1 : end] for end in ends]
        if len(text) > length + 1 and (len(text) - 1) % length >= least:
            pieces.append(text[-length - 1 :])
        rows += [np.frombuffer(piece, dtype=np.uint8) for piece in pieces]
    return np.stack(rows) if rows else np.zeros((0, length + 1), dtype=np.uint8)


def application_plan(brain: ValidatorBrain, rows: Tokens, reachable: Collection[int]) -> Plan:
    """A plan over an application's rows [N, T + 1] that asks every reachable miner about all of them."""
    uids = tuple(uid for uid in brain.uids if uid in reachable)
    if not uids:
        raise NotEnoughAnswers("there is no miner to ask")
    count, length = len(rows), rows.shape[1] - 1
    weights = np.zeros((count, length), dtype=np.float32)
    weights[:, brain.config.gate.prefix_bytes - 1 :] = 1.0
    everyone = np.arange(count)
    return Plan(
        "route", rows[:, :-1].copy(), rows[:, 1:].copy(), weights, np.full(count, -1), (APPLICATION,) * count, uids,
        dict.fromkeys(uids, everyone),
    )  # fmt: skip


def split_rows(rows: Tokens) -> tuple[Tokens, Tokens]:
    """What to learn from and what to measure by; both have a row where there are two."""
    kept = np.arange(len(rows)) % MEASURED_SHARE == MEASURED_SHARE - 1
    if not kept.any():
        kept[-1] = True
    return rows[~kept], rows[kept]


@torch.no_grad()
def measure_application(brain: ValidatorBrain, plan: Plan, answers: Mapping[int, object]) -> Measured:
    """The top-k mixture on the rows of ``plan`` that have an answer. Raises `NotEnoughAnswers` where none has."""
    plan = brain.still_known(plan)
    read = brain.judging.read(plan, answers)
    scores = brain.gate_scores(torch.from_numpy(plan.tokens), plan.uids)
    config = brain.config.gate
    chosen = choose(decision_scores(scores, config.prefix_bytes), config.k, allowed=read.answered)
    some = chosen.any(dim=-1)
    if not bool(some.any()):
        raise NotEnoughAnswers("no miner answered the application's rows")
    weighed = (scores + brain.gate.evidence(read.target_log_probs))[some]
    scored = torch.from_numpy(plan.scored)[some]
    bits = mixture_bits(weighed, read.target_log_probs[some], chosen[some])
    weights = mixture_log_weights(weighed, chosen[some].unsqueeze(1).expand_as(weighed)).exp()
    share = weights[scored].mean(dim=0).tolist()
    return Measured(float(bits[scored].mean()), dict(zip(plan.uids, share, strict=True)))
