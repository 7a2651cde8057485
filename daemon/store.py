"""The chain database: blocks, commits and state, nothing half-written; and the check of it all by execution.

What a block changes goes to the disk in one transaction with the block. Bodies of old blocks can be let go: then their
headers stay, and the state from which the kept blocks go on. Everything here blocks; callers run it in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

from moed.consensus.blocks import GENESIS_COMMIT, Block, Commit, Header, decode_block, decode_commit
from moed.consensus.errors import RuleBroken
from moed.consensus.state import VALIDATORS_KEY, State, decode_state_record
from moed.consensus.transition import Executed, Head
from moed.protocol.codec import decode_record, encode_record
from moed.protocol.errors import RemoteProtocolError

from .books import Books
from .database import MAX_SQL_INTEGER, REMEDY
from .errors import StoreCorrupt

CHECKED_BLOCKS = 64
"""Blocks at the end of the chain whose links are followed at each start."""


class Store(Books):
    """The chain in one open file: a block is there whole, with the state after it, before `append` returns."""

    def load_head(self) -> Head:
        """The head that the database ends with, its state checked against the root in its last block.

        Raises `StoreCorrupt` if they differ.
        """
        with self._alone("read"):
            rows = self._db.execute("SELECT key, value FROM state").fetchall()
            last = self._db.execute(
                'SELECT block, "commit" FROM blocks ORDER BY height DESC LIMIT ?', (CHECKED_BLOCKS,)
            ).fetchall()
        base = self.base_header()
        if not last:
            return self._head_at(rows, base)
        try:
            blocks = [decode_block(block) for block, _ in last]
            commit = decode_commit(last[0][1])
        except RemoteProtocolError as error:
            raise StoreCorrupt(f"{self.path} holds a block that does not parse: {error}", REMEDY) from error
        self._follow(blocks, base[0] if base is not None else None)
        return self._head_at(rows, (blocks[0].header, commit))

    def _follow(self, blocks: Sequence[Block], base: Header | None) -> None:
        """Check the links of the last blocks, newest first. Raises `StoreCorrupt`."""
        anchor = (base.height, base.hash) if base is not None else (0, self.genesis.network_id)
        known = {block.height: block.hash for block in blocks} | dict([anchor])
        for block in blocks:
            # what the oldest of them follows is older than what is looked at here
            parent = known.get(block.height - 1, block.header.parent if block is blocks[-1] else None)
            if block.header.parent != parent or not block.is_whole:
                raise StoreCorrupt(f"block {block.height} in {self.path} does not follow the one before", REMEDY)

    def _head_at(self, rows: Sequence[tuple[bytes, bytes]], last: tuple[Header, Commit] | None) -> Head:
        """The head with these records behind this block. Raises `StoreCorrupt` if they are not its state."""
        try:
            state = State({bytes(key): decode_state_record(bytes(key), bytes(value)) for key, value in rows})
        except RemoteProtocolError as error:
            raise StoreCorrupt(f"{self.path} holds a record that does not parse: {error}", REMEDY) from error
        header, commit = last if last is not None else (None, GENESIS_COMMIT)
        head = Head(self.genesis, state, header, commit)
        if header is not None and head.state_root != header.state_root:
            raise StoreCorrupt(f"the state in {self.path} is not the one of its block {header.height}", REMEDY)
        return head

    def base_header(self) -> tuple[Header, Commit] | None:
        """The last block of which only the header is kept, with its commit; None if every block is here whole."""
        row = self._one('SELECT header, "commit" FROM headers ORDER BY height DESC LIMIT 1')
        if row is None:
            return None
        try:
            return decode_record(bytes(row[0]), Header), decode_commit(bytes(row[1]))
        except RemoteProtocolError as error:
            raise StoreCorrupt(f"{self.path} holds a header that does not parse: {error}", REMEDY) from error

    def load_base(self) -> Head:
        """The head from which the kept blocks go on: the genesis, or the last block that was pruned."""
        last = self.base_header()
        if last is None:
            return Head.at_genesis(self.genesis)
        with self._alone("read"):
            rows = self._db.execute("SELECT key, value FROM base").fetchall()
        return self._head_at(rows, last)

    @property
    def first_height(self) -> int:
        """The lowest block that is kept whole, or would be."""
        row = self._one("SELECT max(height) FROM headers")
        return 1 + int((row and row[0]) or 0)

    def rebase(self, head: Head, *, keeps_blocks: bool = True) -> None:
        """Let go of the bodies of all blocks up to ``head``, or begin there: all or nothing.

        Their headers stay, and ``head``'s state becomes what the later blocks are executed on. With ``keeps_blocks``
        off nothing later is here: the state of a snapshot, which the caller has checked, becomes the present one.
        Raises `StoreFailed` or `StoreCorrupt`.
        """
        if head.header is None:
            return
        encoded = head.state.encoded()
        row = (head.height, head.hash, encode_record(head.header), encode_record(head.commit))
        with self._writing():
            self._move_headers(head.height)
            self._db.execute("INSERT OR REPLACE INTO headers VALUES (?, ?, ?, ?)", row)
            self._db.execute("DELETE FROM base")
            self._db.executemany("INSERT INTO base VALUES (?, ?)", encoded.items())
            if not keeps_blocks:
                self._db.execute("DELETE FROM blocks")
                self._db.execute("DELETE FROM state")
                self._db.executemany("INSERT INTO state VALUES (?, ?)", encoded.items())

    def _move_headers(self, height: int) -> None:
        rows = self._db.execute('SELECT height, hash, block, "commit" FROM blocks WHERE height <= ?', (height,))
        headers = ((at, digest, encode_record(decode_block(block).header), one) for at, digest, block, one in rows)
        self._db.executemany("INSERT OR REPLACE INTO headers VALUES (?, ?, ?, ?)", headers)
        self._db.execute("DELETE FROM blocks WHERE height <= ?", (height,))

    def headers(self) -> Iterator[tuple[Header, Commit]]:
        """The headers of pruned blocks with their commits, lowest first. Raises `StoreCorrupt`."""
        height = 0
        while True:
            query = 'SELECT height, header, "commit" FROM headers WHERE height > ? ORDER BY height LIMIT 1000'
            with self._alone("read"):
                rows = self._db.execute(query, (height,)).fetchall()
            if not rows:
                return
            for at, header, commit in rows:
                try:
                    yield decode_record(bytes(header), Header), decode_commit(bytes(commit))
                except RemoteProtocolError as error:
                    raise StoreCorrupt(f"header {at} in {self.path} does not parse: {error}", REMEDY) from error
            height = rows[-1][0]

    def compact(self) -> None:
        """Give the space of what was let go back to the disk; takes as much again while it runs."""
        with self._alone("compact"):
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def append(self, executed: Executed, commit: Commit) -> None:
        """Put a final block, its commit and the changed state on disk, all or nothing, before returning.

        Raises `StoreFailed` or `StoreCorrupt`.
        """
        block = executed.block
        with self._writing():
            self._db.execute(
                "INSERT INTO blocks VALUES (?, ?, ?, ?)",
                (block.height, block.hash, encode_record(block), encode_record(commit)),
            )
            self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", executed.encoded.items())
            if executed.closed is not None:
                self._keep_epoch(executed.closed, block.height)

    def keep_step(self, head: Head) -> None:
        """Where ``head`` ends an epoch, keep the proof of its validators for those who follow them without the blocks.

        Raises `StoreFailed`.
        """
        if head.height and head.height % head.params.tempo == 0:
            self.keep_steps([(head.height, encode_record(head.prove(VALIDATORS_KEY)))])

    def encoded_blocks(self, start: int, limit: int, max_bytes: int | None = None) -> list[tuple[bytes, bytes]]:
        """Up to ``limit`` blocks from height ``start`` on, each with its commit, as stored.

        With ``max_bytes`` no more than fit in it are read, but always one. None if the one at ``start`` was pruned.
        """
        start = max(1, min(start, MAX_SQL_INTEGER))
        taken: list[tuple[bytes, bytes]] = []
        size = 0
        query = 'SELECT height, block, "commit" FROM blocks WHERE height >= ? ORDER BY height LIMIT ?'
        with self._alone("read"), closing(self._db.execute(query, (start, limit))) as rows:
            for height, block, commit in rows:
                if height != start + len(taken):
                    break
                size += len(block) + len(commit)
                if taken and max_bytes is not None and size > max_bytes:
                    break
                taken.append((bytes(block), bytes(commit)))
        return taken

    def blocks(self, start: int | None = None, batch: int = 100) -> Iterator[tuple[Block, Commit]]:
        """Every block from ``start`` on, or every one kept, with its commit, read in batches.

        Raises `StoreCorrupt` for one that is not.
        """
        start = self.first_height if start is None else start
        while rows := self.encoded_blocks(start, batch):
            for encoded, encoded_commit in rows:
                try:
                    yield decode_block(encoded), decode_commit(encoded_commit)
                except RemoteProtocolError as error:
                    raise StoreCorrupt(f"block {start} in {self.path} does not parse: {error}", REMEDY) from error
                start += 1

    def stored_state(self) -> Mapping[bytes, bytes]:
        """The state's records as stored, for a check against a fresh execution."""
        with self._alone("read"):
            rows = self._db.execute("SELECT key, value FROM state").fetchall()
        return {bytes(key): bytes(value) for key, value in rows}


