"""Experts of kind ``hidden``: vectors float32 [B, D] to vectors [B, D], for layers that several owners share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn import functional

from .errors import ModelRefused
from .experts import CausalBlock

HIDDEN = "hidden"
BLOCK_VECTORS = 16
"""A row of a `SequenceBlock` stands for so many vectors: rows of several callers run as one batch, so what belongs
together must be in one row."""


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


class SequenceBlock(nn.Module):
    """A causal transformer block: a row is a sequence of `BLOCK_VECTORS` vectors, end to end, that see those before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        size, left = divmod(width, BLOCK_VECTORS)
        if left:
            raise ModelRefused(f"a block's width is a multiple of {BLOCK_VECTORS}, not {width}")
        self.size = size
        self.block = CausalBlock(size, 4 if size % 4 == 0 else 1)

    def forward(self, x: Tensor) -> Tensor:
        sequence = x.reshape(len(x), BLOCK_VECTORS, self.size)  # [B, D] -> [B, T, D / T]
        out: Tensor = self.block(sequence)
        return out.reshape(x.shape)


LAYERS: Mapping[str, Callable[[int], nn.Module]] = {
    "identity": Identity,
    "ffn": FeedForward,
    "block": SequenceBlock,
}
