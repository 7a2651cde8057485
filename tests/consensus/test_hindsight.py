"""What comes after the decision: a second signature convicts who made it, nothing else does, and memory is bounded."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moed.consensus.blocks import Block, Commit, Proposal, Vote, VoteKind, sign_proposal, sign_vote
from moed.consensus.evidence import double_proposal, double_vote
from moed.consensus.hindsight import KEPT_HEIGHTS, KEPT_ROUNDS, MAX_VOTES, Hindsight
from moed.consensus.rounds import Rounds
from moed.consensus.transition import Head
from moed.protocol.errors import BadSignature
from support.chains import key, make_genesis, sign_commit

GENESIS = make_genesis((1, 1, 1, 1))
NETWORK = GENESIS.network_id
HEAD = Head.at_genesis(GENESIS)
BLOCK, OTHER = (HEAD.build([], proposer=key(1).public_key, now_ms=HEAD.time_ms + one)[0] for one in (1_000, 2_000))


def vote(number: int, block: Block, *, height: int = 1, round_number: int = 0) -> Vote:
    return sign_vote(key(number), NETWORK, VoteKind.PRECOMMIT, height, round_number, block.hash)


def decided(height: int = 1, round_number: int = 0) -> tuple[Rounds, Commit]:
    """A height that the first three of four validators decided, in which nothing was heard but their commit."""
    rounds = Rounds(height, HEAD.validators, None, params=GENESIS.params, network_id=NETWORK, is_valid=lambda _: True)
    commit = sign_commit(GENESIS, BLOCK, [key(1), key(2), key(3)], round_number)
    return rounds, msgspec.structs.replace(commit, height=height)


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([BLOCK, OTHER])), max_size=12))
def test_whoever_signed_for_both_is_convicted_once(heard: list[tuple[int, Block]]) -> None:
    """In whatever order votes come after the decision; the evidence holds, and strangers convict nobody."""
    hindsight = Hindsight(NETWORK)
    hindsight.close(*decided())
    signed = {(number, BLOCK.hash) for number in (1, 2, 3)} | {(number, block.hash) for number, block in heard}
    liars = {number for number in (1, 2, 3, 4) if {(number, BLOCK.hash), (number, OTHER.hash)} <= signed}
    found = [lie for number, block in heard for lie in hindsight.take(vote(number, block))]
    assert sorted(lie.validator for lie in found) == sorted(key(number).public_key for number in liars)
    for lie in found:
        assert isinstance(lie.first, Vote)
        assert isinstance(lie.second, Vote)
        double_vote(lie.first, lie.second).check(NETWORK)


def test_a_second_proposal_convicts_without_its_transactions() -> None:
    """Of the first only the header was kept; the evidence is the one that both whole proposals give."""
    rounds, commit = decided()
    author = next(key(number) for number in (1, 2, 3, 4) if key(number).public_key == rounds.turn(0))
    first, second = (sign_proposal(author, NETWORK, 0, -1, block) for block in (BLOCK, OTHER))
    rounds.on_proposal(first)
    hindsight = Hindsight(NETWORK)
    hindsight.close(rounds, commit)
    assert not hindsight.wants(first)
    with pytest.raises(BadSignature):
        hindsight.take(sign_proposal(key(77), NETWORK, 0, -1, OTHER))
    (lie,) = hindsight.take(second)
    assert isinstance(lie.first, Proposal)
    assert isinstance(lie.second, Proposal)
    evidence = double_proposal(lie.validator, lie.first, lie.second)
    evidence.check(NETWORK)
    assert evidence == double_proposal(author.public_key, first, second)
    assert hindsight.take(second) == []


def test_a_forged_vote_convicts_nobody() -> None:
    """It is wanted by its looks, and refused for its signature."""
    hindsight = Hindsight(NETWORK)
    hindsight.close(*decided())
    forged = msgspec.structs.replace(vote(9, OTHER), validator=key(1).public_key)
    assert hindsight.wants(forged)
    with pytest.raises(BadSignature):
        hindsight.take(forged)


def test_memory_is_bounded_whatever_comes() -> None:
    """Old heights and far rounds are not wanted, and of the rest no more than the limit is kept."""
    hindsight = Hindsight(NETWORK)
    for height in range(1, 3 * KEPT_HEIGHTS):
        hindsight.close(*decided(height, 3 * KEPT_ROUNDS))
    last = 3 * KEPT_HEIGHTS - 1
    wanted = [
        (height, number)
        for height, number in product(range(1, last + 2), range(6 * KEPT_ROUNDS))
        if hindsight.wants(vote(4, OTHER, height=height, round_number=number))
    ]
    rounds = range(2 * KEPT_ROUNDS + 1, 3 * KEPT_ROUNDS + 2)
    assert wanted == list(product(range(last + 1 - KEPT_HEIGHTS, last + 1), rounds))
    assert 4 * 2 * len(wanted) <= MAX_VOTES
