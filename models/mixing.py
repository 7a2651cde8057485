"""The mixture as one model: rows in, the gate picks whom to ask about each, one distribution out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .answers import ReadAnswers, read_answers
from .corpora import Tokens
from .errors import NotEnoughAnswers
from .experts import BYTE_VALUES
from .gate import choose, decision_scores
from .mixture import mixture_log_weights
from .validation import ValidatorBrain


@dataclass(frozen=True, slots=True)
class RowsAsked:
    """Whom to ask about which of ``tokens`` uint8 [B, T]; scores [B, T, K] and choice bool [B, K] over ``uids``."""

    tokens: Tokens
    uids: tuple[int, ...]
    scores: Tensor
    chosen: Tensor
    assignment: Mapping[int, npt.NDArray[np.int64]]

    def rows_for(self, uid: int) -> Tokens:
        """The rows to send to ``uid``."""
        return self.tokens[self.assignment[uid]]


@dataclass(frozen=True, slots=True)
class MixedRows:
    """The mixture's log-probabilities float32 [B, T, 256], the weight [B, T, K] of each of ``uids`` in them, and what
    was read of the answers."""

    uids: tuple[int, ...]
    log_probs: npt.NDArray[np.float32]
    weights: Tensor
    read: ReadAnswers


@torch.no_grad()
def route_rows(
    brain: ValidatorBrain, tokens: Tokens, *, reachable: Collection[int] | None = None, everyone: bool = False
) -> RowsAsked:
    """Choose the top-k miners for each row by its first bytes; with ``everyone`` all of them are asked.

    Raises `NotEnoughAnswers` where there is no miner to ask.
    """
    uids = tuple(uid for uid in brain.uids if reachable is None or uid in reachable)
    if not uids:
        raise NotEnoughAnswers("there is no miner to ask")
    own = np.array(tokens)
    scores = brain.gate_scores(torch.from_numpy(own), uids)
    config = brain.config.gate
    chosen = choose(decision_scores(scores, config.prefix_bytes), config.k)
    asked = torch.ones_like(chosen) if everyone else chosen
    rows_of = {uid: np.flatnonzero(asked[:, at].numpy()) for at, uid in enumerate(uids)}
    return RowsAsked(own, uids, scores, chosen, {uid: rows for uid, rows in rows_of.items() if len(rows)})


def next_bytes(tokens: Tokens) -> Tokens:
    """The byte after each, uint8 [B, T]; that after the last is not known and stands as 0."""
    return np.concatenate([tokens[:, 1:], np.zeros((len(tokens), 1), dtype=np.uint8)], axis=1)


@torch.no_grad()
def mix_rows(brain: ValidatorBrain, asked: RowsAsked, answers: Mapping[int, object]) -> MixedRows:
    """One distribution a position from the answers [rows, T, 256] of the chosen miners, over those who answered.

    As in training a member's weight is its gate score and how well it foretold the row's bytes so far. Raises
    `NotEnoughAnswers` where some row has no valid answer.
    """
    # What evidence the unknown byte after the last gives is for a position that is not there.
    read = read_answers(answers, asked.uids, asked.assignment, next_bytes(asked.tokens))
    present = read.answered & asked.chosen
    missing = int((~present.any(dim=-1)).sum())
    if missing:
        raise NotEnoughAnswers(f"{missing} of {len(present)} rows have no valid answer")
    weighed = asked.scores + brain.gate.evidence(read.target_log_probs)
    log_weights = mixture_log_weights(weighed, present.unsqueeze(1).expand_as(weighed))
    mixed = torch.full((*asked.tokens.shape, BYTE_VALUES), -math.inf)
    for at, uid in enumerate(asked.uids):
        if uid in read.log_probs:
            rows = torch.from_numpy(asked.assignment[uid])
            mixed[rows] = torch.logaddexp(mixed[rows], log_weights[rows, :, at, None] + read.log_probs[uid])
    return MixedRows(asked.uids, mixed.numpy(), log_weights.exp(), read)
