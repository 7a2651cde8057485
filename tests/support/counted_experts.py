"""Experts that learn in a blink: counts of which byte followed which, or which two, over a domain's training text."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moed.models.corpora import Corpus, Tokens
from moed.models.plans import Plan

LogProbs = npt.NDArray[np.float32]


class CountedExpert:
    """A bigram model of one corpus, or a trigram model that leans on it: a real, weak ``text.next`` expert."""

    def __init__(self, corpus: Corpus, *, smoothing: float = 0.05, order: int = 1) -> None:
        text = corpus.sides["train"].data.astype(np.int64)
        counts = np.bincount(text[:-1] * 256 + text[1:], minlength=1 << 16).reshape(256, 256) + smoothing
        chances = counts / counts.sum(axis=1, keepdims=True)
        self._table: LogProbs = np.log(chances).astype(np.float32)
        self._pairs: LogProbs | None = None
        if order == 2:
            after_two = (text[:-2] * 256 + text[1:-1]) * 256 + text[2:]
            triples = np.bincount(after_two, minlength=1 << 24).reshape(256, 256, 256).astype(np.float32)
            triples += chances.astype(np.float32)  # one count, spread as the bigram says
            self._pairs = np.log(triples / triples.sum(axis=-1, keepdims=True))

    def answer(self, tokens: Tokens) -> LogProbs:
        """Log-probabilities [B, T, 256] of the byte after each of ``tokens`` [B, T]."""
        log_probs: LogProbs = self._table[tokens]
        if self._pairs is not None:
            log_probs[:, 1:] = self._pairs[tokens[:, :-1], tokens[:, 1:]]
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
