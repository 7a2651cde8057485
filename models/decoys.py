"""Finds miners that read the byte which they should predict.

A request shows the expert whole rows, so the byte after position t stands in the request itself, and an expert
that is not causal can copy it. A *decoy* is a false byte at one place of a row. What an honest expert gives to the
false byte at the position before it, it would on average also give to any other byte drawn in the same way (the
*controls*, which it was not shown): the mean difference is zero by symmetry. A copier gives the false byte more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .corpora import Tokens

# An honest expert's difference has a standard deviation of about 0.15 on the most predictable text (character tables),
# 0.02 after this many decoys: the limit stands five of those away.
MIN_DECOYS = 48
MAX_EXCESS = 0.1
# The running mean reaches back over about so many decoys: a model that stops copying is forgiven.
SPAN = 128


def plant_decoys(
    rows: Tokens, rng: np.random.Generator, chance: float, *, first_position: int
) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """Put a false byte into some of ``rows`` [B, T], at ``first_position`` or later; returns the rows as sent and the
    place in each (-1 where none).

    The false byte is drawn from the row's own bytes, so that it cannot be told by being out of place.
    """
    sent = rows.copy()
    count, length = rows.shape
    # One position at least stays scored before the decoy.
    at = rng.integers(first_position, length, size=(count,))
    source = rng.integers(length, size=(count,))
    true = np.take_along_axis(rows, at[:, None], axis=1)
    false = np.take_along_axis(rows, source[:, None], axis=1)
    planted = (rng.random(count) < chance) & (false != true)[:, 0]
    np.put_along_axis(sent, at[:, None], np.where(planted[:, None], false, true), axis=1)
    return sent, np.where(planted, at, -1)


@dataclass(slots=True)
class _Evidence:
    count: int = 0
    excess: float = 0.0


class DecoyWatch:
    """Keeps, for each miner, by how much it prefers the false byte that it was shown to others that it was not."""

    def __init__(self) -> None:
        self._evidence: dict[int, _Evidence] = {}

    def observe(
        self,
        tokens: Tokens,
        decoys: npt.NDArray[np.int64],
        targets: Tokens,
        assignment: Mapping[int, npt.NDArray[np.int64]],
        log_probs: Mapping[int, Tensor],
    ) -> None:
        """Take in valid answers [rows, T, 256] of each uid to its assigned rows."""
        for uid, answer in log_probs.items():
            for place, row in enumerate(assignment[uid]):
                if decoys[row] >= 0:
                    at = int(decoys[row])
                    # Position ``at`` - 1 predicts byte ``at``; the true one is that position's target.
                    excess = _excess(answer[place, at - 1], tokens[row], targets[row], at)
                    self._record(uid, excess)

    def _record(self, uid: int, excess: float) -> None:
        evidence = self._evidence.setdefault(uid, _Evidence())
        evidence.count += 1
        evidence.excess += (excess - evidence.excess) / min(evidence.count, SPAN)

    def peeks(self, uid: int) -> bool:
        """Whether the evidence against ``uid`` is beyond what chance gives an honest expert."""
        evidence = self._evidence.get(uid, _Evidence())
        return evidence.count >= MIN_DECOYS and evidence.excess > MAX_EXCESS

    def evidence(self, uid: int) -> str:
        """The finding about ``uid`` in words for a log."""
        found = self._evidence.get(uid, _Evidence())
        return f"gives {found.excess:.3f} more to a false byte it was shown than to others, over {found.count}"

    def keep_only(self, uids: Iterable[int]) -> None:
        """Forget every miner that is not in ``uids``."""
        kept = set(uids)
        self._evidence = {uid: found for uid, found in self._evidence.items() if uid in kept}


def _excess(log_probs: Tensor, sent: Tokens, targets: Tokens, at: int) -> float:
    """The chance given to the false byte at ``at``, less the mean chance of the same draw without having been shown.

    Like the false byte, a control is any byte of the true row that differs from the true byte at ``at``.
    """
    true, false = int(targets[at - 1]), int(sent[at])
    row = np.concatenate([sent[:at], targets[at - 1 : -1]])  # the row as it was before the decoy
    controls = row[row != true]
    chances = log_probs.exp()
    return float(chances[false] - chances[torch.from_numpy(controls).long()].mean())
