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
from typing import Any

import numpy as np
import numpy.typing as npt
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
MEASURED_PAIRS = 2048
"""Pairs of which one observation tells what is missing, at most: all of 64 miners."""


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


# Of each two miners [senior, junior]: how alike they are in the mean of so many rows, how much of the one's answers is
# missing in the other's in the mean of so many, and how many observations ago that was measured.
_PAIR = np.dtype(
    [
        ("rows", np.uint8),
        ("likeness", np.float32),
        ("measured", np.uint8),
        ("missing", np.float32),
        ("waits", np.uint16),
    ]
)
_Pairs = npt.NDArray[np.void]


class LikenessWatch:
    """Keeps how alike each two miners are on canaries.

    How alike all are is one product of matrices. What is missing is told pair by pair: where that would be more than
    `MEASURED_PAIRS` in one observation, only of pairs that are akin, the most suspicious and the longest waiting first.
    """

    def __init__(self) -> None:
        self._uids: list[int] = []
        self._pairs: _Pairs = np.zeros((0, 0), dtype=_PAIR)

    def observe(self, answers: Mapping[int, Tensor], rows: int) -> None:
        """Take in log-probabilities [P, 256] of each uid at the same positions of ``rows`` canaries."""
        uids = sorted(answers)
        if len(uids) < 2 or rows < 1:
            return
        places = np.ix_(*[self._places(uids)] * 2)
        pairs = self._pairs[places]
        opinions = torch.stack([_opinion(answers[uid]) for uid in uids])
        _move_mean(pairs, "likeness", "rows", (opinions @ opinions.T).numpy(), rows)
        pairs["waits"] += pairs["waits"] < np.iinfo(np.uint16).max
        one, other = _choose_pairs(pairs)
        chances = {at: answers[uids[at]].exp() for at in {*one.tolist(), *other.tolist()}}
        beyond, missed = torch.empty_like(opinions[0]), torch.empty_like(opinions[0])
        for low, high in zip(one.tolist(), other.tolist(), strict=True):
            torch.sub(answers[uids[high]].flatten(), answers[uids[low]].flatten(), out=beyond)
            for held, holder in ((low, high), (high, low)):
                missing = _missing(chances[held].flatten(), beyond, missed) / len(chances[held])
                _move_mean(pairs[held, holder : holder + 1], "missing", "measured", missing, rows)
                beyond.neg_()
        pairs["waits"][one, other] = pairs["waits"][other, one] = 0
        self._pairs[places] = pairs

    def _places(self, uids: Sequence[int]) -> list[int]:
        """Where each of ``uids`` stands; new ones are given room."""
        new = sorted(set(uids) - set(self._uids))
        self._uids += new
        self._pairs = np.pad(self._pairs, (0, len(new)))
        at = {uid: place for place, uid in enumerate(self._uids)}
        return [at[uid] for uid in uids]

    def likeness(self, uid: int, other: int) -> float | None:
        """The mean likeness of two miners, None before enough canaries."""
        pair = self._pair(uid, other)
        return float(pair["likeness"]) if pair is not None and pair["rows"] >= MIN_ROWS else None

    def missing(self, senior: int, junior: int) -> float | None:
        """The mean part of the senior's probability that the junior has not, None before enough canaries."""
        pair = self._pair(senior, junior)
        return float(pair["missing"]) if pair is not None and pair["measured"] >= MIN_ROWS else None

    def is_copy(self, senior: int, junior: int) -> bool:
        """Whether the junior's answers are the senior's, as they are or mixed with others."""
        pair = self._pair(senior, junior)
        return pair is not None and bool(_are_copies(pair))

    def _pair(self, senior: int, junior: int) -> Any:
        if senior == junior or not {senior, junior} <= set(self._uids):
            return None
        return self._pairs[self._uids.index(senior), self._uids.index(junior)]

    def copies(self, seniority: Mapping[int, int]) -> dict[int, int]:
        """Who answers as somebody before it does: {copy: the most senior of those it is like}.

        ``seniority`` is when each uid came; of two that came together the lower uid was first.
        """
        ranked = sorted(range(len(self._uids)), key=lambda at: (seniority.get(self._uids[at], 0), self._uids[at]))
        found = np.triu(_are_copies(self._pairs)[np.ix_(ranked, ranked)], 1)
        copied = np.flatnonzero(found.any(axis=0))
        return {self._uids[ranked[at]]: self._uids[ranked[found[:, at].argmax()]] for at in copied}

    def keep_only(self, uids: Iterable[int]) -> None:
        """Forget every pair with a miner that is not in ``uids``."""
        wanted = set(uids)
        kept = [at for at, uid in enumerate(self._uids) if uid in wanted]
        self._uids = [self._uids[at] for at in kept]
        self._pairs = self._pairs[np.ix_(kept, kept)]


