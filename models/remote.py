"""Experts on other nodes as torch modules: forward and backward inside autograd, over any transport.

A transport is given; nothing here waits by itself or knows a socket. Backward asks the expert for the gradient at its
inputs, and the expert may learn from it; so each backward pass of a caller is one step of the experts that it used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .errors import NoAnswer, RowsUnanswered

Rows = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to one expert by name: ``inputs`` [B, D]; with ``gradients`` [B, D] a backward pass."""

    expert: str
    inputs: Rows
    gradients: Rows | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait: ``deadline_s`` for all; once enough have answered, ``grace_s`` for the rest."""

    deadline_s: float = 10.0
    grace_s: float = math.inf


class Transport(Protocol):
    """Carries requests to the nodes that serve experts; safe to call from the thread that runs torch."""

    def reachable(self) -> Collection[str]:
        """The experts that can be asked now."""

    def ask(
        self, asks: Sequence[Ask], patience: Patience, is_enough: Callable[[Collection[int]], bool]
    ) -> Sequence[Rows | NoAnswer]:
        """Ask all at once: an answer, or why there is none, for each in order.

        ``is_enough`` is called with the indexes answered so far, perhaps on another thread; from when it holds the
        rest have the grace.
        """


class RemoteExpert(nn.Module):
    """One expert elsewhere: float32 [..., D] to [..., D]. Raises `RowsUnanswered` where it does not answer.

    Gradients flow where the input requires them; the expert's own weights are its owner's.
    """

    def __init__(self, transport: Transport, name: str, patience: Patience | None = None) -> None:
        super().__init__()
        self.transport = transport
        self.name = name
        self.patience = patience or Patience()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        answer = cast("Tensor", _OneCall.apply(rows, self))  # type: ignore[no-untyped-call]  # torch has no types for it
        return answer.reshape(*x.shape[:-1], answer.shape[-1])

    def ask(self, inputs: Tensor, gradients: Tensor | None = None) -> Tensor:
        """One call, outside autograd: [B, D] to [B, D]."""
        asked = Ask(self.name, _rows(inputs), None if gradients is None else _rows(gradients))
        (answer,) = self.transport.ask([asked], self.patience, lambda _answered: False)
        if isinstance(answer, NoAnswer):
            raise RowsUnanswered(range(len(inputs)), [answer])
        return torch.from_numpy(answer)


class _OneCall(torch.autograd.Function):
    """Forward and backward are one call each; nothing is kept but the inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, expert: RemoteExpert) -> Tensor:
        ctx.save_for_backward(x)
        ctx.expert = expert
        return expert.ask(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.expert.ask(x, gradient), None


@dataclass(frozen=True, slots=True)
class Mixed:
    """What a mixture gave: ``values`` [B, D], ``weights`` [B, k] of the experts ``picked`` [B, k] (indexes into the
    grid's names), and ``answered`` bool [B, k]. A row with no answer has zeros for values and weights, never NaN."""

    values: Tensor
    weights: Tensor
    picked: Tensor
    answered: Tensor
    failures: tuple[NoAnswer, ...]


class RemoteMixture(nn.Module):
    """A gate over a grid of experts elsewhere: each row goes to its best ``k``, one call for each expert.

    An expert's score is the sum of one learned score for each of its coordinates (arXiv 1907.05242), so a grid of n × n
    needs 2 n scores; the best k of those that are reachable are found exactly. ``k_min`` answers for each row are
    enough: then the rest have ``patience.grace_s``. Raises `RowsUnanswered` for rows with fewer than ``k_min``, unless
    ``is_strict`` is false: then they are marked in `Mixed.answered`.
    """

    def __init__(
        self,
        transport: Transport,
        width: int,
        grid: Sequence[int],
        *,
        prefix: str,
        k: int,
        k_min: int = 1,
        patience: Patience | None = None,
        is_strict: bool = True,
    ) -> None:
        super().__init__()
        if not 1 <= k_min <= k:
            raise ValueError(f"k_min is between 1 and k, not {k_min} of {k}")
        self.transport = transport
        self.k, self.k_min, self.is_strict = k, k_min, is_strict
        self.patience = patience or Patience()
        self.project = nn.Linear(width, sum(grid))
        coordinates = torch.cartesian_prod(*(torch.arange(size) for size in grid)).reshape(-1, len(grid))
        self.names = tuple(prefix + ".".join(map(str, one)) for one in coordinates.tolist())
        starts = torch.tensor([sum(grid[:at]) for at in range(len(grid))])
        self.columns: Tensor
        self.register_buffer("columns", coordinates + starts, persistent=False)  # [experts, dimensions]

    def forward(self, x: Tensor) -> Mixed:
        """Route float32 [B, D] and mix the answers."""
        scores = self.project(x)[:, self.columns].sum(dim=-1)  # [B, experts]
        picked = self._pick(scores.detach())
        answers, answered, failures = cast("tuple[Tensor, Tensor, tuple[NoAnswer, ...]]", self._call(x, picked))
        self._require(answered, failures)
        chosen = scores.gather(1, picked).masked_fill(~answered, -math.inf)
        # a row without any answer must not become NaN: its softmax is of zeros, and then masked
        chosen = torch.where(answered.any(dim=1, keepdim=True), chosen, torch.zeros_like(chosen))
        weights = chosen.softmax(dim=1) * answered
        return Mixed((weights.unsqueeze(-1) * answers).sum(dim=1), weights, picked, answered, failures)

    def _pick(self, scores: Tensor) -> Tensor:
        reachable = self.transport.reachable()
        is_there = torch.tensor([name in reachable for name in self.names])
        count = min(self.k, int(is_there.sum()))
        if count == 0:
            raise RowsUnanswered(range(len(scores)), ())
        return scores.masked_fill(~is_there, -math.inf).topk(count, dim=1).indices

    def _call(self, x: Tensor, picked: Tensor) -> Any:
        failures: list[NoAnswer] = []
        answers, answered = _GridCall.apply(x, picked, self, failures)  # type: ignore[no-untyped-call]  # as above
        return answers, answered, tuple(failures)

    def _require(self, answered: Tensor, failures: Sequence[NoAnswer]) -> None:
        short = (answered.sum(dim=1) < min(self.k_min, answered.shape[1])).nonzero().flatten().tolist()
        if short and self.is_strict:
            raise RowsUnanswered(short, failures)


@dataclass(frozen=True, slots=True)
class _Group:
    """The rows that one expert gets, and which of their k places it fills."""

    expert: int
    rows: Tensor
    places: Tensor


def _groups(picked: Tensor) -> list[_Group]:
    """Rows by expert: one call for each expert, not one for each row."""
    return [
        _Group(expert, *(picked == expert).nonzero(as_tuple=True)) for expert in sorted(set(picked.flatten().tolist()))
    ]


class _GridCall(torch.autograd.Function):
    """All calls of one batch at once, forward and backward: [B, D] to answers [B, k, D] and answered [B, k]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, picked: Tensor, mixture: RemoteMixture, failures: list[NoAnswer]
    ) -> tuple[Tensor, Tensor]:
        groups = _groups(picked)
        asks = [Ask(mixture.names[one.expert], _rows(x[one.rows])) for one in groups]
        outcomes = mixture.transport.ask(asks, mixture.patience, _enough(groups, len(x), mixture.k_min))
        answers, answered = x.new_zeros(*picked.shape, x.shape[1]), torch.zeros_like(picked, dtype=torch.bool)
        kept = []
        for group, outcome in zip(groups, outcomes, strict=True):
            if isinstance(outcome, NoAnswer) or outcome.shape[1:] != x.shape[1:] or not np.isfinite(outcome).all():
                strange = NoAnswer(
                    "invalid_answer", f"{mixture.names[group.expert]}: not finite rows of the width asked"
                )
                failures.append(outcome if isinstance(outcome, NoAnswer) else strange)
                continue
            answers[group.rows, group.places] = torch.from_numpy(outcome)
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
        asks = [
            Ask(mixture.names[one.expert], _rows(x[one.rows]), _rows(gradient[one.rows, one.places])) for one in groups
        ]
        outcomes = mixture.transport.ask(asks, mixture.patience, _enough(groups, len(x), mixture.k_min))
        at_input, reached = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.bool)
        failures = []
        for group, outcome in zip(groups, outcomes, strict=True):
            if isinstance(outcome, NoAnswer):
                failures.append(outcome)
                continue
            at_input.index_add_(0, group.rows, torch.from_numpy(outcome))
            reached[group.rows] = True
        asked = torch.zeros_like(reached)
        for group in groups:
            asked[group.rows] = True
        lost = (asked & ~reached).nonzero().flatten().tolist()
        if lost:
            raise RowsUnanswered(lost, failures)
        return at_input, None, None, None


def _enough(groups: Sequence[_Group], rows: int, k_min: int) -> Callable[[Collection[int]], bool]:
    """Whether each row that is asked about has ``k_min`` answers, or all of its own where those are fewer."""
    per_group = np.zeros((len(groups), rows), np.int64)
    for index, group in enumerate(groups):
        np.add.at(per_group[index], group.rows.numpy(), 1)
    wanted = np.minimum(per_group.sum(axis=0), k_min)
    return lambda answered: bool((per_group[sorted(answered)].sum(axis=0) >= wanted).all())


def _rows(tensor: Tensor) -> Rows:
    rows: Rows = tensor.detach().contiguous().numpy()
    return rows
