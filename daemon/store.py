"""The chain database: blocks, commits, state and remembered peers in SQLite, one writer, nothing half-written.

WAL with ``synchronous=FULL``: a block is on disk, whole and with the state after it, before `append` returns, so
``kill -9`` at any instant loses nothing that was acknowledged. Everything here blocks; callers run it in a thread.
"""

from __future__ import annotations

import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Self

from moed.consensus.blocks import GENESIS_COMMIT, Block, Commit, decode_block, decode_commit
from moed.consensus.epoch_form import decode_inputs, encode_inputs
from moed.consensus.epoch_inputs import EpochInputs
from moed.consensus.errors import InvalidEpochInput, RuleBroken
from moed.consensus.genesis import Genesis, genesis_state
from moed.consensus.metagraph import ClosedEpoch
from moed.consensus.state import State, decode_state_record
from moed.consensus.transition import Executed, Head
from moed.protocol.codec import decode_record, encode_record
from moed.protocol.errors import RemoteProtocolError
from moed.protocol.receipts import SignedSheet

from .errors import StoreCorrupt, StoreFailed

SCHEMA_STEPS = ("schema.sql", "schema_2.sql", "schema_3.sql")
"""What makes each version from the one before; version n is the first n of them."""
SCHEMA_VERSION = len(SCHEMA_STEPS)
KEPT_SHEETS = 10_000
"""Sheets of receipts that are kept, the newest; one is at most about 30 KiB, and mostly far less."""
KEPT_EPOCHS = 256
"""Epochs whose inputs are kept. To recompute them would mean to execute the chain from its genesis; to keep them costs
about 50 KiB each with 64 validators that rate 256 uids."""
_MAX_INTEGER = 2**63 - 1  # SQLite's; heights that peers and callers ask for may be larger


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


