"""A machine that comes back from what it had signed: locked as before, and able to go on from any step."""

from __future__ import annotations

import pytest

from moed.consensus.blocks import NO_BLOCK, VoteKind, sign_proposal, sign_vote
from moed.consensus.effects import CastVote, Decide, Step, Timeout
from moed.consensus.rounds import Rounds
from moed.consensus.transition import Head
from support.chains import key, make_genesis
from support.rounds import KEYS, block_by, cast, hear, lock_on, make_rounds, propose, vote


def test_a_restart_keeps_the_lock() -> None:
    """A machine that resumes from its signed messages is locked as before: it refuses a fresh other block."""
    rounds, block = make_rounds(KEYS[0]), block_by(1)
    lock_on(rounds, block)
    again = make_rounds(KEYS[0])
    own = [vote(KEYS[0], VoteKind.PREVOTE, block.hash), vote(KEYS[0], VoteKind.PRECOMMIT, block.hash)]
    again.resume([propose(block)], own)
    assert cast(again.start()) == []
    assert (again.round, again.step) == (0, Step.PRECOMMIT)
    again.on_timeout(Timeout(1, 0, Step.PRECOMMIT))
    assert cast(hear(again, propose(block_by(2, 1), 1))) == [(VoteKind.PREVOTE, 1, NO_BLOCK)]


def test_a_restart_keeps_the_quorum_that_the_lock_rests_on() -> None:
    """A liar's vote completed it, and every other copy of that vote is gone: the others still see the quorum."""
    rounds, block = make_rounds(KEYS[0]), block_by(1)
    lock = lock_on(rounds, block)
    assert lock.proposal.block == block
    again = make_rounds(KEYS[0])
    own = [vote(KEYS[0], VoteKind.PREVOTE, block.hash), vote(KEYS[0], VoteKind.PRECOMMIT, block.hash)]
    again.resume([lock.proposal], own, lock.prevotes)
    again.start()
    again.on_timeout(Timeout(1, 0, Step.PRECOMMIT))
    unaware = make_rounds(KEYS[3])
    unaware.start()
    unaware.on_vote(vote(KEYS[3], VoteKind.PREVOTE, NO_BLOCK))
    unaware.on_timeout(Timeout(1, 0, Step.PRECOMMIT))
    for heard in again.news()[1]:
        unaware.on_vote(heard)
    later = propose(block, 1, valid_round=0)
    assert cast(hear(unaware, later)) == [(VoteKind.PREVOTE, 1, block.hash)]


def test_a_restart_without_the_lock_would_vote_against_it() -> None:
    """What the test above guards: forgetting the lock changes the vote."""
    forgetful = make_rounds(KEYS[0])
    forgetful.start()
    forgetful.on_timeout(Timeout(1, 0, Step.PRECOMMIT))
    other = block_by(2, 1)
    assert cast(hear(forgetful, propose(other, 1))) == [(VoteKind.PREVOTE, 1, other.hash)]


def test_a_restart_after_a_vote_for_none_is_locked_on_nothing() -> None:
    """A precommit for no block is no lock: in the next round a fresh block gets our vote."""
    before = [vote(KEYS[0], kind, NO_BLOCK) for kind in VoteKind]
    rounds = make_rounds(KEYS[0])
    rounds.resume([], before)
    rounds.start()
    rounds.on_timeout(Timeout(1, 0, Step.PRECOMMIT))
    block = block_by(1, 1)
    assert (VoteKind.PREVOTE, 1, block.hash) in cast(hear(rounds, propose(block, 1)))


@pytest.mark.parametrize("signed", [1, 2, 3], ids=["proposal", "prevote", "precommit"])
def test_a_validator_alone_goes_on_from_any_signed_step(signed: int) -> None:
    """Cut after its proposal, prevote or precommit, a network of one decides that very block after the restart."""
    genesis = make_genesis((5,))
    head = Head.at_genesis(genesis)
    me = key(1)
    block = head.build([], proposer=me.public_key, now_ms=head.time_ms + 1)[0]
    proposal = sign_proposal(me, genesis.network_id, 0, -1, block)
    votes = [sign_vote(me, genesis.network_id, kind, 1, 0, block.hash) for kind in VoteKind]
    rounds = Rounds(
        1, head.validators, me.public_key, params=genesis.params, network_id=genesis.network_id, is_valid=lambda _: True
    )
    rounds.resume([proposal], votes[: signed - 1])
    waiting = list(rounds.start())
    decided = []
    while waiting:
        match waiting.pop(0):
            case CastVote() as one:
                waiting += rounds.on_vote(sign_vote(me, genesis.network_id, one.kind, 1, one.round, one.block_hash))
            case Decide() as decision:
                decided.append(decision.block.hash)
    assert decided == [block.hash]