def _move_mean(pairs: _Pairs, mean: str, count: str, value: Any, rows: int) -> None:
    """Take ``value`` of ``rows`` more canaries into a running mean."""
    counted = np.minimum(pairs[count].astype(np.int64) + rows, SPAN_ROWS)
    pairs[mean] += (value - pairs[mean]) * (np.minimum(rows, counted) / counted)
    pairs[count] = counted


def _are_copies(pairs: Any) -> Any:
    """Of which pairs enough is known to say that the junior answers as the senior."""
    is_known = (pairs["rows"] >= MIN_ROWS) & (pairs["measured"] >= MIN_ROWS)
    is_mixed = (pairs["likeness"] > AKIN) & (pairs["missing"] < MAX_MISSING)
    return is_known & ((pairs["likeness"] > ALIKE) | is_mixed)


def _choose_pairs(pairs: _Pairs) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The places of the pairs to measure now, each once: all of few miners."""
    one, other = np.triu_indices(len(pairs), 1)
    if len(one) <= MEASURED_PAIRS:
        return one, other
    akin = pairs["likeness"][one, other] > AKIN
    one, other = one[akin], other[akin]
    there, back = pairs[one, other], pairs[other, one]
    missing = np.minimum(there["missing"], back["missing"])
    # who was never measured comes after whom the first measurement made suspicious, and before whom it cleared
    order = np.where(there["measured"] > 0, missing, MAX_MISSING)
    order[(there["likeness"] > ALIKE) & (there["measured"] < MIN_ROWS)] = -1.0
    # who was found out already must not keep the others from being looked at
    order[_are_copies(there) | _are_copies(back)] = np.inf
    ranked = np.argsort(order, kind="stable")
    suspicious, rest = np.split(ranked, [MEASURED_PAIRS // 2])
    waited = rest[np.argsort(-there["waits"][rest].astype(np.int64), kind="stable")]
    chosen = np.concatenate([suspicious, waited[: MEASURED_PAIRS - len(suspicious)]])
    return one[chosen], other[chosen]


def _opinion(log_probs: Tensor) -> Tensor:
    """What answers [P, 256] say beyond the frequencies of bytes, as a vector of length 1 (0 for no opinion at all)."""
    bounded = log_probs.clamp(min=FLOOR)
    beyond = bounded - bounded.mean(dim=0)
    beyond = (beyond - beyond.mean(dim=1, keepdim=True)).flatten()
    opinion: Tensor = beyond / beyond.norm().clamp(min=1e-6)
    return opinion


def _missing(held: Tensor, beyond: Tensor, missed: Tensor) -> float:
    """The sum of the chances ``held`` of which another gives less than `HELD_SHARE`; ``beyond`` is its
    log-probabilities less the holder's. ``missed`` is memory to work in: asking for it takes longer than the work."""
    torch.lt(beyond, math.log(HELD_SHARE), out=missed)
    return float(missed.mul_(held).sum())
