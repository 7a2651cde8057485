"""What each miner adds: Shapley values over coalitions, their moving average, and whole-number weights.

The Shapley value (Shapley 1953) of player i is its mean marginal value v(S + i) - v(S) over all orders in which the
players can arrive. Exact up to `MAX_EXACT_PLAYERS`; beyond, the mean over sampled orders, each also walked backwards
(antithetic pairs), which stays unbiased and adds up to v(all) - v(none) exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Coalitions = npt.NDArray[np.bool_]

MAX_EXACT_PLAYERS = 8
# Yuma's weights are 16 bits wide; only their proportions count.
MAX_WEIGHT = 65_535


def all_coalitions(players: int) -> Coalitions:
    """Every subset of ``players``, [2^players, players]; row number = bit mask, player i at bit i."""
    masks = np.arange(1 << players)
    return (masks[:, None] >> np.arange(players) & 1).astype(bool)


def shapley_exact(values: Floats) -> Floats:
    """Shapley values [n] from the value of every coalition, ``values`` [2^n] in the order of `all_coalitions`."""
    players = len(values).bit_length() - 1
    masks = np.arange(len(values))
    sizes = all_coalitions(players).sum(axis=1)
    factorials = np.array([math.factorial(size) for size in range(players + 1)], dtype=np.float64)
    shares = np.empty(players)
    for player in range(players):
        without = masks[masks >> player & 1 == 0]
        # The share of the orders in which exactly this coalition stands before the player.
        weight = factorials[sizes[without]] * factorials[players - 1 - sizes[without]] / factorials[players]
        shares[player] = weight @ (values[without | 1 << player] - values[without])
    return shares


def shapley_sampled(
    value: Callable[[Coalitions], Floats], players: int, orders: int, rng: np.random.Generator
) -> Floats:
    """Shapley values [players] estimated from ``orders`` random orders and their reverses.

    ``value`` takes coalitions bool [m, players] to their values [m]; it is called once an order.
    """
    shares = np.zeros(players)
    for _ in range(orders):
        forward = rng.permutation(players)
        for order in (forward, forward[::-1]):
            arriving = np.zeros((players + 1, players), dtype=bool)
            for place, player in enumerate(order):
                arriving[place + 1 :, player] = True
            shares[order] += np.diff(value(arriving))
    return shares / (2 * orders)


def shapley(
    value: Callable[[Coalitions], Floats], players: int, rng: np.random.Generator, *, sampled_orders: int = 32
) -> Floats:
    """Shapley values [players]: exact where that is at most 2^`MAX_EXACT_PLAYERS` coalitions, else sampled."""
    if players <= MAX_EXACT_PLAYERS:
        return shapley_exact(value(all_coalitions(players)))
    return shapley_sampled(value, players, sampled_orders, rng)


class ScoreBook:
    """The moving average of each miner's measured value, in bits per byte.

    ``alpha`` is the share of a new measurement; the average of the first few is their plain mean, so that a
    newcomer is not held to one lucky or unlucky batch.
    """

    def __init__(self, alpha: float = 0.1) -> None:
        self.alpha = alpha
        self._scores: dict[int, float] = {}
        self._counts: dict[int, int] = {}

    def record(self, values: Mapping[int, float]) -> None:
        """Take in one measurement for each of some miners."""
        for uid, value in values.items():
            count = self._counts[uid] = self._counts.get(uid, 0) + 1
            before = self._scores.get(uid, 0.0)
            self._scores[uid] = before + (value - before) * max(self.alpha, 1 / count)

    def keep_only(self, uids: Iterable[int]) -> None:
        """Forget every miner that is not in ``uids``."""
        kept = set(uids)
        self._scores = {uid: score for uid, score in self._scores.items() if uid in kept}
        self._counts = {uid: count for uid, count in self._counts.items() if uid in kept}

    @property
    def scores(self) -> dict[int, float]:
        """The averages, by uid."""
        return dict(sorted(self._scores.items()))

    @property
    def counts(self) -> dict[int, int]:
        """How many measurements stand behind each average."""
        return dict(sorted(self._counts.items()))

    def restore(self, scores: Mapping[int, float], counts: Mapping[int, int]) -> None:
        """Take back stored averages."""
        self._scores, self._counts = dict(scores), dict(counts)


def integer_weights(scores: Mapping[int, float]) -> dict[int, int]:
    """Whole-number weights in proportion to the scores, the best at `MAX_WEIGHT`; a negative score weighs 0.

    All zero where no score is positive: the caller then has nothing to submit.
    """
    best = max(scores.values(), default=0.0)
    if not best > 0:
        return dict.fromkeys(sorted(scores), 0)
    return {uid: round(max(0.0, score) / best * MAX_WEIGHT) for uid, score in sorted(scores.items())}
