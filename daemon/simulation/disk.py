"""A disk that keeps exactly what was synced: the image of a database after each append, the entries of a journal."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from moed.consensus.blocks import Commit
from moed.consensus.genesis import Genesis
from moed.consensus.transition import Executed
from moed.daemon.store import Store


class MemoryJournal:
    """A `moed.daemon.journal.Journal` that outlives the node's objects, as a file outlives a process."""

    def __init__(self) -> None:
        self._entries: list[bytes] = []

    def entries(self) -> list[bytes]:
        return list(self._entries)

    def append(self, entry: bytes) -> None:
        self._entries.append(entry)

    def restart(self, entries: Sequence[bytes]) -> None:
        self._entries = list(entries)


class Disk:
    """What one node finds again after a crash."""

    def __init__(self) -> None:
        self.journal = MemoryJournal()
        self.image: bytes | None = None

    def connect(self, _path: Path) -> sqlite3.Connection:
        """A database in memory that holds the last image."""
        database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        if self.image is not None:
            database.deserialize(self.image)
        return database


class ImagedStore(Store):
    """The chain database on a `Disk`: an append is on it when it returns, and nothing of one that was cut."""

    def __init__(self, disk: Disk, genesis: Genesis) -> None:
        super().__init__(Path("simulated"), genesis, connect=disk.connect)
        self._disk = disk
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True
        super().close()

    def append(self, executed: Executed, commit: Commit) -> None:
        super().append(executed, commit)
        self._disk.image = self._db.serialize()