class Store:
    """One open chain database. `close` it, or use it as a context manager."""

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
        try:
            self._db = connect(path)
        except sqlite3.DatabaseError as error:
            raise self._failure("open", error) from error
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
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

    def load_head(self) -> Head:
        """The head that the database ends with, its state checked against the root in its last block.

        Raises `StoreCorrupt` if they differ.
        """
        try:
            with self._lock:
                rows = self._db.execute("SELECT key, value FROM state").fetchall()
                last = self._db.execute('SELECT block, "commit" FROM blocks ORDER BY height DESC LIMIT 1').fetchone()
        except sqlite3.DatabaseError as error:
            raise self._failure("read", error) from error
        try:
            state = State({bytes(key): decode_state_record(bytes(key), bytes(value)) for key, value in rows})
            header = decode_block(last[0]).header if last else None
            commit = decode_commit(last[1]) if last else GENESIS_COMMIT
        except (RemoteProtocolError, KeyError) as error:
            raise StoreCorrupt(f"{self.path} holds a record that does not parse: {error}", _REMEDY) from error
        head = Head(self.genesis, state, header, commit)
        if header is not None and head.state_root != header.state_root:
            raise StoreCorrupt(f"the state in {self.path} is not the one of its last block {header.height}", _REMEDY)
        return head

    def append(self, executed: Executed, commit: Commit) -> None:
        """Put a final block, its commit and the changed state on disk, all or nothing, before returning.

        Raises `StoreFailed` or `StoreCorrupt`.
        """
        block = executed.block
        try:
            with self._transaction():
                self._db.execute(
                    "INSERT INTO blocks VALUES (?, ?, ?, ?)",
                    (block.height, block.hash, encode_record(block), encode_record(commit)),
                )
                self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", executed.encoded.items())
                if executed.closed is not None:
                    self._keep_epoch(executed.closed, block.height)
        except sqlite3.DatabaseError as error:
            raise self._failure("write", error) from error

    def encoded_blocks(self, start: int, limit: int, max_bytes: int | None = None) -> list[tuple[bytes, bytes]]:
        """Up to ``limit`` blocks from height ``start`` on, each with its commit, as stored.

        With ``max_bytes`` no more than fit in it are read, but always one.
        """
        start = max(1, min(start, _MAX_INTEGER))
        taken: list[tuple[bytes, bytes]] = []
        size = 0
        query = 'SELECT block, "commit" FROM blocks WHERE height >= ? ORDER BY height LIMIT ?'
        try:
            with self._lock, closing(self._db.execute(query, (start, limit))) as rows:
                for block, commit in rows:
                    size += len(block) + len(commit)
                    if taken and max_bytes is not None and size > max_bytes:
                        break
                    taken.append((bytes(block), bytes(commit)))
        except sqlite3.DatabaseError as error:
            raise self._failure("read", error) from error
        return taken

    def blocks(self, start: int = 1, batch: int = 100) -> Iterator[tuple[Block, Commit]]:
        """Every block from ``start`` on with its commit, read in batches. Raises `StoreCorrupt` for one that is not."""
        while rows := self.encoded_blocks(start, batch):
            for encoded, encoded_commit in rows:
                try:
                    yield decode_block(encoded), decode_commit(encoded_commit)
                except RemoteProtocolError as error:
                    raise StoreCorrupt(f"block {start} in {self.path} does not parse: {error}", _REMEDY) from error
                start += 1

    def _keep_epoch(self, closed: ClosedEpoch, height: int) -> None:
        inputs = zlib.compress(encode_inputs(closed.inputs))
        self._db.execute("INSERT OR REPLACE INTO epochs VALUES (?, ?, ?)", (closed.number, height, inputs))
        self._db.execute("DELETE FROM epochs WHERE number <= ?", (closed.number - KEPT_EPOCHS,))

    def epoch_inputs(self, number: int) -> EpochInputs | None:
        """What the epoch of that number was computed from, if it is among the last `KEPT_EPOCHS`.

        Raises `StoreCorrupt` if it does not parse.
        """
        number = max(0, min(number, _MAX_INTEGER))
        try:
            with self._lock:
                row = self._db.execute("SELECT inputs FROM epochs WHERE number = ?", (number,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._failure("read", error) from error
        try:
            return decode_inputs(zlib.decompress(row[0])) if row else None
        except (zlib.error, InvalidEpochInput) as error:
            raise StoreCorrupt(f"epoch {number} in {self.path} does not parse: {error}", _REMEDY) from error

    def remember(self, name: str, value: bytes) -> None:
        """Put a note of this node's own on disk before returning; it replaces the one of that name."""
        try:
            with self._transaction():
                self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))
        except sqlite3.DatabaseError as error:
            raise self._failure("write", error) from error

    def recall(self, name: str) -> bytes | None:
        """The note of that name, if there is one."""
        try:
            with self._lock:
                row = self._db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._failure("read", error) from error
        return bytes(row[0]) if row else None

    def remember_peers(self, peers: Sequence[tuple[bytes, str, int, int]]) -> None:
        """Replace the remembered peers by these: (node id, host, port, last seen in unix seconds)."""
        try:
            with self._transaction():
                self._db.execute("DELETE FROM peers")
                self._db.executemany("INSERT OR REPLACE INTO peers VALUES (?, ?, ?, ?)", peers)
        except sqlite3.DatabaseError as error:
            raise self._failure("write", error) from error

    def remembered_peers(self) -> list[tuple[bytes, str, int, int]]:
        """What `remember_peers` last kept, the most recently seen first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT node_id, host, port, last_seen FROM peers ORDER BY last_seen DESC"
            ).fetchall()
        return [(bytes(node_id), host, port, seen) for node_id, host, port, seen in rows]

    def keep_receipts(self, sheets: Sequence[SignedSheet]) -> None:
        """Put sheets of receipts on disk, all or none; the oldest over `KEPT_SHEETS` go. Raises `StoreFailed`."""
        rows = [(one.hash, read.session, read.closed_ms, encode_record(one)) for one in sheets for read in [one.read()]]
        try:
            with self._transaction():
                self._db.executemany("INSERT OR REPLACE INTO receipts VALUES (?, ?, ?, ?)", rows)
                self._db.execute(
                    "DELETE FROM receipts WHERE hash IN "
                    "(SELECT hash FROM receipts ORDER BY closed_ms DESC LIMIT -1 OFFSET ?)",
                    (KEPT_SHEETS,),
                )
        except sqlite3.DatabaseError as error:
            raise self._failure("write", error) from error

    def receipts(self) -> list[SignedSheet]:
        """Every sheet of receipts that is kept, the oldest first. Raises `StoreCorrupt` for one that does not parse."""
        try:
            with self._lock:
                rows = self._db.execute("SELECT sheet FROM receipts ORDER BY closed_ms, hash").fetchall()
            return [decode_record(bytes(sheet), SignedSheet) for (sheet,) in rows]
        except sqlite3.DatabaseError as error:
            raise self._failure("read", error) from error
        except RemoteProtocolError as error:
            raise StoreCorrupt(f"{self.path} holds a receipt that does not parse: {error}", _REMEDY) from error

    def stored_state(self) -> Mapping[bytes, bytes]:
        """The state's records as stored, for a check against a fresh execution."""
        with self._lock:
            rows = self._db.execute("SELECT key, value FROM state").fetchall()
        return {bytes(key): bytes(value) for key, value in rows}

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


_REMEDY = "run `moed chain verify`, then restore the file from a backup or sync a new home"


class _Transaction:
    """All of the statements inside, or none; no other thread's statement comes in between."""

    def __init__(self, db: sqlite3.Connection, lock: threading.Lock) -> None:
        self._db = db
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except BaseException:
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


def verify_chain(store: Store) -> Head:
    """Re-execute every block from genesis and compare with what is stored; returns the head that came out.

    Works beside a running daemon: all is read as it stood at one moment. Raises `StoreCorrupt` naming the first
    height at which something differs.
    """
    head = Head.at_genesis(store.genesis)
    with store.snapshot():
        for block, commit in store.blocks():
            try:
                executed = head.execute(block)
                head.check_final(block, commit)
            except RuleBroken as error:
                height = head.height + 1
                raise StoreCorrupt(f"block {height} in {store.path} breaks a rule: {error}", _REMEDY) from error
            head.advance(executed, commit)
        if head.state.encoded() != store.stored_state():
            raise StoreCorrupt(f"the state in {store.path} is not what its {head.height} blocks give", _REMEDY)
    return head
