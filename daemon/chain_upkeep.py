"""Chains as files, and chains made shorter: export, import, prune; everything is executed and checked on its way.

An exported file is the line `MAGIC`, the network's id, blocks with their commits in frames of their length (4 bytes,
big-endian), an empty frame, and a hash of all of it: a cut or changed file is known as one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from moed.consensus.blocks import MAX_BLOCK_RECORD_BYTES, Block, Commit
from moed.consensus.errors import RuleBroken
from moed.consensus.transition import Head
from moed.protocol.codec import Record, decode_record, encode_record
from moed.protocol.errors import RemoteProtocolError

from .database import REMEDY
from .errors import ChainFileError, StoreCorrupt, StoreFailed
from .store import Store, check_headers

MAGIC = b"moed chain 1\n"
_LENGTH_BYTES = 4
_HASH_BYTES = 32
_MAX_FRAME_BYTES = 2 * MAX_BLOCK_RECORD_BYTES


class _Row(Record, frozen=True, kw_only=True):
    block: Block
    commit: Commit


@dataclass(frozen=True, slots=True)
class Moved:
    """How far an export or import went: blocks in the file, and the height at its end."""

    blocks: int
    height: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """What pruning let go, and what is left: the lowest whole block, and the bytes of the file before and after."""

    blocks: int
    first_height: int
    bytes_before: int
    bytes_after: int


def export_chain(store: Store, path: Path) -> Moved:
    """Write every whole block to ``path``, which appears when all of it is on the disk.

    Works beside a running daemon. Raises `StoreCorrupt`, or `StoreFailed` if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            writer = _HashedWriter(file)
            writer.write(MAGIC + store.genesis.network_id)
            count, height = 0, 0
            with store.snapshot():
                for block, commit in store.blocks():
                    frame = encode_record(_Row(block=block, commit=commit))
                    writer.write(len(frame).to_bytes(_LENGTH_BYTES, "big") + frame)
                    count, height = count + 1, block.height
            writer.write(b"\0" * _LENGTH_BYTES)
            file.write(writer.digest())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreFailed(f"cannot write {path}: {error.strerror}", "check the folder and the free space") from error
    return Moved(count, height)


def import_chain(store: Store, path: Path) -> Moved:
    """Execute the blocks of a file that come after the store's last one, and keep them, each whole or not at all.

    What is here already is passed over, so an import that was cut goes on where it stopped. Raises `ChainFileError`
    for a file that is none, is cut or changed, or does not follow; what came before the fault is kept.
    """
    head = store.load_head()
    try:
        with path.open("rb") as file:
            taken = 0
            for row in _read_rows(file, path, store.genesis.network_id):
                if row.block.height <= head.height:
                    continue
                _append(store, head, row, path)
                taken += 1
    except OSError as error:
        raise ChainFileError(f"cannot read {path}: {error.strerror}", "name a file of `moed chain export`") from error
    return Moved(taken, head.height)


def prune_chain(store: Store, keep: int, *, compact: bool = True) -> Pruned:
    """Let go of the bodies of all but the last ``keep`` blocks; headers and commits stay.

    What goes is executed once more, so that the state that takes its place is right. The daemon must not run.
    Raises `StoreCorrupt` or `StoreFailed`.
    """
    before = store.size_bytes
    check_headers(store)
    head, first = store.load_base(), store.first_height
    target = store.load_head().height - keep
    for block, commit in store.blocks():
        if block.height > target:
            break
        _advance(head, block, commit, store.path)
    gone = max(0, head.height - first + 1)
    if gone:
        store.rebase(head)
        if compact:
            store.compact()
    return Pruned(gone, store.first_height, before, store.size_bytes)


def _append(store: Store, head: Head, row: _Row, path: Path) -> None:
    if row.block.height > head.height + 1:
        raise ChainFileError(
            f"{path} goes on at block {row.block.height}, and the chain here ends at {head.height}",
            "import a file that holds the blocks between them",
        )
    try:
        executed = head.execute(row.block)
        head.check_final(row.block, row.commit)
    except RuleBroken as error:
        raise ChainFileError(
            f"block {row.block.height} in {path} breaks a rule: {error}", "get the file from somebody else"
        ) from error
    store.append(executed, row.commit)
    head.advance(executed, row.commit)


def _advance(head: Head, block: Block, commit: Commit, path: Path) -> None:
    try:
        executed = head.execute(block)
        head.check_final(block, commit)
    except RuleBroken as error:
        raise StoreCorrupt(f"block {block.height} in {path} breaks a rule: {error}", REMEDY) from error
    head.advance(executed, commit)


def _read_rows(file: BinaryIO, path: Path, network_id: bytes) -> Iterator[_Row]:
    """The blocks of a file, one by one; its hash is checked when all were read."""
    reader = _HashedReader(file, path)
    if reader.read(len(MAGIC)) != MAGIC:
        raise ChainFileError(f"{path} is no chain file", "name a file of `moed chain export`")
    found = reader.read(len(network_id))
    if found != network_id:
        raise ChainFileError(
            f"{path} is of network {found.hex()[:12]}, and the genesis here of {network_id.hex()[:12]}",
            "import it into a home of that network",
        )
    while size := int.from_bytes(reader.read(_LENGTH_BYTES), "big"):
        if size > _MAX_FRAME_BYTES:
            raise ChainFileError(f"{path} holds a block of {size} bytes", "get the file from somebody else")
        try:
            yield decode_record(reader.read(size), _Row, max_bytes=_MAX_FRAME_BYTES)
        except RemoteProtocolError as error:
            raise ChainFileError(
                f"{path} holds a block that does not parse: {error}", "get the file from somebody else"
            ) from error
    digest = reader.digest()
    if file.read(_HASH_BYTES + 1) != digest:
        raise ChainFileError(f"{path} is not what was exported: its hash differs", "copy the file again")


class _HashedWriter:
    """Writes to a file and hashes what it wrote."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = blake2b(digest_size=_HASH_BYTES)

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(data)

    def digest(self) -> bytes:
        return self._hash.digest()


class _HashedReader:
    """Reads exact lengths from a file and hashes what it read. Raises `ChainFileError` where the file ends early."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._hash = blake2b(digest_size=_HASH_BYTES)

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise ChainFileError(f"{self._path} ends in the middle", "copy the file again; what it held is imported")
        self._hash.update(data)
        return data

    def digest(self) -> bytes:
        return self._hash.digest()
