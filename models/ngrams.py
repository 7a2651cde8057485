"""Hashed n-grams of a byte row, causal: the key at position t is of bytes t - n + 1 .. t."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Knuth's multiplicative hashing constant (2^32 / golden ratio), TAOCP volume 3, section 6.4.
_MULTIPLIER = 2_654_435_761
_STATE_BITS = 31  # state times multiplier stays under 2^63


def ngram_buckets(tokens: Tensor, order: int, buckets: int) -> list[Tensor]:
    """For n = 1 .. ``order``, the bucket of the n-gram that ends at each position: ``order`` int64 tensors [B, T].

    Places before the row count as a value of their own. Single bytes are hashed too, so that one table size serves all.
    """
    current = tokens.long() + 1
    keys: list[Tensor] = []
    state = torch.zeros_like(current)
    for back in range(order):
        # State t holds bytes t - back .. t: the byte ``back`` places earlier is mixed in.
        earlier = functional.pad(current, (back, 0))[:, : current.shape[1]]
        state = ((state + earlier) * _MULTIPLIER) % (1 << _STATE_BITS)
        keys.append((state >> 7) % buckets)
    return keys
