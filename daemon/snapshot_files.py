"""A state as a file: enough to begin at a late block, believed only with the signatures of trusted validators.

It holds a final block's header, its commit and every record of the state after it, in the pieces of
`moed.consensus.snapshots`. Who reads it checks that the records give the root in the header, and that over two thirds
of a validator set that the reader trusts signed that header. A node gives the pieces of its own files to others.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from moed.consensus.blocks import Commit, Header, check_commit
from moed.consensus.errors import RuleBroken
from moed.consensus.proofs import check_trusted
from moed.consensus.snapshots import Manifest, cut_pieces, piece_hash, read_pieces
from moed.consensus.state import State, ValidatorSet, read_previous_validators
from moed.consensus.transition import Head
from moed.protocol.codec import Record, decode_record, encode_record
from moed.protocol.errors import RemoteProtocolError

from .errors import ChainFileError, StoreFailed
from .framed_files import MAX_FRAME_BYTES, STATE_MAGIC, read_frames, writing
from .store import Store

_LENGTH_BYTES = 4
_BAD = "get it from somebody else"


class _Top(Record, frozen=True, kw_only=True):
    header: Header
    commit: Commit


class PinnedState:
    """The state of a database as it is now, whatever is written from now on. `close` it soon: the log grows meanwhile.

    It reads over a connection of its own, so that whoever writes blocks does not wait for it.
    """

    def __init__(self, path: Path) -> None:
        """Raises `StoreFailed`."""
        try:
            self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
            self._db.execute("BEGIN")
            self._db.execute("SELECT count(*) FROM meta").fetchone()  # the first read is what pins
        except sqlite3.DatabaseError as error:
            raise StoreFailed(
                f"cannot read {path}: {error}", "check the folder's owner and mode, and the disk"
            ) from error

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and encoded records, in the order of the keys. Raises `StoreFailed`."""
        try:
            for key, value in self._db.execute("SELECT key, value FROM state ORDER BY key"):
                yield bytes(key), bytes(value)
        except sqlite3.DatabaseError as error:
            raise StoreFailed(f"cannot read the state: {error}", "check the disk") from error

    def close(self) -> None:
        self._db.close()


def write_state(
    path: Path, network_id: bytes, header: Header, commit: Commit, rows: Iterable[tuple[bytes, bytes]]
) -> None:
    """Write a state and the block that it is of to ``path``, which appears when all of it is there.

    Raises `StoreFailed`.
    """
    with writing(path, STATE_MAGIC, network_id) as writer:
        writer.write(encode_record(_Top(header=header, commit=commit)))
        for piece in cut_pieces(rows):
            writer.write(piece)


def write_snapshot(store: Store, path: Path) -> int:
    """Write the state after the last block to ``path``; returns its height. Works beside a running daemon.

    Raises `ChainFileError` before the first block, `StoreCorrupt`, or `StoreFailed`.
    """
    with store.snapshot():
        head = store.load_head()
    if head.header is None:
        raise ChainFileError("there is no block yet that a snapshot could rest on", "wait for the first block")
    write_state(path, head.network_id, head.header, head.commit, head.state.encoded().items())
    return head.height


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """A file whose pieces are given to others: what it holds, and where each piece lies in it."""

    path: Path
    manifest: Manifest
    places: tuple[tuple[int, int], ...]

    @classmethod
    def scan(cls, path: Path, network_id: bytes) -> SnapshotFile:
        """Read a whole file once. Raises `ChainFileError` for one that is none, is cut or changed."""
        frames = read_frames(path, STATE_MAGIC, network_id)
        try:
            first = next(frames, b"")
            top = decode_record(first, _Top, max_bytes=MAX_FRAME_BYTES)
            at = len(STATE_MAGIC) + len(network_id) + _LENGTH_BYTES + len(first)
            hashes, places = [], []
            for frame in frames:
                hashes.append(piece_hash(frame))
                places.append((at + _LENGTH_BYTES, len(frame)))
                at += _LENGTH_BYTES + len(frame)
            manifest = Manifest(height=top.header.height, block_hash=top.header.hash, pieces=tuple(hashes))
        except RemoteProtocolError as error:
            raise ChainFileError(f"{path} holds a block that does not parse: {error}", _BAD) from error
        return cls(path, manifest, tuple(places))

    def piece(self, index: int) -> bytes:
        """The bytes of one piece. Raises `StoreFailed` if the file cannot be read any more."""
        offset, size = self.places[index]
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise StoreFailed(f"cannot read {self.path}: {error.strerror}", "check the folder and the disk") from error


def begin_at_snapshot(store: Store, path: Path, trusted: ValidatorSet) -> Head:
    """Begin an empty chain at the state in a file; returns the head to go on from.

    Raises `ChainFileError` for a file that is none, is changed, or is not signed by ``trusted``, and for a chain that
    has blocks already.
    """
    if store.load_head().height:
        raise ChainFileError("the chain here has blocks already", "import a snapshot into a new home")
    head = _read(store, path, trusted)
    store.rebase(head, keeps_blocks=False)
    return head


def _read(store: Store, path: Path, trusted: ValidatorSet) -> Head:
    frames = read_frames(path, STATE_MAGIC, store.genesis.network_id)
    try:
        first = next(frames, b"")
        top = decode_record(first, _Top, max_bytes=MAX_FRAME_BYTES)
        check_trusted(top.header, top.commit, trusted, store.genesis.network_id)  # before the long part
        records = read_pieces(frames, max_bytes=MAX_FRAME_BYTES)
    except (RuleBroken, RemoteProtocolError) as error:
        raise ChainFileError(f"{path} cannot be believed: {error}", _BAD) from error
    head = Head(store.genesis, State(records), top.header, top.commit)
    if head.state_root != top.header.state_root:
        raise ChainFileError(f"the state in {path} is not the one of its block {top.header.height}", _BAD)
    try:
        # the next block carries this commit, and what nobody trusted signed beside the rest would make that block void
        check_commit(top.commit, top.header, read_previous_validators(head.state), store.genesis.network_id)
    except RuleBroken as error:
        raise ChainFileError(f"{path} cannot be believed: {error}", _BAD) from error
    return head
