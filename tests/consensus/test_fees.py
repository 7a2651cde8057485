"""What a place in a block costs, and what the protocol asks of its members for nothing."""

from __future__ import annotations

import pytest

from moed.consensus.params import CREDIT, ChainParams
from moed.consensus.transactions import (
    Body,
    CommitWeights,
    RevealWeights,
    SetWeights,
    Transfer,
    sign_transaction,
    weights_commitment,
)
from support.chains import key
from support.ledgers import Ledger

FEE = 1_000
ROW = ((1, 65_535),)
SALT = b"s" * 32
COMMIT = CommitWeights(commitment=weights_commitment(key(1).public_key, SALT, ROW))
REVEAL = RevealWeights(weights=ROW, salt=SALT)
OPEN = SetWeights(weights=ROW)


def ledger(*, commit_reveal: bool) -> Ledger:
    """Two validators, the first of which has a credit to pay with."""
    params = ChainParams(tempo=10, fee_per_byte=FEE, min_stake=0, emission_per_block=0, commit_reveal=commit_reveal)
    book = Ledger((60, 40), (2,), params)
    book.send(3, Transfer(to=key(1).public_key, amount=CREDIT))
    return book


def price(book: Ledger, body: Body) -> int:
    """What the first validator pays to send this."""
    before = book.balance(1)
    book.send(1, body)
    return before - book.balance(1)


def full_price(book: Ledger, body: Body) -> int:
    """The bytes of the transaction at so much each."""
    return FEE * sign_transaction(key(1), book.genesis.network_id, 1, body).size_bytes


@pytest.mark.parametrize("body", [COMMIT, OPEN], ids=["hidden", "open"])
def test_a_row_is_free_once_in_an_epoch(body: CommitWeights | SetWeights) -> None:
    """Hidden or in the open; what is written over it in the same epoch costs its bytes, and the next epoch is new."""
    book = ledger(commit_reveal=body is COMMIT)
    assert price(book, body) == 0
    assert price(book, body) == full_price(book, body) > 0
    book.close()
    assert price(book, body) == 0


def test_showing_a_row_is_free() -> None:
    """Its commitment was paid for, or free, and is gone once it is shown: there is no second time to charge for."""
    book = ledger(commit_reveal=True)
    book.send(1, COMMIT)
    book.close()
    book.send(1, COMMIT)  # of the epoch under way, which is not the one that is shown
    assert price(book, REVEAL) == 0
