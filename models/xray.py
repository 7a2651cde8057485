"""One input under the X-ray: whom the gate would ask about it, and what each answer was worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from .gate import decision_scores
from .locks import next_byte_judgement
from .mixing import RowsAsked, mix_rows, next_bytes
from .mixture import coalition_bits, mixture_bits
from .training import BITS_PER_NAT
from .validation import ValidatorBrain


@dataclass(frozen=True, slots=True)
class Sight:
    """What one miner did for one input, in bits per byte of the input itself.

    ``share`` is its mean weight in the answer; ``leave_one_out_bits`` by how much the loss would rise without it, the
    next best asked in its place; None where it gave no valid answer, and ``refused`` says why if it gave one.
    """

    uid: int
    score: float
    is_chosen: bool
    share: float
    bits: float | None
    leave_one_out_bits: float | None
    refused: str | None


@dataclass(frozen=True, slots=True)
class RouteSight:
    """All miners on one input, best first; the mixture's loss and its likeliest next bytes with their chances."""

    mixture_bits: float
    baseline_bits: float
    miners: tuple[Sight, ...]
    next_bytes: tuple[tuple[int, float], ...]


@torch.no_grad()
def see_route(brain: ValidatorBrain, asked: RowsAsked, answers: Mapping[int, object]) -> RouteSight:
    """Take apart the answers to one row of at least two bytes that everybody was asked about.

    Raises `NotEnoughAnswers` where none of the chosen gave a valid answer.
    """
    mixed = mix_rows(brain, asked, answers)
    read = mixed.read
    tokens = torch.from_numpy(asked.tokens)
    scored = torch.ones(tokens.shape, dtype=torch.bool)
    scored[:, -1] = False  # the byte after the last is not known
    weighed = asked.scores + brain.gate.evidence(read.target_log_probs)
    decision = decision_scores(asked.scores, brain.config.gate.prefix_bytes)
    targets = torch.from_numpy(next_bytes(asked.tokens))
    baseline = next_byte_judgement(brain.baseline.answer(tokens), targets)
    count = len(asked.uids)
    coalitions = torch.from_numpy(np.vstack([np.ones((1, count), dtype=bool), ~np.eye(count, dtype=bool)]))
    losses = coalition_bits(
        coalitions, weighed, decision, read.target_log_probs, read.answered, scored, brain.config.gate.k,
        brain.fallback(baseline, asked.scores),
    )  # fmt: skip
    bits = mixture_bits(weighed, read.target_log_probs, read.answered & asked.chosen)
    sights = []
    for at, uid in enumerate(asked.uids):
        has_answered = bool(read.answered[0, at])
        own = read.target_log_probs[0, :, at] * -BITS_PER_NAT
        sights.append(
            Sight(
                uid=uid,
                score=float(decision[0, at]),
                is_chosen=bool(asked.chosen[0, at]),
                share=float(mixed.weights[0, :, at].mean()),
                bits=float(own[scored[0]].mean()) if has_answered else None,
                leave_one_out_bits=float(losses[1 + at] - losses[0]) if has_answered else None,
                refused=read.invalid[uid].code if uid in read.invalid else None,
            )
        )
    chances = np.exp(mixed.log_probs[0, -1])
    best = np.argsort(-chances, kind="stable")[:5]
    return RouteSight(
        mixture_bits=float(bits[scored].mean()),
        baseline_bits=float(baseline[scored].mean() * -BITS_PER_NAT),
        miners=tuple(sorted(sights, key=lambda one: (not one.is_chosen, -one.score, one.uid))),
        next_bytes=tuple((int(byte), float(chances[byte])) for byte in best),
    )
