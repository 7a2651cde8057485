"""The chain database gives back what it was given, notices what was changed behind it, and survives a kill."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from contextlib import closing
from importlib.resources import files
from pathlib import Path

import pytest

from moed.consensus.metagraph import ClosedEpoch
from moed.consensus.params import ChainParams
from moed.consensus.state import read_neurons
from moed.consensus.transactions import MAX_MEMO_BYTES, Body, Register, SetWeights, Transfer
from moed.consensus.transition import Executed, Head
from moed.consensus.yuma import epoch
from moed.daemon.books import KEPT_EPOCHS
from moed.daemon.database import SCHEMA_STEPS, SCHEMA_VERSION
from moed.daemon.errors import StoreCorrupt, StoreFailed
from moed.daemon.store import Store, verify_chain
from moed.protocol.codec import encode_record
from support.chains import key, make_genesis, sign_commit, signed

GENESIS = make_genesis((60, 40), balances=(10**9, 0))
BOTH = [key(1), key(2)]


def append_blocks(store: Store, head: Head, count: int) -> None:
    """Decide and store the next ``count`` blocks, each with a transfer."""
    for _ in range(count):
        transfer = signed(head, key(3), Transfer(to=key(9).public_key, amount=1), head.height)
        block, refused = head.build([transfer], proposer=key(1).public_key, now_ms=head.time_ms + 1)
        assert refused == []
        commit = sign_commit(GENESIS, block, BOTH)
        executed: Executed = head.execute(block)
        store.append(executed, commit)
        head.advance(executed, commit)


def test_a_reopened_store_stands_where_it_stood(tmp_path: Path) -> None:
    """Head, state and root come back from the file; the blocks re-execute to the same."""
    with Store(tmp_path / "chain.db", GENESIS) as store:
        head = store.load_head()
        assert head.height == 0
        append_blocks(store, head, 5)
    with Store(tmp_path / "chain.db", GENESIS) as store:
        again = store.load_head()
        assert (again.height, again.hash, again.state_root) == (5, head.hash, head.state_root)
        assert again.commit == head.commit
        assert verify_chain(store).state_root == head.state_root
        append_blocks(store, again, 1)


def test_a_block_as_full_as_allowed_is_stored_and_read_again(tmp_path: Path) -> None:
    """The limit counts transactions; header and commit come on top, and the store takes the whole."""
    params = ChainParams(fee_per_byte=0)
    genesis = make_genesis((60, 40), balances=(10**6, 10**6), params=params)
    with Store(tmp_path / "chain.db", genesis) as store:
        head = store.load_head()
        transfers = [
            signed(head, sender, Transfer(to=key(9).public_key, amount=1, memo=memo), nonce)
            # the short ones fill what is left
            for sender, memo, count in ((key(3), bytes(MAX_MEMO_BYTES), 1_000), (key(4), b"", 10))
            for nonce in range(count)
        ]
        block, _ = head.build(transfers, proposer=key(1).public_key, now_ms=head.time_ms + 1)
        assert len(encode_record(block)) > params.max_block_bytes
        store.append(head.execute(block), sign_commit(genesis, block, BOTH))
    with Store(tmp_path / "chain.db", genesis) as store:
        assert store.load_head().hash == block.hash
        assert [stored.hash for stored, _ in store.blocks()] == [block.hash]


def test_another_networks_database_is_refused(tmp_path: Path) -> None:
    """A genesis that does not belong to the file is named, and nothing is written."""
    Store(tmp_path / "chain.db", GENESIS).close()
    with pytest.raises(StoreCorrupt, match="belongs to network"):
        Store(tmp_path / "chain.db", make_genesis((1,)))


def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    """A file from a newer moed is not touched."""
    Store(tmp_path / "chain.db", GENESIS).close()
    with sqlite3.connect(tmp_path / "chain.db") as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(StoreCorrupt, match="schema"):
        Store(tmp_path / "chain.db", GENESIS)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM state WHERE substr(key, 1, 1) = x'6e'",
        "UPDATE state SET value = x'ff' WHERE key = x'74'",
        "UPDATE blocks SET block = (SELECT block FROM blocks WHERE height = 2) WHERE height = 3",
        "UPDATE blocks SET block = x'00' WHERE height = 3",
    ],
    ids=["state rows gone", "state row changed", "last block replaced", "last block destroyed"],
)
def test_tampering_is_noticed(tmp_path: Path, damage: str) -> None:
    """What was changed behind the store's back is found when the head is loaded, or by re-execution."""
    with Store(tmp_path / "chain.db", GENESIS) as store:
        append_blocks(store, store.load_head(), 3)
    db = sqlite3.connect(tmp_path / "chain.db")
    db.execute(damage)
    db.commit()
    db.close()
    with Store(tmp_path / "chain.db", GENESIS) as store, pytest.raises(StoreCorrupt):
        check_all(store)


