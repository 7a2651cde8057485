"""A state comes out of its pieces as it went in, and out of no others."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moed.consensus.errors import RuleBroken
from moed.consensus.snapshots import (
    FULL_PIECE_BYTES,
    MAX_PIECE_BYTES,
    MAX_PIECES,
    Manifest,
    cut_pieces,
    head_from,
    piece_hash,
    read_pieces,
)
from moed.consensus.state import Account, account_key, change, decode_state_record
from moed.consensus.transition import Head
from moed.protocol.codec import decode_record, encode, encode_record
from moed.protocol.errors import RemoteProtocolError
from support.chains import grow, key, make_genesis

SEED = 5
GENESIS = make_genesis((60, 40), balances=(10,) * 20)


def rows_of(count: int) -> list[tuple[bytes, bytes]]:
    generator = random.Random(SEED)
    keys = sorted(account_key(generator.randbytes(32)) for _ in range(count))
    return [(one, encode_record(Account(balance=generator.randrange(2**40)))) for one in keys]


def test_a_state_is_cut_into_pieces_that_fit() -> None:
    """Each is nearly full and none is too long; together they are the state."""
    rows = rows_of(20_000)
    pieces = list(cut_pieces(rows))
    assert len(pieces) > 2
    assert all(FULL_PIECE_BYTES // 2 < len(piece) <= MAX_PIECE_BYTES for piece in pieces[:-1])
    assert {key: encode_record(record) for key, record in read_pieces(pieces).items()} == dict(rows)
    assert list(cut_pieces(rows)) == pieces


def state_pieces() -> tuple[Head, list[bytes]]:
    """A head, and its state in pieces of two or three records: cut smaller than a node does, to have some to change."""
    head = Head.at_genesis(GENESIS)
    grow(head, [key(1), key(2)])
    rows = list(head.state.encoded().items())
    return head, [one for at in range(0, len(rows), 3) for one in cut_pieces(rows[at : at + 3])]


@given(st.randoms(use_true_random=False))
def test_no_other_pieces_give_the_root(generator: random.Random) -> None:
    """One left out, twice, in another place, or changed in one byte: it is always noticed."""
    head, pieces = state_pieces()
    assert head.header is not None
    assert head_from(GENESIS, head.header, head.commit, pieces).hash == head.hash
    at, changed = generator.randrange(len(pieces)), list(pieces)
    match generator.randrange(4):
        case 0:
            del changed[at]
        case 1:
            changed.insert(at, pieces[at])
        case 2:
            other = generator.choice([one for one in range(len(pieces)) if one != at])
            changed[at], changed[other] = changed[other], changed[at]
        case _:
            piece = bytearray(pieces[at])
            piece[generator.randrange(len(piece))] ^= 1 << generator.randrange(8)
            changed[at] = bytes(piece)
            assert piece_hash(changed[at]) != piece_hash(pieces[at])
    with pytest.raises((RuleBroken, RemoteProtocolError)):
        head_from(GENESIS, head.header, head.commit, changed)


def test_a_rich_state_with_its_own_pieces_is_not_believed() -> None:
    """Pieces that are well made, of a state in which the liar is rich."""
    head, _ = state_pieces()
    assert head.header is not None
    rows = head.state.encoded()
    own = account_key(key(66).public_key)
    rows[own] = encode_record(Account(balance=10**15))
    with pytest.raises(RuleBroken, match="state root"):
        head_from(GENESIS, head.header, head.commit, cut_pieces(sorted(rows.items())))
    account = decode_state_record(own, rows[own])
    rows[own] = encode_record(change(account, balance=0))
    with pytest.raises(RuleBroken, match="state root"):
        head_from(GENESIS, head.header, head.commit, cut_pieces(sorted(rows.items())))


@pytest.mark.parametrize("pieces", [[], [b"1" * 31], [b"p" * 32] * (MAX_PIECES + 1)], ids=["none", "short", "many"])
def test_a_manifest_out_of_bounds_is_none(pieces: list[bytes]) -> None:
    """Nobody fills a disk with what a list of hashes promises."""
    body = {"height": 1, "block_hash": b"b" * 32, "pieces": pieces}
    with pytest.raises(RemoteProtocolError):
        decode_record(encode(body), Manifest)
