"""Finds miners whose answers are another's: copies of a model, and relays that pass a question on.

A *canary* is a row of short pieces of text from everywhere, that means nothing. What a model says in such a place was
never taught to it: it is left over from its first weights and from the order of its batches. Two models that learned
the same text apart from each other agree there much less than on text, and one model, asked twice, agrees with itself
whatever is done to its answers short of making them bad.

The measure is the correlation of log-probabilities over positions and bytes, each byte less its own mean and each
position less its own: what a model says beyond which bytes are frequent. Temperature does not change it and noise on
every log-probability with deviation s lowers it only as 1 / sqrt(1 + s^2 / 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .corpora import Tokens
from .locks import Lock

# Below this a log-probability is a rounding matter and no opinion.
FLOOR = -9.0
ALIKE = 0.85
MIN_ROWS = 8
SPAN_ROWS = 64
"""The running mean reaches back over about so many canaries: a model that went its own way is forgiven."""
SHORTEST_PIECE, LONGEST_PIECE = 3, 8


def draw_canaries(locks: Sequence[Lock], rng: np.random.Generator, rows: int, length: int) -> Tokens:
    """``rows`` canaries, uint8 [rows, length], of pieces of what the locks ask on the validators' own split."""
    drawn = []
    for _ in range(rows):
        sizes = rng.integers(SHORTEST_PIECE, LONGEST_PIECE + 1, size=length // SHORTEST_PIECE + 1)
        pieces = [
            locks[int(rng.integers(len(locks)))].draw("validation", rng, 1, int(size)).tokens[0] for size in sizes
        ]
        drawn.append(np.concatenate(pieces)[:length])
    return np.stack(drawn)


@dataclass(slots=True)
class _Pair:
    rows: int = 0
    likeness: float = 0.0


class LikenessWatch:
    """Keeps how alike each two miners are on canaries."""

    def __init__(self, alike: float = ALIKE) -> None:
        self.alike = alike
        self._pairs: dict[tuple[int, int], _Pair] = {}

    def observe(self, answers: Mapping[int, Tensor], rows: int) -> None:
        """Take in log-probabilities [P, 256] of each uid at the same positions of ``rows`` canaries."""
        uids = sorted(answers)
        if len(uids) < 2 or rows < 1:
            return
        opinions = torch.stack([_opinion(answers[uid]) for uid in uids])
        likeness = (opinions @ opinions.T).tolist()
        for at, uid in enumerate(uids):
            for other_at in range(at):
                self._record((uids[other_at], uid), likeness[at][other_at], rows)

    def _record(self, pair: tuple[int, int], likeness: float, rows: int) -> None:
        found = self._pairs.setdefault(pair, _Pair())
        found.rows += rows
        found.likeness += (likeness - found.likeness) * rows / min(found.rows, SPAN_ROWS)

    def likeness(self, uid: int, other: int) -> float | None:
        """The mean likeness of two miners, None before enough canaries."""
        found = self._pairs.get((min(uid, other), max(uid, other)))
        return found.likeness if found is not None and found.rows >= MIN_ROWS else None

    def copies(self, seniority: Mapping[int, int]) -> dict[int, int]:
        """Who answers as somebody before it does: {copy: the most senior of those it is like}.

        ``seniority`` is when each uid came; of two that came together the lower uid was first.
        """
        found: dict[int, int] = {}
        for pair, seen in self._pairs.items():
            if seen.rows >= MIN_ROWS and seen.likeness > self.alike:
                senior, junior = sorted(pair, key=lambda uid: (seniority.get(uid, 0), uid))
                rival = found.get(junior)
                ranks = [(seniority.get(uid, 0), uid) for uid in (senior, rival) if uid is not None]
                found[junior] = min(ranks)[1]
        return found

    def keep_only(self, uids: Iterable[int]) -> None:
        """Forget every pair with a miner that is not in ``uids``."""
        kept = set(uids)
        self._pairs = {pair: seen for pair, seen in self._pairs.items() if kept.issuperset(pair)}


def _opinion(log_probs: Tensor) -> Tensor:
    """What answers [P, 256] say beyond the frequencies of bytes, as a vector of length 1 (0 for no opinion at all)."""
    bounded = log_probs.clamp(min=FLOOR)
    beyond = bounded - bounded.mean(dim=0)
    beyond = (beyond - beyond.mean(dim=1, keepdim=True)).flatten()
    opinion: Tensor = beyond / beyond.norm().clamp(min=1e-6)
    return opinion
