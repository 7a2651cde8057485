"""A state as a file: enough to begin at a late block, believed only with the signatures of trusted validators.

It holds a final block's header, its commit and every record of the state after it. Who reads it checks that the records
give the root in the header, and that over two thirds of a validator set that the reader trusts signed that header.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from moed.consensus.blocks import Commit, Header, check_commit
from moed.consensus.errors import RuleBroken
from moed.consensus.proofs import check_trusted
from moed.consensus.state import State, ValidatorSet, decode_state_record, read_previous_validators
from moed.consensus.transition import Head
from moed.protocol.codec import Record, decode_record, encode_record
from moed.protocol.errors import RemoteProtocolError

from .errors import ChainFileError
from .framed_files import MAX_FRAME_BYTES, read_frames, writing
from .store import Store

MAGIC = b"moed state 1\n"
RECORDS_EACH = 256
"""Records in a frame: neurons with full rows are a few ten KiB each, so a frame stays under its limit."""
_BAD = "get it from somebody else"


class _Top(Record, frozen=True, kw_only=True):
    header: Header
    commit: Commit


class _Part(Record, frozen=True, kw_only=True):
    rows: Annotated[tuple[tuple[bytes, bytes], ...], Meta(max_length=RECORDS_EACH)]


def write_snapshot(store: Store, path: Path) -> int:
    """Write the state after the last block to ``path``; returns its height. Works beside a running daemon.

    Raises `ChainFileError` before the first block, `StoreCorrupt`, or `StoreFailed`.
    """
    with store.snapshot():
        head = store.load_head()
    if head.header is None:
        raise ChainFileError("there is no block yet that a snapshot could rest on", "wait for the first block")
    with writing(path, MAGIC, head.network_id) as writer:
        writer.write(encode_record(_Top(header=head.header, commit=head.commit)))
        rows = iter(head.state.encoded().items())
        while part := tuple(islice(rows, RECORDS_EACH)):
            writer.write(encode_record(_Part(rows=part)))
    return head.height


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
    frames = read_frames(path, MAGIC, store.genesis.network_id)
    try:
        first = next(frames, b"")
        top = decode_record(first, _Top, max_bytes=MAX_FRAME_BYTES)
        check_trusted(top.header, top.commit, trusted, store.genesis.network_id)  # before the long part
        parts = (decode_record(frame, _Part, max_bytes=MAX_FRAME_BYTES).rows for frame in frames)
        records = {key: decode_state_record(key, value) for rows in parts for key, value in rows}
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
