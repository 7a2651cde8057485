"""Finds miners whose answers are another's: copies of a model, and relays that pass a question on.

A *canary* is a row of short pieces of text from everywhere, that means nothing. What a model says in such a place was
never taught to it: it is left over from its first weights and from the order of its batches. Two models that learned
the same text apart from each other agree there much less than on text, and one model, asked twice, agrees with itself
whatever is done to its answers short of making them bad.

The measure is the correlation of log-probabilities over positions and bytes, each byte less its own mean and each
position less its own: what a model says beyond which bytes are frequent. Temperature does not change it and noise on
every log-probability with deviation s lowers it only as 1 / sqrt(1 + s^2 / 4).

A relay that mixes in a model of its own is less alike, but what it passes on is still in its answers: each byte has
at least the relayed share of the chance that the original gives it. So the second measure is what is *missing*: the
part of the original's probability of which the other gives less than `HELD_SHARE`. Of such a mixture it is almost
nothing, of two honest models the many bytes that only one of them thinks of.
"""

from __future__ import annotations

import math
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
HELD_SHARE = 1 / 8
MAX_MISSING = 0.025
AKIN = 0.5
"""Below this likeness nothing is said about what is missing: two models that know little miss little of each other."""
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
    """Of two miners: how alike, and how much is missing of the lower uid's answers in the higher's, and the reverse."""

    rows: int = 0
    likeness: float = 0.0
    missing: float = 0.0
    missing_in_lower: float = 0.0


class LikenessWatch:
    """Keeps how alike each two miners are on canaries."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[int, int], _Pair] = {}

    def observe(self, answers: Mapping[int, Tensor], rows: int) -> None:
        """Take in log-probabilities [P, 256] of each uid at the same positions of ``rows`` canaries."""
        uids = sorted(answers)
        if len(uids) < 2 or rows < 1:
            return
        opinions = torch.stack([_opinion(answers[uid]) for uid in uids])
        likeness = (opinions @ opinions.T).tolist()
        for at, uid in enumerate(uids):
            for other_at, other in enumerate(uids[:at]):
                found = self._pairs.setdefault((other, uid), _Pair())
                found.rows += rows
                share = rows / min(found.rows, SPAN_ROWS)
                lower, higher = answers[other], answers[uid]
                found.likeness += (likeness[at][other_at] - found.likeness) * share
                found.missing += (_missing(lower, higher) - found.missing) * share
                found.missing_in_lower += (_missing(higher, lower) - found.missing_in_lower) * share

    def likeness(self, uid: int, other: int) -> float | None:
        """The mean likeness of two miners, None before enough canaries."""
        found = self._pairs.get((min(uid, other), max(uid, other)))
        return found.likeness if found is not None and found.rows >= MIN_ROWS else None

    def missing(self, senior: int, junior: int) -> float | None:
        """The mean part of the senior's probability that the junior has not, None before enough canaries."""
        found = self._pairs.get((min(senior, junior), max(senior, junior)))
        if found is None or found.rows < MIN_ROWS:
            return None
        return found.missing if senior < junior else found.missing_in_lower

    def is_copy(self, senior: int, junior: int) -> bool:
        """Whether the junior's answers are the senior's, as they are or mixed with others."""
        likeness, missing = self.likeness(senior, junior), self.missing(senior, junior)
        if likeness is None or missing is None:
            return False
        return likeness > ALIKE or (likeness > AKIN and missing < MAX_MISSING)

    def copies(self, seniority: Mapping[int, int]) -> dict[int, int]:
        """Who answers as somebody before it does: {copy: the most senior of those it is like}.

        ``seniority`` is when each uid came; of two that came together the lower uid was first.
        """
        found: dict[int, int] = {}
        for pair in self._pairs:
            senior, junior = sorted(pair, key=lambda uid: (seniority.get(uid, 0), uid))
            if self.is_copy(senior, junior):
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


def _missing(held: Tensor, holder: Tensor) -> float:
    """The part of the probability in ``held`` [P, 256] of which ``holder`` gives less than `HELD_SHARE`."""
    return float((held.exp() * (holder - held < math.log(HELD_SHARE))).sum() / len(held))