def check_all(store: Store) -> None:
    """Both checks, the quick one at a start and the thorough one."""
    store.load_head()
    verify_chain(store)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """Garbage in place of the file gives the typed error with the remedy."""
    (tmp_path / "chain.db").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(StoreCorrupt, match="damaged"):
        Store(tmp_path / "chain.db", GENESIS)


@pytest.mark.parametrize(
    "read",
    [
        Store.load_head,
        Store.load_base,
        Store.stored_state,
        Store.remembered_peers,
        Store.receipts,
        Store.last_step,
        lambda store: list(store.headers()),
        lambda store: store.recall("note"),
        lambda store: store.epoch_inputs(1),
        lambda store: store.steps(1, 1, 1, 1),
        lambda store: store.encoded_blocks(1, 1),
    ],
)
def test_what_cannot_be_read_is_named(read: Callable[[Store], object], tmp_path: Path) -> None:
    """No reader lets SQLite's own error out, which would be a traceback in a verb and no remedy."""
    with Store(tmp_path / "chain.db", GENESIS) as store:
        for (table,) in store._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            store._db.execute(f"DROP TABLE {table}")
        with pytest.raises(StoreFailed, match="no such table"):
            read(store)


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    """A folder that is not there is a failure of the disk, not of the chain."""
    with pytest.raises(StoreFailed):
        Store(tmp_path / "missing" / "chain.db", GENESIS)


def test_remembered_peers_come_back_newest_first(tmp_path: Path) -> None:
    """The list replaces the one before it."""
    with Store(tmp_path / "chain.db", GENESIS) as store:
        store.remember_peers([(b"\1" * 20, "old", 1, 1)])
        store.remember_peers([(b"\2" * 20, "b", 2, 10), (b"\3" * 20, "c", 3, 20)])
        assert [host for _, host, _, _ in store.remembered_peers()] == ["c", "b"]


def test_threads_that_write_at_the_same_time_wait_for_each_other(tmp_path: Path) -> None:
    """Blocks, remembered peers and readers of several threads share the file without failing or mixing."""
    rows = [(number.to_bytes(20, "big"), "host", 1, number) for number in range(200)]
    failures: list[BaseException] = []

    def repeat(store: Store, what: str) -> None:
        try:
            if what == "append":
                append_blocks(store, store.load_head(), 15)
            for _ in range(15):
                store.remember_peers(rows) if what == "remember" else store.encoded_blocks(1, 10)
        except BaseException as error:  # handed to the test's own thread
            failures.append(error)

    with Store(tmp_path / "chain.db", GENESIS) as store:
        threads = [
            threading.Thread(target=repeat, args=(store, what)) for what in ("append", "remember", "remember", "read")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert verify_chain(store).height == 15
        assert len(store.remembered_peers()) == 200


def test_a_full_disk_is_named_and_changes_nothing(tmp_path: Path) -> None:
    """The message says what to do, and what was stored before is still there, whole."""
    with Store(tmp_path / "chain.db", GENESIS) as store:
        head = store.load_head()
        append_blocks(store, head, 1)
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreFailed, match="is full"):
            append_blocks(store, head, 100)
        assert store.load_head().height == head.height
        store._db.execute("PRAGMA max_page_count = 100000")
        append_blocks(store, store.load_head(), 1)


