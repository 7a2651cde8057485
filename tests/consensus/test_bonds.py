"""Tests of bonds on their own: the short way to what is stored is the long way's result."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moed.consensus.bonds import column_upscaled, column_upscaled_u16
from moed.consensus.fixedpoint import ONE, to_u16


@given(st.lists(st.lists(st.integers(0, ONE), min_size=3, max_size=3), min_size=1, max_size=40))
def test_stored_bonds_round_as_two_floors_do(rows: list[list[int]]) -> None:
    """Any bonds, columns of zeros and of single holders among them."""
    bonds = np.array(rows, np.int64)
    assert (column_upscaled_u16(bonds) == to_u16(column_upscaled(bonds))).all()


def test_stored_bonds_on_the_edge_of_every_step() -> None:
    """Bonds just under, on and just over each of the 65,536 steps of a largest bond of any size."""
    for largest in (1, 2, 65_535, 65_537, 10**6 + 3, ONE // 3, ONE):
        step = np.arange(65_536) * largest // 65_535
        near = np.concatenate([step - 1, step, step + 1])
        bonds = np.append(near[(near >= 0) & (near <= largest)], largest)[None, :]
        assert (column_upscaled_u16(bonds) == to_u16(column_upscaled(bonds))).all(), largest
