"""A whole state in pieces that anybody can give: cut alike by everybody, known by their hashes, proven by one root.

The pieces of one state are the same bytes on every node, so they may come from several at once. A manifest names them;
it is worth what the root is worth that comes out of all of them together, and nothing before that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

from msgspec import Meta

from moed.protocol.codec import Record, decode_record, encode_record, require_length
from moed.protocol.domains import Domain, tagged_hash
from moed.protocol.errors import Malformed

from .blocks import HASH_BYTES, Commit, Header
from .errors import InvalidProof
from .genesis import Genesis
from .state import State, StateRecord, decode_state_record
from .transition import Head

MAX_PIECE_BYTES = 1 << 20
FULL_PIECE_BYTES = 1 << 18
"""A piece ends before the record that would make it longer; one record alone, a neuron with full rows, may be. Encoding
one takes about 8 ms in which nothing else of the process runs."""
MAX_PIECES = 4_096
"""A GiB of records: about ten million accounts, which is more than fits into the memory of most machines."""


class Manifest(Record, frozen=True, kw_only=True):
    """The state after one block, by the hashes of its pieces in their order."""

    height: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    block_hash: bytes
    pieces: Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=MAX_PIECES)]

    def __post_init__(self) -> None:
        require_length("block_hash", self.block_hash, HASH_BYTES)
        for one in self.pieces:
            require_length("hash of a piece", one, HASH_BYTES)


class Piece(Record, frozen=True, kw_only=True):
    """Records of a state with their keys, which rise."""

    rows: Annotated[tuple[tuple[bytes, bytes], ...], Meta(min_length=1)]


def piece_hash(encoded: bytes) -> bytes:
    """What a manifest calls a piece."""
    return tagged_hash(Domain.SNAPSHOT_PIECE, encoded)


def cut_pieces(rows: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """The encoded pieces of a state whose keys and encoded records come in the order of the keys."""
    taken: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in rows:
        if taken and size + len(key) + len(value) > FULL_PIECE_BYTES:
            yield encode_record(Piece(rows=tuple(taken)))
            taken, size = [], 0
        taken.append((key, value))
        size += len(key) + len(value)
    if taken:
        yield encode_record(Piece(rows=tuple(taken)))


def read_pieces(pieces: Iterable[bytes], *, max_bytes: int = MAX_PIECE_BYTES) -> dict[bytes, StateRecord]:
    """The records in encoded pieces. Raises `Malformed` or `TooLarge` for what is none, or not in order."""
    records: dict[bytes, StateRecord] = {}
    last = b""
    for encoded in pieces:
        for key, value in decode_record(encoded, Piece, max_bytes=max_bytes).rows:
            if key <= last:
                raise Malformed("the keys of a state must rise")
            last = key
            records[key] = decode_state_record(key, value)
    return records


def head_from(genesis: Genesis, header: Header, commit: Commit, pieces: Iterable[bytes]) -> Head:
    """The head at a block that the caller believes in, from pieces that it does not.

    Raises `InvalidProof` unless they give the root in the header; `Malformed` or `TooLarge` for what are no pieces.
    """
    head = Head(genesis, State(read_pieces(pieces)), header, commit)
    if head.state_root != header.state_root:
        raise InvalidProof("state root of the pieces", header.state_root.hex(), head.state_root.hex())
    return head
