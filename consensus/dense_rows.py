"""Rows of (uid, value) pairs that hold almost every uid: a matrix, and where a zero in it is an entry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InvalidEpochInput
from .sparse_rows import SparseRows


@dataclass(frozen=True, slots=True, eq=False)
class DenseRows:
    """``n`` rows, of which row ``row_uids[r]`` is ``matrix[r]`` [n] and every other is empty.

    ``row_uids`` int64 [R], ascending; ``matrix`` an unsigned type [R, n]. A value over 0 is an entry; a zero is one
    only where ``zeros`` names its place in the flat matrix, int64 in ascending order. Epochs hand their bonds on in
    this form: among thousands of uids, turning a dense matrix into pairs and back took a third of the epoch.
    """

    n: int
    row_uids: npt.NDArray[np.int64]
    matrix: npt.NDArray[Any]
    zeros: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return self.n

    @property
    def occupied(self) -> npt.NDArray[np.bool_]:
        """Which rows have an entry."""
        occupied = np.zeros(self.n, np.bool_)
        occupied[self.row_uids] = self.matrix.max(axis=1, initial=0) > 0
        occupied[self.row_uids[self.zeros // self.n]] = True
        return occupied

    def row(self, uid: int) -> list[tuple[int, int]]:
        """One row as (uid, value) pairs."""
        place = int(np.searchsorted(self.row_uids, uid))
        if place == len(self.row_uids) or self.row_uids[place] != uid:
            return []
        values = self.matrix[place]
        present = values > 0
        first, last = np.searchsorted(self.zeros, (place * self.n, (place + 1) * self.n))
        present[self.zeros[first:last] - place * self.n] = True
        return list(zip(np.flatnonzero(present).tolist(), values[present].tolist(), strict=True))

    def to_lists(self) -> list[list[tuple[int, int]]]:
        """Every row as (uid, value) pairs: for the ledger and for people, not for a million entries in a loop."""
        return [self.row(uid) for uid in range(self.n)]

    def checked(self, n: int, name: str) -> DenseRows:
        """Return self; raises InvalidEpochInput unless there are n rows of u16 values for ascending uids under n."""
        if self.n != n:
            raise InvalidEpochInput(f"{name} has a row for each uid", n, self.n)
        kinds = (str(self.matrix.dtype), self.matrix.shape)
        if kinds != ("uint16", (len(self.row_uids), n)):
            raise InvalidEpochInput(f"{name} is a matrix of u16", ("uint16", (len(self.row_uids), n)), kinds)
        for what, numbers, limit in (("rows", self.row_uids, n), ("zeros", self.zeros, self.matrix.size)):
            if not (numbers[1:] > numbers[:-1]).all() or (numbers.size and not 0 <= numbers[0] <= numbers[-1] < limit):
                raise InvalidEpochInput(f"{name}: {what} ascend, under {limit}", "ascending", numbers[:8].tolist())
        return self

    def dense(self, row_uids: npt.NDArray[np.int64], columns: int) -> npt.NDArray[Any]:
        """The chosen rows as a matrix [len(row_uids), columns], absent entries 0; read only where it is the own one."""
        if np.array_equal(row_uids, self.row_uids):
            view = self.matrix.view()
            view.flags.writeable = False
            return view
        matrix = np.zeros((len(row_uids), columns), self.matrix.dtype)
        place = np.searchsorted(self.row_uids, row_uids)
        here = np.flatnonzero(np.append(self.row_uids, -1)[place] == row_uids)
        matrix[here] = self.matrix[place[here]]
        return matrix

    def only_zeros(self) -> SparseRows:
        """The entries that are zero, each with the value 1."""
        row, uid = np.divmod(self.zeros, self.n)
        starts = np.zeros(self.n + 1, np.int64)
        starts[1:] = np.cumsum(np.bincount(self.row_uids[row], minlength=self.n))
        return SparseRows(starts, uid.astype(np.uint16), np.ones(uid.size, np.uint16))

    def chosen(self, order: npt.NDArray[np.int64]) -> DenseRows:
        """The rows at places ``order``, in that order, which has to bring their uids into ascending order."""
        if np.array_equal(order, np.arange(len(self.row_uids))):  # mostly they stand like that already
            return self
        row, uid = np.divmod(self.zeros, self.n)
        new_place = np.full(len(self.row_uids), -1)
        new_place[order] = np.arange(order.size)
        kept = new_place[row] >= 0
        zeros = np.sort(new_place[row[kept]] * self.n + uid[kept])
        return replace(self, row_uids=self.row_uids[order], matrix=self.matrix[order], zeros=zeros)
