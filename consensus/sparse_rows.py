"""Rows of (uid, value) pairs in three flat arrays, so that a million weights are no million objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import index
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InvalidEpochInput

UIDS_MAX = 32_768
"""Most uids in one epoch: beyond it sums of u16 values saturate 31 bits, and dividing by them means nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class SparseRows:
    """``uids[starts[i]:starts[i + 1]]`` and the same slice of ``values`` are row i, in ascending uid order.

    ``starts`` int64 [rows + 1], ``uids`` uint16 [entries], ``values`` an integer type [entries]. An entry may be an
    explicit zero, which is not the same as no entry: with liquid alpha a zero keeps the bond alive.
    """

    starts: npt.NDArray[np.int64]
    uids: npt.NDArray[np.uint16]
    values: npt.NDArray[Any]

    @classmethod
    def from_rows(cls, rows: Sequence[Iterable[Sequence[int]]], name: str = "rows") -> SparseRows:
        """Build from one sequence of (uid, u16) pairs per row; ``name`` goes into the error.

        Raises InvalidEpochInput for an entry that is no pair of integers in 0..65535. Order is checked by ``checked``.
        """
        try:
            lists = [list(row) for row in rows]
            starts = np.zeros(len(lists) + 1, np.int64)
            np.cumsum([len(row) for row in lists], out=starts[1:])
            entries = int(starts[-1])
            sizes = np.fromiter(map(len, chain.from_iterable(lists)), np.int64, entries)
            flat = np.fromiter(map(index, chain.from_iterable(chain.from_iterable(lists))), np.int64)
        except (TypeError, OverflowError) as error:
            raise InvalidEpochInput(f"{name} holds pairs of integers", "(uid, u16) pairs", str(error)) from error
        if not (sizes == 2).all():
            raise InvalidEpochInput(f"{name} holds pairs", 2, int(sizes[np.argmax(sizes != 2)]))
        if entries and not 0 <= flat.min() <= flat.max() <= 65_535:
            worst = int(flat.max() if flat.max() > 65_535 else flat.min())
            raise InvalidEpochInput(f"{name} holds unsigned 16-bit numbers", "0..65535", worst)
        pairs = flat.reshape(entries, 2).astype(np.uint16)
        return cls(starts, np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def occupied(self) -> npt.NDArray[np.bool_]:
        """Which rows have an entry."""
        occupied: npt.NDArray[np.bool_] = np.diff(self.starts) > 0
        return occupied

    def row(self, uid: int) -> list[tuple[int, int]]:
        """One row as (uid, value) pairs."""
        here = slice(int(self.starts[uid]), int(self.starts[uid + 1]))
        return list(zip(self.uids[here].tolist(), self.values[here].tolist(), strict=True))

    def to_lists(self) -> list[list[tuple[int, int]]]:
        """Every row as (uid, value) pairs: for the ledger and for people, not for a million entries in a loop."""
        return [self.row(uid) for uid in range(len(self))]

    def checked(self, n: int, name: str) -> SparseRows:
        """Return self; raises InvalidEpochInput unless there are n rows of ascending uids under n, values in u16."""
        if len(self) != n:
            raise InvalidEpochInput(f"{name} has a row for each uid", n, len(self))
        entries = len(self.uids)
        if self.starts[0] != 0 or self.starts[-1] != entries or (np.diff(self.starts) < 0).any():
            raise InvalidEpochInput(f"{name}: rows follow one another", (0, entries), (self.starts[0], self.starts[-1]))
        kinds = (str(self.uids.dtype), str(self.values.dtype), len(self.values))
        if kinds != ("uint16", "uint16", entries):
            raise InvalidEpochInput(f"{name} pairs u16 with u16", ("uint16", "uint16", entries), kinds)
        if len(self.uids) and int(self.uids.max()) >= n:
            raise InvalidEpochInput(f"{name} names registered uids", f"under {n}", int(self.uids.max()))
        ascending = self.uids[1:] > self.uids[:-1]
        first_of_row = self.starts[1:-1]
        ascending[first_of_row[(first_of_row > 0) & (first_of_row < len(self.uids))] - 1] = True
        if not ascending.all():
            at = int(np.argmin(ascending))
            pair = (int(self.uids[at]), int(self.uids[at + 1]))
            raise InvalidEpochInput(f"{name} lists each uid once, in ascending order", "ascending", pair)
        return self

    def dense(self, row_uids: npt.NDArray[np.int64], columns: int) -> npt.NDArray[Any]:
        """The chosen rows as a matrix [len(row_uids), columns] of the values' type, absent entries 0.

        Where the rows hold every column and follow one another this is a view of the entries, and not writable.
        """
        starts, stops = self.starts[row_uids], self.starts[row_uids + 1]
        rows = len(row_uids)
        if rows and (starts + columns == stops).all() and (starts[1:] == stops[:-1]).all():
            view = self.values[starts[0] : stops[-1]].reshape(rows, columns)
            view.flags.writeable = False
            return view
        matrix = np.zeros((rows, columns), self.values.dtype)
        for row, start, stop in zip(matrix, starts.tolist(), stops.tolist(), strict=True):
            row[self.uids[start:stop]] = self.values[start:stop]
        return matrix

    def only_zeros(self) -> SparseRows:
        """The entries that are zero, each with the value 1."""
        return SparseRows(self.starts, self.uids, self.values == 0)
