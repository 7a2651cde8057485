"""Buffers are used again only when nobody can see them."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from moed.protocol.buffer_pool import MIN_POOLED_BYTES, BufferPool, new_buffer

MIB = 1 << 20


def place(view: memoryview) -> int:
    """Where the memory is."""
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def test_an_idle_buffer_is_used_again() -> None:
    """Also for a little shorter message, with the right length."""
    pool = BufferPool(16 * MIB)
    first = pool.allocate(2 * MIB)
    where = place(first)
    del first
    second = pool.allocate(2 * MIB - 5)
    assert (place(second), len(second)) == (where, 2 * MIB - 5)
    assert not second.readonly
    assert pool.kept_bytes == 2 * MIB


@pytest.mark.parametrize("keep", ["view", "slice", "array", "row", "torch"])
def test_a_buffer_that_anybody_sees_is_never_used_again(keep: str) -> None:
    """A view, a slice of one, an array over it, a row of that array, a torch tensor: each keeps it."""
    pool = BufferPool(16 * MIB)
    view = pool.allocate(MIB)
    where = place(view)
    array = np.frombuffer(view, np.float32).reshape(512, 512)
    holders = {"view": view, "slice": view[10:20], "array": array, "row": array[3], "torch": torch.from_numpy(array)}
    held = holders[keep]
    del view, array, holders
    gc.collect()
    assert place(pool.allocate(MIB)) != where
    del held
    gc.collect()
    assert where in {place(buffer) for buffer in [pool.allocate(MIB) for _ in range(3)]}


def test_the_pool_is_bounded_and_small_messages_pass_it() -> None:
    """Beyond its bytes buffers are made and forgotten."""
    pool = BufferPool(2 * MIB)
    held = [pool.allocate(MIB) for _ in range(5)]
    assert pool.kept_bytes == 2 * MIB
    assert len({place(view) for view in held}) == 5
    pool.allocate(MIN_POOLED_BYTES - 1)
    assert pool.kept_bytes == 2 * MIB


def test_trim_gives_back_what_was_idle() -> None:
    """After one round without use an idle buffer goes; one in use stays."""
    pool = BufferPool(16 * MIB)
    used, idle = pool.allocate(MIB), pool.allocate(MIB)
    del idle
    pool.trim()
    assert pool.kept_bytes == 2 * MIB
    pool.trim()
    assert pool.kept_bytes == MIB
    assert len(used) == MIB


@pytest.mark.parametrize("size", [1, 100, 70_000, MIB])
def test_buffers_are_aligned(size: int) -> None:
    """To 16 bytes, so that tensors at multiples of 16 in a message are aligned too."""
    assert place(new_buffer(size)) % 16 == 0
    assert place(BufferPool(MIB).allocate(size)) % 16 == 0
