"""What a validator wants solved: a *lock* is a stream of rows, what a good answer to them is, and how much it counts.

A lock may ask anything that bytes can ask: rows go out as ``tokens``, answers come back as distributions over the next
byte, and the lock alone judges them. How a miner finds its answers is not its business. `NextByte` is the lock of plain
text; others come in by the validator's own configuration (``locks = ["package.module:make"]``).

A judgement is the logarithm of an *expected utility*: the sum over all bytes of the chance given to a byte times what
that byte would be worth, from 0 to 1. So judgements of several miners mix exactly as their distributions do, and any
lock can train the gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .corpora import Corpus, Split, Tokens
from .errors import ModelRefused
from .factories import call_factory


@dataclass(frozen=True, slots=True)
class LockRows:
    """Rows of one lock: what is sent uint8 [B, T], what a good answer is told by uint8 [B, T], and which positions
    count, bool [B, T]."""

    tokens: Tokens
    targets: Tokens
    scored: npt.NDArray[np.bool_]


@runtime_checkable
class Lock(Protocol):
    """One task that a validator sets.

    ``weight`` is how much its positions count beside those of other locks. ``continues_text`` says that each target is
    the byte that follows in ``tokens``, so that false bytes can be planted and answers that read ahead be found.
    """

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def continues_text(self) -> bool: ...

    def draw(self, split: Split, rng: np.random.Generator, rows: int, length: int) -> LockRows:
        """``rows`` fresh rows of ``length`` bytes of one split."""
        ...

    def judge(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        """The log of each position's expected utility, [R, T], from answers [R, T, 256] and targets uint8 [R, T]."""
        ...


@dataclass(frozen=True, slots=True)
class NextByte:
    """Plain text: every position counts alike, and only the true byte is worth anything."""

    corpus: Corpus
    weight: float = 1.0
    continues_text: bool = True

    @property
    def name(self) -> str:
        """The domain of the text."""
        return self.corpus.domain

    def draw(self, split: Split, rng: np.random.Generator, rows: int, length: int) -> LockRows:
        """Windows of the text. Raises `CorpusUnavailable`."""
        drawn = self.corpus.sample(split, rng, rows, length + 1)
        return LockRows(drawn[:, :-1], drawn[:, 1:], np.ones((rows, length), dtype=bool))

    def judge(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        """The log-probability of the true byte."""
        return next_byte_judgement(log_probs, targets)


def next_byte_judgement(log_probs: Tensor, targets: Tensor) -> Tensor:
    """The log-probability [R, T] that answers [R, T, 256] give to ``targets`` [R, T]."""
    return log_probs.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)


def as_lock(one: Lock | Corpus) -> Lock:
    """A corpus as the lock of its text; a lock as it is."""
    return NextByte(one) if isinstance(one, Corpus) else one


def load_lock(factory: str) -> Lock:
    """The lock that ``factory`` ("pkg.mod:make") makes, called without arguments. Never read from the network.

    Raises `ModelRefused` for what cannot be imported, fails or is no lock.
    """
    made = call_factory(factory)
    if not isinstance(made, Lock):
        raise ModelRefused(f"{factory!r} made a {type(made).__name__}, which has not all that a lock needs")
    return made


class Baseline:
    """What needs no miner: how often each byte followed each in the rows of all locks, counted once.

    A miner's value is what it adds to this. Whoever knows no more than these counts earns nothing, and a specialist is
    not charged for being worse than them elsewhere.
    """

    def __init__(self, locks: tuple[Lock, ...], *, seed: int, rows: int = 512, length: int = 128) -> None:
        rng = np.random.default_rng(seed)
        # half a count to each byte (Krichevsky and Trofimov 1981), over 256 bytes: nothing is impossible
        counts = np.full((256, 256), 0.5 / 256)
        for lock in locks:
            drawn = lock.draw("train", rng, rows, length)
            pairs = drawn.tokens[drawn.scored].astype(np.int64) * 256 + drawn.targets[drawn.scored]
            counts += np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
        table = np.log(counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
        self._log_probs = torch.from_numpy(table)

    def answer(self, tokens: Tensor) -> Tensor:
        """Log-probabilities [B, T, 256] of the byte after each of ``tokens`` uint8 [B, T]."""
        return self._log_probs[tokens.long()]
