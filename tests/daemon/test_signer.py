"""A validator signs each step once and keeps its locks, whatever happens to it in between."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from moed.consensus.blocks import NO_BLOCK, Block, Proposal, VoteKind, sign_proposal, sign_vote
from moed.consensus.effects import Lock
from moed.consensus.transition import Head
from moed.daemon.errors import StoreCorrupt
from moed.daemon.journal import FileJournal
from moed.daemon.signer import Signer
from support.chains import key, make_genesis

GENESIS = make_genesis((60, 40))


def make_signer(folder: Path) -> Signer:
    return Signer(key(1), GENESIS.network_id, FileJournal(folder / "signed.journal"))


def make_block(number: int) -> Block:
    head = Head.at_genesis(GENESIS)
    return head.build([], proposer=key(1).public_key, now_ms=head.time_ms + number)[0]


def make_proposal(number: int, round_number: int = 0) -> Proposal:
    return sign_proposal(key(2), GENESIS.network_id, round_number, -1, make_block(number))


def test_a_step_back_is_refused_and_a_repeat_gives_the_same(tmp_path: Path) -> None:
    """Heights, rounds and steps only rise; the same vote again is the same bytes."""
    signer = make_signer(tmp_path)
    vote = signer.vote(VoteKind.PREVOTE, 5, 1, b"\1" * 32)
    assert vote is not None
    assert signer.vote(VoteKind.PREVOTE, 5, 1, b"\1" * 32) == vote
    assert signer.vote(VoteKind.PREVOTE, 5, 1, b"\2" * 32) is None
    assert signer.vote(VoteKind.PREVOTE, 5, 0, NO_BLOCK) is None
    assert signer.vote(VoteKind.PRECOMMIT, 4, 9, NO_BLOCK) is None
    assert signer.vote(VoteKind.PRECOMMIT, 5, 1, b"\2" * 32) is not None


def test_one_proposal_for_a_round(tmp_path: Path) -> None:
    """Another block, or another valid round, for the same round gets no signature."""
    signer = make_signer(tmp_path)
    assert signer.proposal(0, -1, make_block(1)) is not None
    assert signer.proposal(0, -1, make_block(2)) is None
    assert signer.proposal(1, 0, make_block(1)) is not None
    assert signer.proposal(1, -1, make_block(1)) is None


def test_restarts_never_equivocate(tmp_path: Path) -> None:
    """Over random wishes and restarts no step is ever signed with two contents."""
    generator = random.Random(11)
    given: dict[tuple[int, int, int], bytes] = {}
    signer = make_signer(tmp_path)
    for wish in range(300):
        if generator.random() < 0.2:
            signer = make_signer(tmp_path)
        kind = generator.choice(list(VoteKind))
        height, round_number = 1 + wish // 30 + generator.randint(0, 1), generator.randint(0, 3)
        vote = signer.vote(kind, height, round_number, bytes([generator.randint(0, 2)]) * 32)
        if vote is not None:
            step = (height, round_number, int(kind))
            assert given.setdefault(step, vote.block_hash) == vote.block_hash
            vote.check_signature(GENESIS.network_id)
    assert len(given) > 20


def test_what_was_signed_at_this_height_comes_back(tmp_path: Path) -> None:
    """Votes and what they lock on are known again after a restart, others' votes too; a new height forgets them."""
    signer = make_signer(tmp_path)
    locked = make_proposal(1)
    prevotes = tuple(
        sign_vote(key(number), GENESIS.network_id, VoteKind.PREVOTE, 1, 0, locked.block.hash) for number in (1, 2, 3)
    )
    votes = [
        signer.vote(VoteKind.PREVOTE, 1, 0, locked.block.hash),
        signer.vote(VoteKind.PRECOMMIT, 1, 0, locked.block.hash, Lock(locked, prevotes)),
        signer.vote(VoteKind.PREVOTE, 1, 1, NO_BLOCK),
    ]
    before = make_signer(tmp_path).signed_at(1)
    assert list(before.votes) == votes
    assert list(before.proposals) == [locked]
    assert before.prevotes == prevotes
    again = make_signer(tmp_path)
    assert again.vote(VoteKind.PREVOTE, 2, 0, NO_BLOCK) is not None
    assert again.signed_at(1).votes == ()
    assert again.signed_at(2).prevotes == ()
    assert len(make_signer(tmp_path).signed_at(2).votes) == 1


def test_a_foreign_journal_stops_the_validator(tmp_path: Path) -> None:
    """Without knowing what it signed it must not sign."""
    FileJournal(tmp_path / "signed.journal").append(b"\xff\xff")
    with pytest.raises(StoreCorrupt, match="slashed"):
        make_signer(tmp_path)
