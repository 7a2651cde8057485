"""What votes count for: stake and not heads, liars among them, and which rounds others are told of or pulled to."""

from __future__ import annotations

import pytest

from moed.consensus.blocks import NO_BLOCK, Vote, VoteKind, sign_proposal, sign_vote, signed_share
from moed.consensus.effects import Decide, Effect, Equivocation, ScheduleTimeout, Step, Timeout
from moed.consensus.rounds import MAX_ROUNDS_AHEAD, Rounds
from moed.consensus.tally import MAX_VOTES_EACH, Tally
from moed.consensus.transition import Head
from moed.consensus.turns import proposer
from moed.protocol.identity import Identity
from support.chains import key, make_genesis, sign_commit
from support.rounds import GENESIS, KEYS, block_by, hear, lock_on, make_rounds, new_head, propose, vote


def test_two_thirds_exactly_is_no_quorum() -> None:
    """Stake is counted, not heads, and two thirds must be exceeded."""
    genesis = make_genesis((1, 1, 1))
    head = Head.at_genesis(genesis)
    rounds = Rounds(
        1, head.validators, None, params=genesis.params, network_id=genesis.network_id, is_valid=lambda _: True
    )
    rounds.start()
    turn = next(one for one in (key(1), key(2), key(3)) if one.public_key == proposer(head.validators, 0))
    block = head.build([], proposer=turn.public_key, now_ms=head.time_ms + 1)[0]
    hear(rounds, sign_proposal(turn, genesis.network_id, 0, -1, block))
    effects: list[Effect] = []
    for signer in (key(1), key(2)):
        effects += rounds.on_vote(sign_vote(signer, genesis.network_id, VoteKind.PRECOMMIT, 1, 0, block.hash))
    assert not any(isinstance(one, Decide) for one in effects)
    effects = rounds.on_vote(sign_vote(key(3), genesis.network_id, VoteKind.PRECOMMIT, 1, 0, block.hash))
    assert any(isinstance(one, Decide) for one in effects)


@pytest.mark.parametrize(("kind", "step"), [(VoteKind.PREVOTE, Step.PREVOTE), (VoteKind.PRECOMMIT, Step.PRECOMMIT)])
def test_two_thirds_of_any_votes_start_the_clock_once(kind: VoteKind, step: Step) -> None:
    """Rules 4 and 7: split votes decide nothing, so the round gets its time to end once enough came, and not before."""
    rounds, block = make_rounds(KEYS[0]), block_by(1)
    rounds.start()
    hear(rounds, propose(block))

    def clocks(signer: Identity, block_hash: bytes) -> list[Timeout]:
        effects = rounds.on_vote(vote(signer, kind, block_hash))
        return [one.timeout for one in effects if isinstance(one, ScheduleTimeout)]

    assert clocks(KEYS[0], block.hash) == []
    assert clocks(KEYS[1], NO_BLOCK) == []
    assert clocks(KEYS[2], b"\5" * 32) == [Timeout(1, 0, step)]
    assert clocks(KEYS[3], b"\6" * 32) == []


def test_the_share_of_a_commit_is_its_stake() -> None:
    """What people read beside a block: whose signatures are in, by stake and not by heads."""
    block = block_by(1)
    validators = new_head().validators
    for signers, share in ((KEYS, 1.0), (KEYS[:2], 0.6), (KEYS[2:3], 0.2)):
        assert signed_share(sign_commit(GENESIS, block, signers), validators) == pytest.approx(share)
    assert signed_share(sign_commit(GENESIS, block, []), validators) == 0


def test_two_votes_in_one_round_are_shown_and_count_once() -> None:
    """Equivocation is evidence, and whoever signs two has voted once."""
    rounds = make_rounds(None)
    rounds.start()
    rounds.on_vote(vote(KEYS[0], VoteKind.PREVOTE, b"\1" * 32))
    effects = rounds.on_vote(vote(KEYS[0], VoteKind.PREVOTE, b"\2" * 32))
    assert [type(one) for one in effects] == [Equivocation]
    assert not rounds.tally.has_quorum_of_any(VoteKind.PREVOTE, 0)
    assert rounds.tally.voters(0) == {KEYS[0].public_key}


