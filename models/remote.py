"""Experts on other nodes as torch modules: forward and backward inside autograd, over any transport.

A transport is given; nothing here waits by itself or knows a socket. Backward asks the expert for the gradient at its
inputs, and the expert may learn from it; so each backward pass of a caller is one step of the experts that it used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
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
    """One request to one expert by name: ``inputs`` [B, D]; with ``gradients`` [B, out] a backward pass."""

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

    def live(self, prefixes: Collection[str]) -> Mapping[str, Collection[int]]:
        """The coordinates that are served right below each of these grid prefixes; see `beam.LookUp`."""

    def ask(
        self, asks: Sequence[Ask], patience: Patience, is_enough: Callable[[Collection[int]], bool]
    ) -> Sequence[Rows | NoAnswer]:
        """Ask all at once: an answer, or why there is none, for each in order.

        ``is_enough`` is called with the indexes answered so far, perhaps on another thread; from when it holds the
        rest have the grace.
        """


class RemoteExpert(nn.Module):
    """One expert elsewhere: float32 [..., D] to [..., out]. Raises `RowsUnanswered` where it does not answer, or not in
    that shape.

    ``out_features`` is what the expert gives for a row, D unless said. Gradients flow where the input requires them;
    the expert's own weights are its owner's.
    """

    def __init__(
        self, transport: Transport, name: str, patience: Patience | None = None, *, out_features: int | None = None
    ) -> None:
        super().__init__()
        self.transport = transport
        self.name = name
        self.patience = patience or Patience()
        self.out_features = out_features

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        answer = cast("Tensor", _OneCall.apply(rows, self))  # type: ignore[no-untyped-call]  # torch has no types for it
        return answer.reshape(*x.shape[:-1], answer.shape[-1])

    def ask(self, inputs: Tensor, gradients: Tensor | None = None) -> Tensor:
        """One call, outside autograd: [B, D] to [B, out], or with ``gradients`` [B, out] to those at the inputs."""
        asked = Ask(self.name, rows_of(inputs), None if gradients is None else rows_of(gradients))
        (answer,) = self.transport.ask([asked], self.patience, lambda _answered: False)
        if isinstance(answer, NoAnswer):
            raise RowsUnanswered(range(len(inputs)), [answer])
        width = inputs.shape[1] if gradients is not None else self.out_features or inputs.shape[1]
        if answer.shape != (len(inputs), width) or answer.dtype != np.float32:
            strange = f"{self.name} answered {answer.dtype} {list(answer.shape)}, not float32 {[len(inputs), width]}"
            raise RowsUnanswered(range(len(inputs)), [NoAnswer("strange_answer", strange)])
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


def rows_of(tensor: Tensor) -> Rows:
    """The values of a tensor, without a copy where they lie in a row."""
    rows: Rows = tensor.detach().contiguous().numpy()
    return rows
