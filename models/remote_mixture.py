"""A layer of experts on other nodes: each row goes to the few that the gate scores best, and comes back mixed.

Backward asks the experts that answered for the gradient at their inputs, and they learn from it at once: by the weights
that they have by then, which may have moved since the forward call (delayed gradients). The gate learns with the model
that the layer stands in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .beam import NOBODY, Grid, search
from .errors import NoAnswer, RowsUnanswered
from .remote import Ask, Patience, Rows, Transport, rows_of

_LOAD_KEPT = 0.98
"""How much of the moving average of the experts' load outlives one batch: of a few rows it says little by itself."""

_ROWS_NEEDED = 0.9


@dataclass(frozen=True, slots=True)
class Mixed:
    """What a mixture gave: ``values`` [B, D], ``weights`` [B, k] of the experts ``picked`` [B, k] (flat indexes of the
    grid, -1 for none), and ``answered`` bool [B, k]. A row with no answer has zeros for values and weights, never NaN.

    ``balance_loss`` is 0 where all experts have the same load; add a part of it to the loss. ``is_exact`` bool [B]: no
    live expert would have been better.
    """

    values: Tensor
    weights: Tensor
    picked: Tensor
    answered: Tensor
    failures: tuple[NoAnswer, ...]
    balance_loss: Tensor
    is_exact: Tensor

    @property
    def rows_unanswered(self) -> tuple[int, ...]:
        """The rows that nobody answered."""
        return tuple((~self.answered.any(dim=1)).nonzero().flatten().tolist())


class RemoteMixture(nn.Module):
    """A gate over a grid of experts elsewhere: each row goes to its best ``k_best``, one call for each expert.

    float32 [..., in_features] to the same, so it stands anywhere in a model; `mix` tells more than the values.
    ``grid`` has the size of each dimension, and the expert at (3, 7) is called ``prefix + "3.7"``. ``k_min`` answers
    for each row, or for all but a tenth of them where it is not strict, are enough: then the rest have
    ``patience.grace_s``. Weights are those of a softmax over whoever
    answered. Raises `RowsUnanswered` for rows with fewer than ``k_min`` (forward) or none (backward), unless
    ``is_strict`` is false: then they are marked in `Mixed.answered`, and a gradient that is lost counts as zero and in
    ``gradients_lost``.

    ``balance_loss`` is that of the last forward pass.
    """

    load: Tensor

    def __init__(
        self,
        in_features: int,
        grid: Sequence[int],
        *,
        transport: Transport,
        prefix: str,
        k_best: int,
        k_min: int = 1,
        beam_width: int | None = None,
        patience: Patience | None = None,
        is_strict: bool = True,
    ) -> None:
        super().__init__()
        if not 1 <= k_min <= k_best:
            raise ValueError(f"k_min is between 1 and k_best, not {k_min} of {k_best}")
        self.grid = Grid(prefix, tuple(grid))
        self.transport = transport
        self.k_best, self.k_min, self.is_strict = k_best, k_min, is_strict
        self.beam_width = beam_width or 2 * k_best
        self.patience = patience or Patience()
        self.project = nn.Linear(in_features, sum(grid))
        self.register_buffer("load", torch.full((self.grid.places,), 1 / self.grid.places))
        self.balance_loss = torch.zeros(())
        self.gradients_lost = 0

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(x.reshape(-1, x.shape[-1]))
        return mixed.values.reshape(x.shape)

    def mix(self, x: Tensor) -> Mixed:
        """Route float32 [B, D] and mix the answers. Raises `RowsUnanswered` where nobody lives at all, too."""
        scores = self.project(x).split(self.grid.sizes, dim=1)
        detached = [one.detach() for one in scores]
        best = search(detached, self.grid, self.k_best, self.transport.live, width=self.beam_width)
        picked = best.picked
        if (picked == NOBODY).all():
            raise RowsUnanswered(range(len(x)), ())
        answers, answered, failures = cast("tuple[Tensor, Tensor, tuple[NoAnswer, ...]]", self._call(x, picked))
        self._require(picked, answered, failures)
        weights = _weights(self._score(scores, picked), answered)
        self.balance_loss = self._balance(scores, picked, weights)
        values = (weights.unsqueeze(-1) * answers).sum(dim=1)
        return Mixed(values, weights, picked, answered, failures, self.balance_loss, best.is_exact)

    def observe(self, picked: Tensor) -> None:
        """Count what was ``picked`` in the moving average of the load; `mix` does so itself, for its own batches."""
        chosen = picked.flatten()
        counts = torch.bincount(chosen[chosen != NOBODY], minlength=self.grid.places).to(self.load.dtype)
        self.load.lerp_(counts / counts.sum(), 1 - _LOAD_KEPT)

    def _score(self, scores: Sequence[Tensor], picked: Tensor) -> Tensor:
        """The sum of each picked place's coordinate scores: [B, k]."""
        coordinates = self.grid.split(picked.clamp(min=0))
        parts = [score.gather(1, column) for score, column in zip(scores, coordinates, strict=True)]
        return torch.stack(parts).sum(dim=0)

    def _balance(self, scores: Sequence[Tensor], picked: Tensor, weights: Tensor) -> Tensor:
        """How far the load is from equal, for each dimension and for each expert, as something that the gate can mend.

        The product of the load so far and the chance that the gate gives now (arXiv 2101.03961, section 2.2), both by
        coordinate and by expert: experts that share a coordinate are tied together by their scores, so a balance of
        coordinates alone says little about experts, and one of experts alone is slow.
        """
        if self.training:
            self.observe(picked)
        by_place = self.load.view(self.grid.sizes)
        loss = torch.zeros(())
        for dimension, score in enumerate(scores):
            others = [one for one in range(len(scores)) if one != dimension]
            load = by_place.sum(dim=others) if others else by_place
            loss = loss + len(load) * (load * score.softmax(dim=1).mean(dim=0)).sum() - 1
        of_picked = self.load[picked.clamp(min=0)] * (picked != NOBODY)
        return loss + self.grid.places * (of_picked * weights).sum(dim=1).mean() - 1

    def _call(self, x: Tensor, picked: Tensor) -> Any:
        failures: list[NoAnswer] = []
        answers, answered = _GridCall.apply(x, picked, self, failures)  # type: ignore[no-untyped-call]  # torch has no types for it
        return answers, answered, tuple(failures)

    def _require(self, picked: Tensor, answered: Tensor, failures: Sequence[NoAnswer]) -> None:
        wanted = (picked != NOBODY).sum(dim=1).clamp(min=1, max=self.k_min)
        short = (answered.sum(dim=1) < wanted).nonzero().flatten().tolist()
        if short and self.is_strict:
            raise RowsUnanswered(short, failures)


