"""Chains as files, and chains made shorter: export, import, prune; everything is executed and checked on its way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moed.consensus.blocks import Block, Commit
from moed.consensus.errors import RuleBroken
from moed.consensus.transition import Head
from moed.protocol.codec import Record, decode_record, encode_record
from moed.protocol.errors import RemoteProtocolError

from .database import REMEDY
from .errors import ChainFileError, StoreCorrupt
from .framed_files import BLOCKS_MAGIC, MAX_FRAME_BYTES, read_frames, writing
from .store import Store, check_headers


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
    count, height = 0, 0
    with writing(path, BLOCKS_MAGIC, store.genesis.network_id) as writer, store.snapshot():
        for block, commit in store.blocks():
            writer.write(encode_record(_Row(block=block, commit=commit)))
            count, height = count + 1, block.height
    return Moved(count, height)


def import_chain(store: Store, path: Path) -> Moved:
    """Execute the blocks of a file that come after the store's last one, and keep them, each whole or not at all.

    What is here already is passed over, so an import that was cut goes on where it stopped. Raises `ChainFileError`
    for a file that is none, is cut or changed, or does not follow; what came before the fault is kept.
    """
    head, taken = store.load_head(), 0
    for row in _read_rows(path, store.genesis.network_id):
        if row.block.height > head.height:
            _append(store, head, row, path)
            taken += 1
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
    store.keep_step(head)


def _advance(head: Head, block: Block, commit: Commit, path: Path) -> None:
    try:
        executed = head.execute(block)
        head.check_final(block, commit)
    except RuleBroken as error:
        raise StoreCorrupt(f"block {block.height} in {path} breaks a rule: {error}", REMEDY) from error
    head.advance(executed, commit)


def _read_rows(path: Path, network_id: bytes) -> Iterator[_Row]:
    for frame in read_frames(path, BLOCKS_MAGIC, network_id):
        try:
            yield decode_record(frame, _Row, max_bytes=MAX_FRAME_BYTES)
        except RemoteProtocolError as error:
            raise ChainFileError(
                f"{path} holds a block that does not parse: {error}", "get the file from somebody else"
            ) from error
