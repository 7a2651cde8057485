"""A lock of one's own, and two ways to answer it: what a validator can plug in, and what no text teaches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moed.models.corpora import Split, Tokens
from moed.models.locks import LockRows


class Parity:
    """A task that no text holds: after each bit, whether the number of ones so far is odd. Either case will do."""

    name = "parity"
    weight = 2.0
    continues_text = False

    def draw(self, _split: Split, rng: np.random.Generator, rows: int, length: int) -> LockRows:
        """Random bits as text, the parity so far as targets: e for even, o for odd."""
        bits = rng.integers(2, size=(rows, length))
        parity = bits.cumsum(axis=1) % 2
        targets = np.where(parity == 1, ord("o"), ord("e")).astype(np.uint8)
        return LockRows((bits + ord("0")).astype(np.uint8), targets, np.ones((rows, length), dtype=bool))

    def judge(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        """A capital is worth as much as a small letter."""
        small = targets.long().unsqueeze(-1)
        both = torch.cat([log_probs.gather(-1, small), log_probs.gather(-1, small - 32)], dim=-1)
        return both.logsumexp(dim=-1)


class Solver:
    """Solves parity by counting, in capitals: a method, not a model."""

    def answer(self, tokens: Tokens) -> npt.NDArray[np.float32]:
        """Nearly all of the chance on the right letter."""
        odd = (tokens - ord("0")).cumsum(axis=1) % 2
        chances = np.full((*tokens.shape, 256), 0.05 / 255, dtype=np.float32)
        np.put_along_axis(chances, np.where(odd == 1, ord("O"), ord("E"))[..., None], 0.95, axis=-1)
        answer: npt.NDArray[np.float32] = np.log(chances / chances.sum(axis=-1, keepdims=True))
        return answer


class Guesser:
    """Knows the letters and not the sum."""

    def answer(self, tokens: Tokens) -> npt.NDArray[np.float32]:
        """Half and half."""
        chances = np.full((*tokens.shape, 256), 0.02 / 254, dtype=np.float32)
        chances[..., [ord("e"), ord("o")]] = 0.49
        answer: npt.NDArray[np.float32] = np.log(chances / chances.sum(axis=-1, keepdims=True))
        return answer


def make_parity() -> Parity:
    """What a configuration would name."""
    return Parity()


def make_no_lock() -> str:
    """Something that is no lock."""
    return "make_no_lock"


def make_trouble() -> None:
    """A factory of the operator's that fails."""
    raise KeyError("make_trouble")
