"""The random numbers behind the published retention plots: ChaCha12 from a 64-bit seed, u16 uniforms, Box-Muller.

The stream is that of Rust's ``rand`` 0.8 (``StdRng::seed_from_u64``, ``Uniform<u16>``): PCG32 stretches the seed to a
key, the cipher is RFC 8439's with 12 rounds and a 64-bit counter, and a u16 under 65535 is the high half of its product
with a 32-bit word, words in the biased zone skipped.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float64]

_MASK = (1 << 64) - 1
_RANGE = 65_535
_SMALL = 1e-6  # keeps the logarithm finite


class PublishedDraws:
    """Standard normal numbers in the order in which the plots drew them: call it for each sample of some size."""

    def __init__(self, seed: int = 0) -> None:
        self._key = _key_of(seed)
        self._block = 0
        self._words: Words = np.zeros(0, np.uint32)

    def __call__(self, size: int) -> Floats:
        uniform = self._uniform(2 * size) / _RANGE + _SMALL
        drawn: Floats = np.sqrt(-2 * np.log(uniform[:size])) * np.cos(2 * np.pi * uniform[size:])
        return drawn

    def _uniform(self, count: int) -> Floats:
        """Whole numbers from 0 to 65534."""
        taken: list[npt.NDArray[np.uint64]] = []
        missing = count
        zone = (1 << 32) - 1 - ((1 << 32) - _RANGE) % _RANGE
        while missing:
            product = self._next(missing).astype(np.uint64) * np.uint64(_RANGE)
            kept = product[(product & np.uint64(0xFFFF_FFFF)) <= zone] >> np.uint64(32)
            taken.append(kept)
            missing -= len(kept)
        return np.concatenate(taken).astype(np.float64)

    def _next(self, count: int) -> Words:
        while len(self._words) < count:
            blocks = 1 + (count - len(self._words)) // 16
            self._words = np.append(self._words, _chacha12(self._key, self._block, blocks))
            self._block += blocks
        given, self._words = self._words[:count], self._words[count:]
        return given


def _key_of(seed: int) -> list[int]:
    """Eight words of PCG32 (XSH RR)."""
    state, key = seed, []
    for _ in range(8):
        state = (state * 6364136223846793005 + 11634580027462260723) & _MASK
        mixed, turn = (((state >> 18) ^ state) >> 27) & 0xFFFF_FFFF, state >> 59
        key.append(((mixed >> turn) | (mixed << (32 - turn))) & 0xFFFF_FFFF)
    return key


def _chacha12(key: list[int], first: int, blocks: int) -> Words:
    """Some blocks of key stream, as words in order."""
    counters = np.arange(first, first + blocks, dtype=np.uint64)
    constants = np.frombuffer(b"expand 32-byte k", "<u4")
    start = [np.full(blocks, word, np.uint32) for word in [*constants.tolist(), *key]]
    start += [(counters & np.uint64(0xFFFF_FFFF)).astype(np.uint32), (counters >> np.uint64(32)).astype(np.uint32)]
    start += [np.zeros(blocks, np.uint32)] * 2
    state = [words.copy() for words in start]
    for _ in range(6):
        for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
            _quarter(state, a, b, c, d)
        for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            _quarter(state, a, b, c, d)
    return np.stack([one + two for one, two in zip(state, start, strict=True)], axis=1).ravel()


def _quarter(state: list[Words], a: int, b: int, c: int, d: int) -> None:
    for into, add, turned, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        state[into] = state[into] + state[add]
        mixed = state[turned] ^ state[into]
        state[turned] = (mixed << np.uint32(by)) | (mixed >> np.uint32(32 - by))
