"""Reads a miner's answer: log-probabilities of the next byte that are what they claim to be, or no answer at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .corpora import Tokens
from .errors import InvalidAnswer
from .experts import BYTE_VALUES
from .locks import next_byte_judgement

Answer = npt.NDArray[np.float32] | npt.NDArray[np.float16]

# A float16 log-probability is off by up to 2^-11 of itself, which moves the sum of 256 of them by well under 1 %.
MAX_SUM_ERROR = 0.01

LEAST_LOG_PROB = -100.0
"""A byte that is given less than e^-100 is given that: 144 bits are loss enough, and what a row's bytes add up to stays
a number, where two log-probabilities of -2e38 do not."""

# From answers float32 [R, T, 256] to the rows int64 [R] of a plan, to the log of their expected utility, [R, T].
Judge = Callable[[Tensor, Tensor], Tensor]


def read_answer(answer: object, rows: int, length: int) -> Tensor:
    """Check one answer to a request of [rows, length] bytes; returns exact log-probabilities, float32
    [rows, length, 256], none below `LEAST_LOG_PROB`.

    Raises `InvalidAnswer` for anything but finite float16 or float32 log-probabilities that sum to one within
    `MAX_SUM_ERROR`. What is left of the error is divided out, so that nobody gains by it.
    """
    if not isinstance(answer, np.ndarray) or answer.dtype not in (np.float32, np.float16):
        kind = answer.dtype if isinstance(answer, np.ndarray) else type(answer).__name__
        raise InvalidAnswer(f"an answer is float32 or float16, not {kind}")
    if answer.shape != (rows, length, BYTE_VALUES):
        raise InvalidAnswer(f"an answer here is {[rows, length, BYTE_VALUES]}, not {list(answer.shape)}")
    log_probs = torch.from_numpy(np.array(answer, dtype=np.float32))  # a copy: the buffer is the session's
    if not bool(torch.isfinite(log_probs).all()):
        raise InvalidAnswer("an answer holds numbers that are not finite")
    log_sums = log_probs.logsumexp(dim=-1, keepdim=True)
    worst = float((log_sums.exp() - 1).abs().max())
    if not worst <= MAX_SUM_ERROR:
        raise InvalidAnswer(f"an answer's probabilities sum to one only within {worst:.3g}")
    return (log_probs - log_sums).clamp(min=LEAST_LOG_PROB)


@dataclass(frozen=True, slots=True)
class ReadAnswers:
    """What the answers to one plan say of its targets, K miners in the plan's order.

    ``target_log_probs`` float32 [B, T, K] (zero where not answered), ``answered`` bool [B, K], and why each
    miner whose answer was refused was refused.
    """

    target_log_probs: Tensor
    answered: Tensor
    log_probs: Mapping[int, Tensor]
    invalid: Mapping[int, InvalidAnswer]


def read_answers(
    answers: Mapping[int, object],
    uids: tuple[int, ...],
    assignment: Mapping[int, npt.NDArray[np.int64]],
    targets: Tokens,
    judge: Judge | None = None,
) -> ReadAnswers:
    """Read every assigned miner's answer to its rows of ``targets`` [B, T]; a refused one counts as missing.

    ``judge`` tells what answers are worth; without one it is the log-probability of the target.
    """
    rows, length = targets.shape
    wanted = torch.from_numpy(targets)
    found = torch.zeros(rows, length, len(uids))
    answered = torch.zeros(rows, len(uids), dtype=torch.bool)
    log_probs: dict[int, Tensor] = {}
    invalid: dict[int, InvalidAnswer] = {}
    for at, uid in enumerate(uids):
        if uid not in answers or uid not in assignment:
            continue
        index = torch.from_numpy(assignment[uid])
        try:
            read = read_answer(answers[uid], len(index), length)
        except InvalidAnswer as error:
            invalid[uid] = error
            continue
        log_probs[uid] = read
        worth = next_byte_judgement(read, wanted[index]) if judge is None else judge(read, index)
        found[index, :, at] = worth
        answered[index, at] = True
    return ReadAnswers(found, answered, log_probs, invalid)
