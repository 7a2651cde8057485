"""Experts of kind ``hidden``: vectors float32 [B, D] to vectors [B, D], for layers that several owners share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn import functional

HIDDEN = "hidden"


class Identity(nn.Module):
    """Answers what it was asked; what is left is the cost of asking."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x


class FeedForward(nn.Module):
    """The transformer's feed-forward step (arXiv 1706.03762, section 3.3), fourfold wide, added back and normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        widened = functional.gelu(self.widen(x), approximate="tanh")
        out: Tensor = self.norm(x + self.narrow(widened))
        return out


LAYERS: Mapping[str, Callable[[int], nn.Module]] = {"identity": Identity, "ffn": FeedForward}
