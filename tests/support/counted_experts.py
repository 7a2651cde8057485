"""Experts that learn in a blink: smoothed counts of which byte followed which, over a domain's training text."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moed.models.corpora import Corpus, Tokens
from moed.models.plans import Plan

LogProbs = npt.NDArray[np.float32]


class CountedExpert:
    """A bigram model of one corpus: a real, weak ``text.next`` expert."""

    def __init__(self, corpus: Corpus, *, smoothing: float = 0.05) -> None:
        text = corpus.sides["train"].data.astype(np.int64)
        counts = np.bincount(text[:-1] * 256 + text[1:], minlength=1 << 16).reshape(256, 256) + smoothing
        self._table: LogProbs = np.log(counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)

    def answer(self, tokens: Tokens) -> LogProbs:
        """Log-probabilities [B, T, 256] of the byte after each of ``tokens`` [B, T]."""
        log_probs: LogProbs = self._table[tokens]
        return log_probs


def copy_ahead(tokens: Tokens, honest: LogProbs, weight: float) -> LogProbs:
    """What a miner answers that puts ``weight`` on the byte that it reads one place ahead in the request."""
    chances = np.exp(honest) * (1 - weight)
    rows, places = np.indices((tokens.shape[0], tokens.shape[1] - 1))
    chances[rows, places, tokens[:, 1:]] += weight
    chances[:, -1] = np.exp(honest[:, -1])
    copied: LogProbs = np.log(chances).astype(np.float32)
    return copied


def ask(experts: Mapping[int, CountedExpert], plan: Plan) -> dict[int, object]:
    """Every assigned miner's answer to ``plan``."""
    return {uid: experts[uid].answer(plan.rows_for(uid)) for uid in plan.assignment}
