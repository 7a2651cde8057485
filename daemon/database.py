"""The database file under the chain: opened and checked, its schema brought up to date, one writer at a time.

WAL with ``synchronous=FULL``: a transaction is on disk, whole, before its block of code is left, so ``kill -9`` at any
instant loses nothing that was acknowledged. Everything here blocks; callers run it in a thread.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moed.consensus.genesis import Genesis, genesis_state

from .errors import StoreCorrupt, StoreFailed

SCHEMA_STEPS = ("schema.sql", "schema_2.sql", "schema_3.sql", "schema_4.sql", "schema_5.sql")
"""What makes each version from the one before; version n is the first n of them."""
SCHEMA_VERSION = len(SCHEMA_STEPS)
MAX_SQL_INTEGER = 2**63 - 1
"""SQLite's; heights and numbers that peers and callers ask for may be larger."""
REMEDY = "run `moed chain verify`, then restore the file from a backup or sync a new home"


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one: `executescript` would commit the transaction under way."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement


def _connect_file(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)


class Database:
    """One open database file. `close` it, or use it as a context manager."""

    def __init__(
        self, path: Path, genesis: Genesis, *, connect: Callable[[Path], sqlite3.Connection] = _connect_file
    ) -> None:
        """Open or make the database of ``genesis``'s network at ``path``; ``connect`` opens it where no disk is.

        Raises `StoreFailed` if the file cannot be opened or written, `StoreCorrupt` if it is no chain database or
        belongs to another network.
        """
        self.path = path
        self.genesis = genesis
        # Worker threads share the one connection, and with it the one transaction: without the lock a second
        # writer would fail inside the first one's, and a reader would see a block that is not on disk yet.
        self._lock = threading.Lock()
        was_cut = _was_cut(path)
        try:
            self._db = connect(path)
        except sqlite3.DatabaseError as error:
            raise self._failure("open", error) from error
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            if was_cut:
                self._check_pages()
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise self._failure("open", error) from error
        except StoreCorrupt:
            self._db.close()
            raise

    def _prepare(self) -> None:
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            raise StoreCorrupt(
                f"{self.path} is of schema {version}, and this moed knows up to {SCHEMA_VERSION}",
                "run the newer moed that made it",
            )
        if version == 0:
            self._create()
        else:
            with self._transaction():
                self._take_steps(version)
        stored = self._meta("network_id")
        if stored != self.genesis.network_id:
            raise StoreCorrupt(
                f"{self.path} belongs to network {stored.hex()[:12] if stored else 'none'}, "
                f"and the genesis is of network {self.genesis.network_id.hex()[:12]}",
                "use the genesis file that this home was made with, or a new home",
            )

    def _check_pages(self) -> None:
        """Read the whole file once, after an end that was no orderly one: a bad page is met now and not in a year."""
        found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise StoreCorrupt(f"{self.path} is damaged ({found})", REMEDY)

    def _create(self) -> None:
        with self._transaction():
            self._take_steps(0)
            self._db.execute("INSERT INTO meta VALUES ('network_id', ?)", (self.genesis.network_id,))
            encoded = genesis_state(self.genesis).encoded()
            self._db.executemany("INSERT INTO state VALUES (?, ?)", encoded.items())

    def _take_steps(self, version: int) -> None:
        """Bring the schema from ``version`` to ours, within the transaction under way."""
        for step in SCHEMA_STEPS[version:]:
            for statement in _statements(files("moed.daemon").joinpath(step).read_text()):
                self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db, self._lock)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """All of the statements inside, or none. Raises `StoreFailed` or `StoreCorrupt` for what SQLite raises."""
        try:
            with self._transaction():
                yield
        except sqlite3.DatabaseError as error:
            raise self._failure("write", error) from error

    @contextmanager
    def _alone(self, doing: str) -> Iterator[None]:
        """No other thread's statement comes in between. Raises as `_writing` does, saying what was being done."""
        try:
            with self._lock:
                yield
        except sqlite3.DatabaseError as error:
            raise self._failure(doing, error) from error

    def _failure(self, doing: str, error: sqlite3.DatabaseError) -> StoreFailed | StoreCorrupt:
        code = getattr(error, "sqlite_errorname", "")
        if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return StoreCorrupt(f"{self.path} is damaged ({error})", "restore it from a backup, or sync a new home")
        if code.startswith("SQLITE_FULL"):
            return StoreFailed(f"the disk of {self.path} is full", "free some space and start moed again")
        return StoreFailed(f"cannot {doing} {self.path}: {error}", "check the folder's owner and mode, and the disk")

    def _meta(self, name: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return bytes(row[0]) if row else None

    def _one(self, query: str) -> tuple[Any, ...] | None:
        with self._alone("read"):
            row: tuple[Any, ...] | None = self._db.execute(query).fetchone()
        return row

    @property
    def size_bytes(self) -> int:
        """What the file takes on the disk once all of it is in its place."""
        pages, page_bytes = self._one("PRAGMA page_count"), self._one("PRAGMA page_size")
        return int(pages[0]) * int(page_bytes[0]) if pages and page_bytes else 0

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Reads inside see one moment, whatever another process writes; nothing may be written inside."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Transaction:
    """All of the statements inside, or none; no other thread's statement comes in between."""

    def __init__(self, db: sqlite3.Connection, lock: threading.Lock) -> None:
        self._db = db
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except BaseException:  # whatever it is, nobody else may wait for this lock for ever
            self._lock.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            # a full or broken disk has ended the transaction already: a second end would hide what happened
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._lock.release()


def _was_cut(path: Path) -> bool:
    """Whether the last one who wrote did not close: SQLite then leaves what it wrote last beside the file."""
    try:
        return path.with_name(path.name + "-wal").stat().st_size > 0
    except OSError:
        return False
