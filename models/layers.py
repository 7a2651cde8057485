"""Layers that other people's models call, float32 in and out, of three kinds:

``hidden``    [B, D] to [B, D], a step inside a model
``features``  [B, D] to [B, D], what a row is about: vectors of one scale, so that those of several owners compare
``classify``  features [B, D] to log-probabilities [B, C]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from .errors import ModelRefused
from .experts import CausalBlock

HIDDEN, FEATURES, CLASSIFY = "hidden", "features", "classify"
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


class Encoder(nn.Module):
    """Two layers with a wider one between, and vectors whose elements have mean 0 and variance 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.steps = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.steps(x))
        return out


class Classifier(nn.Module):
    """One hidden layer, then the log-probability of each class."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.steps = nn.Sequential(nn.Linear(width, width), nn.GELU(approximate="tanh"), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        return functional.log_softmax(self.steps(x), dim=-1)


@dataclass(frozen=True, slots=True)
class LayerType:
    """What can be served under one name: its kind, and how it is made of a width and, to classify, of classes."""

    kind: str
    make: Callable[[int, int], nn.Module]


LAYERS: Mapping[str, LayerType] = {
    "identity": LayerType(HIDDEN, lambda width, _: Identity(width)),
    "ffn": LayerType(HIDDEN, lambda width, _: FeedForward(width)),
    "block": LayerType(HIDDEN, lambda width, _: SequenceBlock(width)),
    "encoder": LayerType(FEATURES, lambda width, _: Encoder(width)),
    "classifier": LayerType(CLASSIFY, Classifier),
}