def test_a_liars_every_vote_counts_for_its_own_hash() -> None:
    """Others may have locked by the vote that came second here: it must complete their quorum here too."""
    rounds = make_rounds(None)
    block = block_by(1)
    rounds.start()
    liar = KEYS[3]
    rounds.on_vote(vote(liar, VoteKind.PREVOTE, NO_BLOCK))
    for signer in (KEYS[0], KEYS[1]):
        rounds.on_vote(vote(signer, VoteKind.PREVOTE, block.hash))
    assert not rounds.tally.has_quorum(VoteKind.PREVOTE, 0, block.hash)
    effects = rounds.on_vote(vote(liar, VoteKind.PREVOTE, block.hash))
    assert any(isinstance(one, Equivocation) for one in effects)
    assert rounds.tally.has_quorum(VoteKind.PREVOTE, 0, block.hash)
    for number in range(10):
        rounds.on_vote(vote(liar, VoteKind.PREVOTE, bytes([number]) * 32))
    assert len(rounds.tally.votes([0])) == 2 + MAX_VOTES_EACH


def test_a_liar_that_votes_for_much_still_counts_for_what_others_want() -> None:
    """Elsewhere its vote completed a quorum: that it told us other things first must not keep the quorum from us."""
    rounds = make_rounds(None)
    block = block_by(1)
    rounds.start()
    liar = KEYS[3]
    for number in range(MAX_VOTES_EACH):
        rounds.on_vote(vote(liar, VoteKind.PREVOTE, bytes([number]) * 32))
    wanted = vote(liar, VoteKind.PREVOTE, block.hash)
    rounds.on_vote(wanted)
    assert not rounds.counts(wanted)
    for signer in (KEYS[0], KEYS[2]):  # a half: with the liar it is enough
        rounds.on_vote(vote(signer, VoteKind.PREVOTE, block.hash))
    assert not rounds.tally.has_quorum(VoteKind.PREVOTE, 0, block.hash)
    rounds.on_vote(wanted)
    assert rounds.tally.has_quorum(VoteKind.PREVOTE, 0, block.hash)


def test_more_than_a_third_in_a_later_round_pulls_along() -> None:
    """Rule 9: over one third of the stake is at least one honest validator."""
    rounds = make_rounds(KEYS[0])
    rounds.start()
    rounds.on_vote(vote(KEYS[1], VoteKind.PREVOTE, NO_BLOCK, 5))
    assert rounds.round == 0
    rounds.on_vote(vote(KEYS[2], VoteKind.PREVOTE, NO_BLOCK, 5))
    assert rounds.round == 5


def test_over_a_third_spread_over_later_rounds_pulls_along() -> None:
    """Rule 9 asks where a third of the stake is or beyond: not all of it need be seen in one round."""
    rounds = make_rounds(KEYS[0])
    rounds.start()
    rounds.on_vote(vote(KEYS[1], VoteKind.PREVOTE, NO_BLOCK, 4))
    rounds.on_vote(vote(KEYS[2], VoteKind.PREVOTE, NO_BLOCK, 9))
    assert rounds.round == 4


def test_who_was_away_for_hundreds_of_rounds_is_pulled_along() -> None:
    """Votes too far ahead to be counted still say where the others are; once there, they count."""
    rounds = make_rounds(KEYS[0])
    rounds.start()
    far = 3 * MAX_ROUNDS_AHEAD
    for number in range(MAX_ROUNDS_AHEAD + 1, far):
        rounds.on_vote(vote(KEYS[1], VoteKind.PREVOTE, NO_BLOCK, number))
    assert rounds.round == 0
    assert len(rounds.tally.far_votes()) == 1
    ahead = vote(KEYS[2], VoteKind.PREVOTE, NO_BLOCK, far + 7)
    rounds.on_vote(ahead)
    assert rounds.round == far - 1
    assert rounds.has_vote(ahead)
    assert rounds.tally.far_votes() == []
    effects = rounds.on_vote(vote(KEYS[3], VoteKind.PREVOTE, NO_BLOCK, far + 7))
    assert rounds.round == far + 7
    assert any(isinstance(one, ScheduleTimeout) for one in effects)


def test_those_who_are_missing_are_named() -> None:
    """Of whom nothing was heard in the round under way is what stands still for."""
    rounds = make_rounds(None)
    rounds.start()
    rounds.on_vote(vote(KEYS[1], VoteKind.PREVOTE, NO_BLOCK))
    rounds.on_vote(vote(KEYS[3], VoteKind.PREVOTE, NO_BLOCK))
    assert set(rounds.missing()) == {KEYS[0].public_key, KEYS[2].public_key}


