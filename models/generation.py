"""A completion, byte by byte, from any next-byte distribution: it is told each distribution and never asks for one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moed.protocol.codec import Record

from .corpora import Tokens
from .errors import ModelRefused, ShapeMismatch
from .experts import BYTE_VALUES


class SamplingConfig(Record, frozen=True):
    """How to choose: ``temperature`` 0 takes the likeliest byte; ``stop`` ends the text and is not part of it.

    ``context_bytes`` is how much of the text so far the experts are shown.
    """

    max_bytes: int = 64
    temperature: float = 0.0
    seed: int = 0
    stop: bytes = b""
    context_bytes: int = 96

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.context_bytes < 1:
            raise ValueError("max_bytes and context_bytes must be at least 1")
        if not 0 <= self.temperature <= 10:
            raise ValueError(f"temperature is between 0 and 10, not {self.temperature}")


class Completion:
    """One completion under way:

    while not completion.done:
        distribution = ...ask about completion.context()...
        completion.step(distribution)

    The same prompt, configuration and distributions give the same bytes.
    """

    def __init__(self, prompt: bytes, config: SamplingConfig) -> None:
        """Raises `ModelRefused` for an empty prompt: there is no byte to go on from."""
        if not prompt:
            raise ModelRefused("a completion needs at least one byte of prompt")
        self.config = config
        self.prompt = prompt
        self._written = bytearray()
        self._stopped = False
        self._rng = np.random.default_rng(config.seed)

    @property
    def done(self) -> bool:
        """Whether the text is complete: by length, or by the stop bytes."""
        return self._stopped or len(self._written) >= self.config.max_bytes

    @property
    def written(self) -> bytes:
        """The bytes after the prompt, so far."""
        return bytes(self._written)

    @property
    def text(self) -> str:
        """`written` as text; bytes that are no UTF-8 show as the replacement character."""
        return self._written.decode(errors="replace")

    def context(self) -> Tokens:
        """What to show the experts next: uint8 [T], the end of the text so far."""
        seen = (self.prompt[-self.config.context_bytes :] + self._written)[-self.config.context_bytes :]
        return np.frombuffer(seen, dtype=np.uint8)

    def step(self, log_probs: npt.NDArray[np.floating]) -> int:
        """Take the next byte from log-probabilities [256] and return it.

        Raises `ShapeMismatch` for anything that is no distribution.
        """
        scaled = np.asarray(log_probs, dtype=np.float64)
        if scaled.shape != (BYTE_VALUES,) or np.isnan(scaled).any() or not np.isfinite(scaled.max()):
            raise ShapeMismatch(f"not a distribution over {BYTE_VALUES} bytes")
        byte = self._draw(scaled)
        self._written.append(byte)
        stop = self.config.stop
        if stop and self._written.endswith(stop):
            del self._written[-len(stop) :]
            self._stopped = True
        return byte

    def _draw(self, log_probs: npt.NDArray[np.float64]) -> int:
        if self.config.temperature == 0:
            return int(log_probs.argmax())
        scaled = (log_probs - log_probs.max()) / self.config.temperature
        chances = np.exp(scaled)
        return int(self._rng.choice(BYTE_VALUES, p=chances / chances.sum()))
