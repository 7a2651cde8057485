"""A disk that keeps exactly what was synced, and on which power may be cut at any write.

The database is SQLite in memory, whose transactions are whole or not there; the journal is the bytes of the real one,
of which a cut may leave half an entry.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from moed.consensus.blocks import Commit
from moed.consensus.genesis import Genesis
from moed.consensus.transition import Executed
from moed.daemon.journal import COMPACT_BYTES, frame_entry, parse_entries
from moed.daemon.store import Store


class PowerCut(Exception):
    """The machine is off: nothing after this write happens."""


class Cut(Enum):
    """Where in a write the power goes."""

    BEFORE = "nothing of it is on the disk"
    TORN = "a part of it is on the disk, which must count for nothing"
    AFTER = "all of it is on the disk, and nobody was told"


class Disk:
    """What one node finds again after a crash. Set ``next_cut``, and the next write ends in a `PowerCut`."""

    def __init__(self, generator: random.Random) -> None:
        self.journal = b""
        self.next_cut: Cut | None = None
        self._database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._random = generator

    def connect(self, _path: Path) -> sqlite3.Connection:
        """The database as the last process left it."""
        return self._database

    def write(self, whole: Callable[[], None], torn: Callable[[float], None]) -> None:
        """Carry out a write; ``torn`` leaves a share of it. Raises `PowerCut`."""
        cut, self.next_cut = self.next_cut, None
        if cut is Cut.TORN:
            torn(self._random.random())
        if cut in (None, Cut.AFTER):
            whole()
        if cut is not None:
            raise PowerCut


class SimulatedJournal:
    """A `moed.daemon.journal.Journal` on a `Disk`."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._found, whole = parse_entries(disk.journal, "the simulated journal")
        disk.journal = disk.journal[:whole]

    def entries(self) -> list[bytes]:
        return list(self._found)

    def append(self, entry: bytes) -> None:
        before, framed = self._disk.journal, frame_entry(entry)
        # the first entry of a file comes by a rename: whole or not at all
        part = framed if before else b""
        self._disk.write(
            lambda: self._replace(before + framed),
            lambda share: self._replace(before + part[: int(share * len(part))]),
        )

    def supersede(self, entry: bytes) -> None:
        if len(self._disk.journal) < COMPACT_BYTES:
            self.append(entry)
        else:
            self._disk.write(lambda: self._replace(frame_entry(entry)), lambda _: None)

    def _replace(self, data: bytes) -> None:
        self._disk.journal = data


class SimulatedStore(Store):
    """The chain database on a `Disk`: an append is on it when it returns, and nothing of one that was cut."""

    def __init__(self, disk: Disk, genesis: Genesis) -> None:
        super().__init__(Path("simulated"), genesis, connect=disk.connect)
        self._disk = disk
        self.is_closed = False

    def close(self) -> None:
        """The process is gone; the disk stays."""
        self.is_closed = True

    def append(self, executed: Executed, commit: Commit) -> None:
        self._disk.write(lambda: super(SimulatedStore, self).append(executed, commit), lambda _: None)
