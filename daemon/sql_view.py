"""Read-only SQL over what a node keeps: chain, state, receipts, peers and metrics, as tables with plain columns.

Each question gets a connection of its own to the chain database, opened read-only, and may do nothing but read: an
authorizer refuses every other action, and time, rows and sizes are bounded.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from moed.consensus.blocks import Block, Commit, decode_block, decode_commit
from moed.consensus.state import Account, Neuron, account_key, decode_state_record
from moed.protocol.codec import decode_record
from moed.protocol.identity import PublicKey, node_id_of
from moed.protocol.receipts import SignedSheet

MAX_SECONDS = 5.0
MAX_ROWS = 10_000
MAX_VALUE_BYTES = 256 << 10  # over every record; a block is larger, but is read on the side and never a value
MAX_COLUMNS = 64  # times the longest value is what one row may take
MAX_ANSWER_BYTES = 16 << 20
# The clock is asked between steps, and one step may call a function that goes over a long value for each place of
# another: so there are few of them, and both values and patterns are short.
_STEPS_BETWEEN_CHECKS = 50
_MAX_PATTERN_BYTES = 128
_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
# The file holds more: among its notes is what a validator has hidden and not yet shown.
_READABLE = frozenset({"blocks", "epochs", "state", "receipts", "peers"})
_DENIED_FUNCTIONS = frozenset({"load_extension", "fts3_tokenizer", "randomblob"})

TABLES = {
    "blocks": ("height", "hash", "time_ms", "proposer", "transactions", "state_root", "round", "signatures"),
    "epochs": ("number", "height"),
    "accounts": ("key", "node_id", *Account.__struct_fields__),
    "neurons": ("node_id", *Neuron.__struct_fields__),
    "state": ("kind", "key", "record"),
    "receipts": ("sheet", "server", "caller", "closed_ms", "signed_by_both", "method", "request_bytes",
                 "answer_bytes", "served_us"),
    "peers": ("node_id", "host", "port", "last_seen"),
    "metrics": ("name", "labels", "value"),
    "tables": ("name", "columns"),
}  # fmt: skip
"""Every table and its columns. Ids, keys and hashes are lower-case hex; what is no number or text is JSON."""


class SqlRefused(Exception):
    """The question is not one that can be answered: wrong SQL, no reading, too long, too large."""


def run_sql(database: Path, registry: CollectorRegistry, query: str) -> dict[str, Any]:
    """Answer one SELECT: {columns, rows, truncated, took_ms}. Blocks. Raises `SqlRefused` with words for the caller."""
    began = time.monotonic()
    try:
        with (
            closing(sqlite3.connect(_read_only(database), uri=True)) as blocks,
            closing(_open(database, registry, blocks)) as db,
        ):
            db.set_progress_handler(lambda: time.monotonic() - began > MAX_SECONDS, _STEPS_BETWEEN_CHECKS)
            db.set_authorizer(_authorize)
            cursor = db.execute(query)
            if cursor.description is None:
                raise SqlRefused("that is no SELECT")
            rows, is_whole = _take(cursor)
            columns = [column[0] for column in cursor.description]
    except sqlite3.Error as error:
        raise SqlRefused(_words(error)) from error
    took_ms = round((time.monotonic() - began) * 1000, 2)
    return {"columns": columns, "rows": rows, "truncated": not is_whole, "took_ms": took_ms}


def _words(error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_INTERRUPT":
        return f"it took longer than {MAX_SECONDS:.0f} s"
    if name == "SQLITE_AUTH":
        return "only reading is allowed here"
    if name == "SQLITE_TOOBIG":
        return f"a value is over {MAX_VALUE_BYTES} bytes"
    return str(error)


def _take(rows: Iterable[tuple[Any, ...]]) -> tuple[list[list[Any]], bool]:
    """At most `MAX_ROWS` rows and `MAX_ANSWER_BYTES`, and whether that was all."""
    taken: list[list[Any]] = []
    size = 0
    for row in rows:
        shown = [value.hex() if isinstance(value, bytes) else value for value in row]
        size += sum(len(value) if isinstance(value, str) else 8 for value in shown)
        if len(taken) == MAX_ROWS or size > MAX_ANSWER_BYTES:
            return taken, False
        taken.append(shown)
    return taken, True


def _authorize(action: int, first: str | None, second: str | None, database: str | None, _view: str | None) -> int:
    if action == sqlite3.SQLITE_FUNCTION and second in _DENIED_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_READ and database == "chain" and first not in _READABLE:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def _read_only(database: Path) -> str:
    return f"{database.absolute().as_uri()}?mode=ro"


def _open(database: Path, registry: CollectorRegistry, blocks: sqlite3.Connection) -> sqlite3.Connection:
    """A connection that can be asked; ``blocks`` reads the blocks, which may be longer than a value."""
    # Sorting goes to a temporary file over the cache's size, so no question takes much memory.
    db = sqlite3.connect(":memory:", isolation_level=None, uri=True)
    try:
        db.execute("PRAGMA temp_store = FILE")
        db.execute("PRAGMA cache_size = -8192")
        db.execute("ATTACH DATABASE ? AS chain", (_read_only(database),))
        db.create_function("block_field", 2, _block_fields(blocks), deterministic=True)
        db.create_function("record", 2, _record, deterministic=True)
        db.create_function("calls", 1, _calls, deterministic=True)
        for statement in _views():
            db.execute(statement)
        db.execute("CREATE TEMP TABLE metrics (name TEXT, labels TEXT, value REAL)")
        db.executemany("INSERT INTO temp.metrics VALUES (?, ?, ?)", _samples(registry))
        db.execute("CREATE TEMP TABLE tables (name TEXT, columns TEXT)")
        db.executemany("INSERT INTO temp.tables VALUES (?, ?)", ((name, ", ".join(TABLES[name])) for name in TABLES))
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        db.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, MAX_COLUMNS)
        db.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, _MAX_PATTERN_BYTES)
        db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 1)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _views() -> Iterable[str]:
    fields = ", ".join(f"block_field(height, '{name}') AS {name}" for name in TABLES["blocks"][2:])
    yield f"CREATE TEMP VIEW blocks AS SELECT height, lower(hex(hash)) AS hash, {fields} FROM chain.blocks"  # noqa: S608 - our own words
    yield "CREATE TEMP VIEW epochs AS SELECT number, height FROM chain.epochs"
    yield (
        "CREATE TEMP VIEW state AS SELECT each ->> '$.kind' AS kind, lower(hex(key)) AS key,"
        " each -> '$.record' AS record FROM (SELECT key, record(key, value) AS each FROM chain.state)"
    )
    for table, kind in (("accounts", "Account"), ("neurons", "Neuron")):
        columns = ", ".join(f"record ->> '$.{name}' AS {name}" for name in TABLES[table])
        yield f"CREATE TEMP VIEW {table} AS SELECT {columns} FROM state WHERE kind = '{kind}'"  # noqa: S608 - our own words
    columns = ", ".join(f"one.value ->> '$.{name}' AS {name}" for name in TABLES["receipts"])
    yield f"CREATE TEMP VIEW receipts AS SELECT {columns} FROM chain.receipts, json_each(calls(sheet)) AS one"  # noqa: S608 - our own words
    yield "CREATE TEMP VIEW peers AS SELECT lower(hex(node_id)) AS node_id, host, port, last_seen FROM chain.peers"


def _plain(value: Any) -> Any:
    """A record's value in JSON's types."""
    return value.hex() if isinstance(value, bytes | bytearray) else str(value)


def _block_fields(blocks: sqlite3.Connection) -> Callable[[int, str], Any]:
    """What gives one field of the block at a height; NULL if the block was let go meanwhile."""

    @lru_cache(maxsize=2)  # a row asks for every field of one block
    def read(height: int) -> tuple[Block, Commit] | None:
        row = blocks.execute('SELECT block, "commit" FROM blocks WHERE height = ?', (height,)).fetchone()
        return None if row is None else (decode_block(row[0]), decode_commit(row[1]))

    def field(height: int, name: str) -> Any:
        found = read(height)
        return None if found is None else _block_field(*found, name)

    return field


def _block_field(block: Block, commit: Commit, name: str) -> Any:
    values: dict[str, Callable[[], Any]] = {
        "time_ms": lambda: block.header.time_ms,
        "proposer": lambda: node_id_of(block.header.proposer).hex(),
        "transactions": lambda: len(block.transactions),
        "state_root": block.header.state_root.hex,
        "round": lambda: commit.round,
        "signatures": lambda: len(commit.signatures),
    }
    return values[name]()


def _record(key: bytes, value: bytes) -> str:
    """One record of the state as {kind, record}; what holds a key or is held under one has its node id too."""
    record = decode_state_record(key, value)
    fields: dict[str, Any] = {name: getattr(record, name) for name in record.__struct_fields__}
    if isinstance(record, Account):
        public_key = PublicKey(key.removeprefix(account_key(b"")))
        fields = {"key": public_key, "node_id": node_id_of(public_key), **fields}
    elif isinstance(record, Neuron):
        fields = {"node_id": record.node_id, **fields}
    plain = msgspec.to_builtins(fields, builtin_types=(bytes,))
    return json.dumps({"kind": type(record).__name__, "record": plain}, default=_plain)


def _calls(encoded: bytes) -> str:
    """Every call of one sheet of receipts."""
    signed = decode_record(encoded, SignedSheet)
    sheet = signed.read()
    about = {
        "sheet": signed.hash.hex(),
        "server": sheet.server.hex(),
        "caller": sheet.caller.hex(),
        "closed_ms": sheet.closed_ms,
        "signed_by_both": signed.caller_signature is not None,
    }
    return json.dumps(
        [
            about | {name: getattr(call, name) for name in ("method", "request_bytes", "answer_bytes", "served_us")}
            for call in sheet.calls
        ]
    )


def _samples(registry: CollectorRegistry) -> Iterable[tuple[str, str, float]]:
    for family in registry.collect():
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            yield sample.name, labels, sample.value
