"""Rows of weights and bonds, dense and sparse: the same entries either way."""

from __future__ import annotations

import numpy as np

from moed.consensus.dense_rows import DenseRows
from moed.consensus.sparse_rows import SparseRows


def test_dense_rows_say_the_same_as_sparse_ones() -> None:
    """Entries, explicit zeros, empty rows and chosen rows come out of the matrix as they come out of pairs."""
    columns = 8
    lists = [[(0, 3), (1, 0), (7, 65535)], [], [(uid, uid) for uid in range(columns)], [(5, 0)], [], [], [], [(0, 1)]]
    sparse = SparseRows.from_rows(lists)
    row_uids = np.array([0, 2, 3, 4, 7])
    zeros = [row * columns + uid for row, own in enumerate(row_uids) for uid, value in lists[own] if value == 0]
    dense = DenseRows(columns, row_uids, sparse.dense(row_uids, columns), np.array(zeros)).checked(columns, "rows")
    assert dense.to_lists() == sparse.to_lists()
    assert dense.occupied.tolist() == sparse.occupied.tolist()
    for wanted in ([0, 1, 2, 5], [7, 0], [], [0, 2, 3, 4, 7]):
        there = np.array(wanted, np.int64)
        assert dense.dense(there, columns).tolist() == sparse.dense(there, columns).tolist()
        assert dense.only_zeros().dense(there, columns).tolist() == sparse.only_zeros().dense(there, columns).tolist()
    shuffled = np.array([3, 1, 4, 0, 2])
    told = DenseRows(columns, row_uids[shuffled], dense.matrix[shuffled], np.array([0, 1, 2]))  # zeros of uid 4's row
    ascending = told.chosen(np.argsort(told.row_uids)[:-1])
    assert ascending.row_uids.tolist() == [0, 2, 3, 4]
    assert ascending.row(4) == [(0, 0), (1, 0), (2, 0)]
    assert ascending.row(0) == [(0, 3), (7, 65535)]
    assert ascending.row(7) == []


def test_sparse_rows_round_trip() -> None:
    """Rows survive the way into flat arrays and back, empty ones and explicit zeros included."""
    rows = [[(0, 0), (5, 65535)], [], [(2, 1)]]
    sparse = SparseRows.from_rows(rows)
    assert sparse.to_lists() == rows
    assert sparse.occupied.tolist() == [True, False, True]
    assert SparseRows.from_rows([]).to_lists() == []