def check_headers(store: Store) -> None:
    """Follow the headers of pruned blocks from the genesis. Raises `StoreCorrupt` where one does not fit.

    A chain that began at a snapshot has no headers before it; the first one there is the beginning.
    """
    before: Header | None = None
    for header, commit in store.headers():
        parent = before.hash if before is not None else store.genesis.network_id
        begins_here = before is None and header.height > 1
        if not begins_here and (header.parent != parent or header.height != (before.height if before else 0) + 1):
            raise StoreCorrupt(f"header {header.height} in {store.path} does not follow the one before", REMEDY)
        if (commit.height, commit.block_hash) != (header.height, header.hash):
            raise StoreCorrupt(f"the commit of header {header.height} in {store.path} is of another block", REMEDY)
        before = header


def verify_chain(store: Store) -> Head:
    """Re-execute every block that is kept and compare with what is stored; returns the head that came out.

    Of pruned blocks the headers are followed, link by link. Works beside a running daemon: all is read as it stood at
    one moment. Raises `StoreCorrupt` naming the first height at which something differs.
    """
    with store.snapshot():
        check_headers(store)
        head = store.load_base()
        for block, commit in store.blocks():
            try:
                executed = head.execute(block)
                head.check_final(block, commit)
            except RuleBroken as error:
                height = head.height + 1
                raise StoreCorrupt(f"block {height} in {store.path} breaks a rule: {error}", REMEDY) from error
            head.advance(executed, commit)
        if head.state.encoded() != store.stored_state():
            raise StoreCorrupt(f"the state in {store.path} is not what its {head.height} blocks give", REMEDY)
    return head