def test_what_is_told_again_does_not_grow_with_the_rounds() -> None:
    """After fifty rounds without a decision a peer is told of the last ones and of what is locked, not of all."""
    rounds = make_rounds(KEYS[0])
    lock_on(rounds, block_by(1))
    for number in range(1, 50):
        for signer in KEYS:
            rounds.on_vote(vote(signer, VoteKind.PREVOTE, NO_BLOCK, number))
            rounds.on_vote(vote(signer, VoteKind.PRECOMMIT, NO_BLOCK, number))
        rounds.on_timeout(Timeout(1, rounds.round, Step.PRECOMMIT))
    proposals, votes = rounds.news()
    assert [proposal.round for proposal in proposals] == [0]
    assert {one.round for one in votes} <= {0, rounds.round - 1, rounds.round}


def test_the_votes_that_a_proposal_names_are_told_again() -> None:
    """Who holds a part of the quorum of an earlier round gives it to those who cannot vote without the whole."""
    rounds = make_rounds(KEYS[0])
    rounds.start()
    block = block_by(1)
    own = vote(KEYS[0], VoteKind.PREVOTE, block.hash)
    rounds.on_vote(own)
    for number in range(1, 6):
        for signer in KEYS[1:3]:
            rounds.on_vote(vote(signer, VoteKind.PREVOTE, NO_BLOCK, number))
    assert own not in rounds.news()[1]
    hear(rounds, propose(block, 5, valid_round=0))
    assert own in rounds.news()[1]
    rounds.on_timeout(Timeout(1, 5, Step.PRECOMMIT))
    assert own in rounds.news()[1], "some are still in the round before"
    rounds.on_timeout(Timeout(1, 6, Step.PRECOMMIT))
    assert own not in rounds.news()[1]


def test_the_clock_starts_beyond_two_thirds_and_not_at_them() -> None:
    """Rules 4 and 7 with three equal stakes: the third vote of any kind starts the clock, the second does not."""
    genesis = make_genesis((1, 1, 1))
    tally = Tally(Head.at_genesis(genesis).validators)
    had = []
    for number in (1, 2, 3):
        tally.add(sign_vote(key(number), genesis.network_id, VoteKind.PREVOTE, 1, 0, bytes([number]) * 32))
        had.append(tally.has_quorum_of_any(VoteKind.PREVOTE, 0))
    assert had == [False, False, True]


def test_a_far_vote_is_not_pushed_out_by_an_earlier_one() -> None:
    """Old votes that arrive late, or are sent again, take nothing back of where their validator is heard to be."""
    rounds = make_rounds(None)
    rounds.start()
    far = MAX_ROUNDS_AHEAD + 10
    latest = vote(KEYS[1], VoteKind.PRECOMMIT, NO_BLOCK, far)
    for one in (
        latest,
        vote(KEYS[1], VoteKind.PREVOTE, NO_BLOCK, far),
        vote(KEYS[1], VoteKind.PRECOMMIT, NO_BLOCK, far - 1),
    ):
        rounds.on_vote(one)
        assert rounds.tally.far_votes() == [latest]


def test_the_round_of_the_lock_and_that_of_the_later_quorum_are_both_told() -> None:
    """A quorum seen too late to lock on leaves the lock where it was; the others need the votes of either."""
    rounds, other = make_rounds(KEYS[0]), block_by(2, 1)
    lock_on(rounds, block_by(1))
    rounds.on_timeout(Timeout(1, 1, Step.PROPOSE))
    rounds.on_timeout(Timeout(1, 1, Step.PREVOTE))
    for signer in KEYS[1:]:
        rounds.on_vote(vote(signer, VoteKind.PREVOTE, other.hash, 1))
    hear(rounds, propose(other, 1))
    for number in (1, 2, 3):
        rounds.on_timeout(Timeout(1, number, Step.PRECOMMIT))
    proposals, votes = rounds.news()
    assert [proposal.round for proposal in proposals] == [0, 1]
    assert {one.round for one in votes} == {0, 1}


def test_a_third_exactly_makes_no_room_for_a_liars_further_votes() -> None:
    """A third could be liars together, and then nothing would bound what is kept of them; beyond it one is honest."""
    genesis = make_genesis((1, 1, 1))
    tally = Tally(Head.at_genesis(genesis).validators)

    def ballot(number: int, block_hash: bytes) -> Vote:
        return sign_vote(key(number), genesis.network_id, VoteKind.PREVOTE, 1, 0, block_hash)

    for number in range(MAX_VOTES_EACH):
        tally.add(ballot(3, bytes([number]) * 32))
    wanted, late = b"\x77" * 32, ballot(3, b"\x77" * 32)
    tally.add(ballot(1, wanted))
    tally.add(late)
    assert not tally.counts(late)
    tally.add(ballot(2, wanted))
    tally.add(late)
    assert tally.counts(late)
    assert tally.has_quorum(VoteKind.PREVOTE, 0, wanted)