def _weights(scores: Tensor, answered: Tensor) -> Tensor:
    """Softmax over the places that answered, and zeros for a row without any: [B, k]."""
    chosen = scores.masked_fill(~answered, -math.inf)
    # a row without any answer must not become NaN: its softmax is of zeros, and then masked
    chosen = torch.where(answered.any(dim=1, keepdim=True), chosen, torch.zeros_like(chosen))
    return chosen.softmax(dim=1) * answered


@dataclass(frozen=True, slots=True)
class _Group:
    """The rows that one expert gets, and which of their k places it fills."""

    name: str
    rows: Tensor
    places: Tensor


def _groups(picked: Tensor, grid: Grid) -> list[_Group]:
    """Rows by expert: one call for each expert, not one for each row."""
    return [
        _Group(grid.name(expert), *(picked == expert).nonzero(as_tuple=True))
        for expert in sorted(set(picked.flatten().tolist()) - {NOBODY})
    ]


class _GridCall(torch.autograd.Function):
    """All calls of one batch at once, forward and backward: [B, D] to answers [B, k, D] and answered [B, k]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, picked: Tensor, mixture: RemoteMixture, failures: list[NoAnswer]
    ) -> tuple[Tensor, Tensor]:
        groups = _groups(picked, mixture.grid)
        asks = [Ask(one.name, rows_of(x[one.rows])) for one in groups]
        outcomes = mixture.transport.ask(asks, mixture.patience, _enough(groups, len(x), mixture))
        answers, answered = x.new_zeros(*picked.shape, x.shape[1]), torch.zeros_like(picked, dtype=torch.bool)
        kept = []
        for group, outcome in zip(groups, outcomes, strict=True):
            found = _valid(outcome, group, x.shape[1])
            if isinstance(found, NoAnswer):
                failures.append(found)
                continue
            answers[group.rows, group.places] = torch.from_numpy(found)
            answered[group.rows, group.places] = True
            kept.append(group)
        ctx.save_for_backward(x)
        ctx.groups, ctx.mixture = kept, mixture
        ctx.mark_non_differentiable(answered)
        return answers, answered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _answered: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        groups: list[_Group] = ctx.groups
        mixture: RemoteMixture = ctx.mixture
        asks = [Ask(one.name, rows_of(x[one.rows]), rows_of(gradient[one.rows, one.places])) for one in groups]
        # a gradient that is lost costs little: a mixture that may go on without waits for the slower half only a while
        half = (len(groups) + 1) // 2
        enough = _enough(groups, len(x), mixture) if mixture.is_strict else lambda answered: len(answered) >= half
        outcomes = mixture.transport.ask(asks, mixture.patience, enough)
        at_input, asked, reached = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.bool), set[int]()
        failures = []
        for group, outcome in zip(groups, outcomes, strict=True):
            asked[group.rows] = True
            found = _valid(outcome, group, x.shape[1])
            if isinstance(found, NoAnswer):
                failures.append(found)
                mixture.gradients_lost += len(group.rows)
            else:
                at_input.index_add_(0, group.rows, torch.from_numpy(found))
                reached.update(group.rows.tolist())
        lost = sorted(set(asked.nonzero().flatten().tolist()) - reached)
        if lost and mixture.is_strict:
            raise RowsUnanswered(lost, failures)
        return at_input, None, None, None


def _valid(outcome: Rows | NoAnswer, group: _Group, width: int) -> Rows | NoAnswer:
    """The answer if it is finite float32 rows of the width asked, else why it is none."""
    if isinstance(outcome, NoAnswer):
        return outcome
    is_fit = outcome.shape == (len(group.rows), width) and outcome.dtype == np.float32
    if not (is_fit and np.isfinite(outcome).all()):
        return NoAnswer("invalid_answer", f"{group.name}: not finite float32 rows of the width asked")
    return outcome


def _enough(groups: Sequence[_Group], rows: int, mixture: RemoteMixture) -> Callable[[Collection[int]], bool]:
    """Whether each row that is asked about has ``k_min`` answers, or all of its own where those are fewer.

    A mixture that is not strict does not wait for the last tenth of the rows: one row whose experts all died would hold
    up its batch until the deadline.
    """
    per_group = np.zeros((len(groups), rows), np.int64)
    for index, group in enumerate(groups):
        np.add.at(per_group[index], group.rows.numpy(), 1)
    wanted = np.minimum(per_group.sum(axis=0), mixture.k_min)
    needed = rows if mixture.is_strict else math.ceil(_ROWS_NEEDED * rows)
    return lambda answered: int((per_group[sorted(answered)].sum(axis=0) >= wanted).sum()) >= needed