@pytest.mark.parametrize("start", [2**64 - 1, -(2**64), 0])
def test_any_height_may_be_asked_for(start: int, tmp_path: Path) -> None:
    """A number that no database holds is answered with what there is, not with a crash."""
    with Store(tmp_path / "chain.db", GENESIS) as store:
        append_blocks(store, store.load_head(), 2)
        assert len(store.encoded_blocks(start, 10)) == (2 if start < 1 else 0)


def test_a_kill_loses_no_acknowledged_block(tmp_path: Path) -> None:
    """A process that is killed at a random moment has every block whose append had returned."""
    root = Path(__file__).resolve().parents[2]
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from moed.daemon.store import Store
        from moed.protocol.codec import encode_record
from support.chains import key, make_genesis, sign_commit
        genesis = make_genesis((60, 40), balances=(1_000_000, 0))
        with Store(Path(sys.argv[1]), genesis) as store:
            head = store.load_head()
            while True:
                block, _ = head.build([], proposer=key(1).public_key, now_ms=head.time_ms + 1)
                commit = sign_commit(genesis, block, [key(1), key(2)])
                executed = head.execute(block)
                store.append(executed, commit)
                head.advance(executed, commit)
                print(head.height, flush=True)
        """
    )
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root / 'tests'}"}
    acknowledged = 0
    for target in (3, 9, 20):
        writer = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "chain.db")],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert writer.stdout is not None
        for line in writer.stdout:
            acknowledged = int(line)
            if acknowledged >= target:
                break
        writer.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(line) for line in writer.stdout)])
        writer.stdout.close()
        writer.wait()
        with Store(tmp_path / "chain.db", GENESIS) as store:
            assert acknowledged <= store.load_head().height <= acknowledged + 1
            assert verify_chain(store).height == store.load_head().height


def test_registration_survives_the_file(tmp_path: Path) -> None:
    """A neuron written in one process is read in the next with every field."""
    with Store(tmp_path / "chain.db", GENESIS) as store:
        head = store.load_head()
        block, _ = head.build([signed(head, key(4), Register())], proposer=key(1).public_key, now_ms=head.time_ms + 1)
        commit = sign_commit(GENESIS, block, BOTH)
        executed = head.execute(block)
        store.append(executed, commit)
        head.advance(executed, commit)
    with Store(tmp_path / "chain.db", GENESIS) as store:
        assert store.load_head().state.encoded() == head.state.encoded()


def test_what_an_epoch_was_computed_from_is_kept(tmp_path: Path) -> None:
    """The inputs come back and give the incentives that the state holds; those of long ago are let go."""
    params = ChainParams(tempo=5, commit_reveal=False, min_stake=0)
    genesis = make_genesis((60, 40), balances=(0, 0), params=params)
    with Store(tmp_path / "chain.db", genesis) as store:
        head = store.load_head()
        rows = SetWeights(weights=((2, 3), (3, 1)))
        bodies: dict[int, list[tuple[int, Body, int]]] = {
            1: [(3, Register(), 0), (4, Register(), 0)],
            2: [(1, rows, 0), (2, rows, 0)],
        }
        while head.height < 10:
            sent = [signed(head, key(who), body, nonce) for who, body, nonce in bodies.get(head.height + 1, [])]
            block, refused = head.build(sent, proposer=key(1).public_key, now_ms=head.time_ms + 1)
            assert refused == []
            executed, commit = head.execute(block), sign_commit(genesis, block, BOTH)
            store.append(executed, commit)
            head.advance(executed, commit)
        kept = store.epoch_inputs(2)
        assert kept is not None
        assert kept.block == 10
        assert epoch(kept).incentive_u16.tolist() == [neuron.incentive_u16 for neuron in read_neurons(head.state)]
        assert store.epoch_inputs(1) is not None
        assert store.epoch_inputs(3) is None
        assert store.epoch_inputs(1 << 70) is None
        far = dataclasses.replace(executed, closed=ClosedEpoch(2 + KEPT_EPOCHS, kept))
        with pytest.raises(StoreFailed):  # its block is there already, so nothing of it is written
            store.append(far, commit)
        block, _ = head.build([], proposer=key(1).public_key, now_ms=head.time_ms + 1)
        far = dataclasses.replace(head.execute(block), closed=ClosedEpoch(2 + KEPT_EPOCHS, kept))
        store.append(far, sign_commit(genesis, block, BOTH))
        assert store.epoch_inputs(2) is None
        assert store.epoch_inputs(2 + KEPT_EPOCHS) is not None


def test_notes_outlive_the_process(tmp_path: Path) -> None:
    """A note is replaced by the next one of its name, and read by whoever opens the file next."""
    with Store(tmp_path / "chain.db", GENESIS) as store:
        assert store.recall("plan") is None
        store.remember("plan", b"first")
        store.remember("plan", b"second")
    with Store(tmp_path / "chain.db", GENESIS) as store:
        assert store.recall("plan") == b"second"


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_every_older_schema_is_brought_up_to_date(version: int, tmp_path: Path) -> None:
    """A file as that version made it keeps its blocks, state and notes, and gains what came after."""
    new, old = tmp_path / "new.db", tmp_path / "chain.db"
    with Store(new, GENESIS) as store:
        append_blocks(store, store.load_head(), 3)
        head = store.load_head()
    with closing(sqlite3.connect(old)) as db:
        for step in SCHEMA_STEPS[:version]:
            db.executescript(files("moed.daemon").joinpath(step).read_text())
        db.execute("ATTACH ? AS new", (str(new),))
        for table in ("blocks", "state", "meta"):
            db.execute(f"INSERT INTO {table} SELECT * FROM new.{table}")
        db.execute("INSERT INTO peers VALUES (?, 'host', 1, 5)", (b"\1" * 20,))
        if version >= 2:
            db.execute("INSERT INTO notes VALUES ('plan', ?)", (b"kept",))
        db.execute(f"PRAGMA user_version = {version}")
        db.commit()
    with Store(old, GENESIS) as store:
        assert store.load_head().state_root == head.state_root
        assert verify_chain(store).height == 3
        assert [host for _, host, _, _ in store.remembered_peers()] == ["host"]
        assert store.recall("plan") == (b"kept" if version >= 2 else None)
        assert (store.epoch_inputs(1), store.receipts(), store.first_height) == (None, [], 1)
        append_blocks(store, head, 1)
    with closing(sqlite3.connect(old)) as db, closing(sqlite3.connect(new)) as fresh:
        shape = "SELECT name, sql FROM sqlite_schema ORDER BY name"
        assert db.execute(shape).fetchall() == fresh.execute(shape).fetchall()
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_an_end_that_was_cut_is_followed_by_a_look_at_every_page(tmp_path: Path) -> None:
    """A page that went bad in the middle of old blocks stops the start; an orderly end needs no such look."""
    path = tmp_path / "chain.db"
    with Store(path, GENESIS) as store:
        append_blocks(store, store.load_head(), 60)
    data = bytearray(path.read_bytes())
    with closing(sqlite3.connect(path)) as db:
        page_bytes = db.execute("PRAGMA page_size").fetchone()[0]
        root = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'blocks'").fetchone()[0]
    at = (root - 1) * page_bytes
    data[at : at + 8] = b"\xff" * 8
    path.write_bytes(data)
    path.with_name("chain.db-wal").write_bytes(b"\0" * 32)
    with pytest.raises(StoreCorrupt):
        Store(path, GENESIS)


def test_a_block_that_does_not_follow_is_met_at_the_start(tmp_path: Path) -> None:
    """A block of another chain in the place of one of the last is found before anything is built on it."""
    path = tmp_path / "chain.db"
    with Store(path, GENESIS) as store:
        append_blocks(store, store.load_head(), 5)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE blocks SET block = (SELECT block FROM blocks WHERE height = 2) WHERE height = 3")
        db.commit()
    with Store(path, GENESIS) as store, pytest.raises(StoreCorrupt, match="does not follow"):
        store.load_head()
