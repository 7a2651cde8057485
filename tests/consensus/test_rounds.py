"""Agreement by scenario and by simulation: one block, whatever the order, as long as two thirds take part."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import pytest

from moed.consensus.blocks import NO_BLOCK, Commit, Proposal, Vote, VoteKind, sign_proposal, sign_vote
from moed.consensus.effects import CastVote, Decide, Effect, Equivocation, Propose, ScheduleTimeout, Step, Timeout
from moed.consensus.rounds import MAX_ROUNDS_AHEAD, Rounds
from moed.consensus.tally import MAX_VOTES_EACH
from moed.consensus.transactions import Register, sign_transaction, transactions_root
from moed.protocol.errors import BadSignature, Malformed, Unexpected
from moed.protocol.identity import Identity
from support.chains import key
from support.rounds import (
    BY_KEY,
    GENESIS,
    KEYS,
    block_by,
    cast,
    hear,
    lock_on,
    make_rounds,
    new_head,
    others,
    propose,
    turn_of,
    vote,
)


def test_three_of_four_decide_the_proposed_block() -> None:
    """The plain course: proposal, prevotes, precommits, decision, with a commit that proves it."""
    me, block = KEYS[0], block_by(1)
    rounds = make_rounds(me)
    rounds.start()
    effects = hear(rounds, propose(block))
    assert cast(effects) == [(VoteKind.PREVOTE, 0, block.hash)]
    for signer in KEYS[:3]:
        effects = rounds.on_vote(vote(signer, VoteKind.PREVOTE, block.hash))
    assert cast(effects) == [(VoteKind.PRECOMMIT, 0, block.hash)]
    for signer in KEYS[:3]:
        effects = rounds.on_vote(vote(signer, VoteKind.PRECOMMIT, block.hash))
    decision = next(one for one in effects if isinstance(one, Decide))
    assert decision.block.hash == block.hash
    new_head().check_final(block, decision.commit)


def test_an_invalid_block_gets_a_vote_for_none() -> None:
    """A validator never votes for what its own chain refuses."""
    rounds = make_rounds(KEYS[0], accepts=False)
    rounds.start()
    assert cast(hear(rounds, propose(block_by(1)))) == [(VoteKind.PREVOTE, 0, NO_BLOCK)]


def test_silence_of_the_proposer_moves_everyone_to_the_next_round() -> None:
    """Rules T1, 6 and T3: no proposal, prevote none, precommit none, next round."""
    me = turn_of(1)
    rounds = make_rounds(me)
    rounds.start()
    assert cast(rounds.on_timeout(Timeout(1, 0, Step.PROPOSE))) == [(VoteKind.PREVOTE, 0, NO_BLOCK)]
    effects: list[Effect] = []
    for signer in KEYS[:3]:
        effects = rounds.on_vote(vote(signer, VoteKind.PREVOTE, NO_BLOCK))
    assert cast(effects) == [(VoteKind.PRECOMMIT, 0, NO_BLOCK)]
    for signer in KEYS[:3]:
        effects = rounds.on_vote(vote(signer, VoteKind.PRECOMMIT, NO_BLOCK))
    timeout = next(one.timeout for one in effects if isinstance(one, ScheduleTimeout))
    effects = rounds.on_timeout(timeout)
    assert rounds.round == 1
    assert any(isinstance(one, Propose) and one.round == 1 for one in effects)


def test_a_proposal_says_something_new_at_most_twice_in_a_round() -> None:
    """Another signature under the same content is nothing new, and after one lie the next ones are neither."""
    rounds = make_rounds(KEYS[0])
    first, second, third = (propose(block_by(number)) for number in (1, 2, 3))
    assert not rounds.has_proposal(first)
    hear(rounds, first)
    assert rounds.has_proposal(msgspec.structs.replace(first, signature=bytes(64)))
    assert not rounds.has_proposal(second)
    assert [type(effect) for effect in hear(rounds, second)] == [Equivocation]
    assert all(rounds.has_proposal(one) for one in (first, second, third))


def test_a_vote_counts_where_it_can_decide() -> None:
    """One for a far round is kept and does not count; nor does a liar's fifth in one step."""
    rounds = make_rounds(KEYS[0])
    far = vote(KEYS[1], VoteKind.PREVOTE, NO_BLOCK, MAX_ROUNDS_AHEAD + 1)
    rounds.on_vote(far)
    assert rounds.has_vote(far)
    assert not rounds.counts(far)
    lies = [vote(KEYS[2], VoteKind.PREVOTE, bytes([number]) * 32) for number in range(MAX_VOTES_EACH + 1)]
    for lie in lies:
        rounds.on_vote(lie)
    assert [rounds.counts(lie) for lie in lies] == [True] * MAX_VOTES_EACH + [False]


def test_a_locked_validator_refuses_another_block() -> None:
    """Rule 2: locked on one block, it prevotes none for a fresh other one."""
    rounds = make_rounds(KEYS[0])
    lock_on(rounds, block_by(1))
    assert cast(hear(rounds, propose(block_by(2, 1), 1))) == [(VoteKind.PREVOTE, 1, NO_BLOCK)]


def test_a_lock_gives_way_to_a_later_quorum() -> None:
    """Rule 3: a block with a prevote quorum in a later round than the lock gets its vote."""
    rounds = make_rounds(KEYS[0])
    lock_on(rounds, block_by(1))
    other = block_by(2, 1)
    rounds.on_timeout(Timeout(1, 1, Step.PROPOSE))
    for signer in KEYS[1:]:
        rounds.on_vote(vote(signer, VoteKind.PREVOTE, other.hash, 1))
    rounds.on_timeout(Timeout(1, 1, Step.PREVOTE))
    rounds.on_timeout(Timeout(1, 1, Step.PRECOMMIT))
    assert rounds.round == 2
    assert cast(hear(rounds, propose(other, 2, valid_round=1))) == [(VoteKind.PREVOTE, 2, other.hash)]


@pytest.mark.parametrize("is_same", [True, False])
def test_an_older_quorum_moves_no_lock_but_for_its_own_block(is_same: bool) -> None:
    """Rule 3: locked in round 1, a quorum of round 0 gets our vote only for the very block that we are locked on."""
    rounds, locked, other = make_rounds(KEYS[0]), block_by(1), block_by(2)
    rounds.resume([propose(locked)], [vote(KEYS[0], VoteKind.PRECOMMIT, locked.hash, 1)])
    rounds.start()
    rounds.on_timeout(Timeout(1, 1, Step.PRECOMMIT))
    again = locked if is_same else other
    for signer in KEYS[1:]:
        rounds.on_vote(vote(signer, VoteKind.PREVOTE, again.hash))
    expected = again.hash if is_same else NO_BLOCK
    assert cast(hear(rounds, propose(again, 2, valid_round=0))) == [(VoteKind.PREVOTE, 2, expected)]


def test_a_claimed_quorum_that_nobody_has_seen_gets_no_vote() -> None:
    """Rule 3 waits for the prevotes themselves, not for the proposer's word."""
    rounds = make_rounds(KEYS[0])
    lock_on(rounds, block_by(1))
    rounds.on_timeout(Timeout(1, 1, Step.PRECOMMIT))
    assert cast(hear(rounds, propose(block_by(2), 2, valid_round=1))) == []


def test_the_valid_block_is_proposed_again() -> None:
    """Rule 1: who knows a quorum's block proposes that one, with the round of the quorum."""
    me = turn_of(1)
    rounds = make_rounds(me)
    block = block_by(1)
    rounds.start()
    hear(rounds, propose(block))
    for signer in others(me):
        rounds.on_vote(vote(signer, VoteKind.PREVOTE, block.hash))
    effects = rounds.on_timeout(Timeout(1, 0, Step.PRECOMMIT))
    turn = next(one for one in effects if isinstance(one, Propose))
    assert (turn.round, turn.valid_round) == (1, 0)
    assert turn.block is not None
    assert turn.block.hash == block.hash


def test_a_quorum_of_an_earlier_round_still_decides() -> None:
    """Rule 8 holds for every round, not only for the one under way."""
    rounds = make_rounds(None)
    block = block_by(1)
    rounds.start()
    hear(rounds, propose(block))
    rounds.on_timeout(Timeout(1, 0, Step.PRECOMMIT))
    assert rounds.round == 1
    effects: list[Effect] = []
    for signer in KEYS[1:]:
        effects += rounds.on_vote(vote(signer, VoteKind.PRECOMMIT, block.hash, 0))
    assert any(isinstance(one, Decide) for one in effects)


def test_a_stale_timeout_changes_nothing() -> None:
    """A time-out names its height, round and step; any other moment ignores it."""
    rounds = make_rounds(KEYS[0])
    rounds.start()
    hear(rounds, propose(block_by(1)))
    for stale in (Timeout(1, 0, Step.PROPOSE), Timeout(2, 0, Step.PREVOTE), Timeout(1, 3, Step.PREVOTE)):
        assert rounds.on_timeout(stale) == []
    assert (rounds.round, rounds.step) == (0, Step.PREVOTE)


def test_forged_and_foreign_messages_are_refused() -> None:
    """Signatures, turns and heights are checked before anything is kept."""
    rounds = make_rounds(KEYS[0])
    rounds.start()
    wrong = next(one for one in KEYS if one is not turn_of(0))
    with pytest.raises(BadSignature):
        hear(rounds, sign_proposal(wrong, GENESIS.network_id, 0, -1, block_by(1)))
    with pytest.raises(BadSignature):
        rounds.on_vote(sign_vote(KEYS[1], b"another network", VoteKind.PREVOTE, 1, 0, NO_BLOCK))
    with pytest.raises(Unexpected):
        rounds.on_vote(vote(key(99), VoteKind.PREVOTE, NO_BLOCK))
    with pytest.raises(Unexpected):
        rounds.on_vote(sign_vote(KEYS[1], GENESIS.network_id, VoteKind.PREVOTE, 2, 0, NO_BLOCK))
    with pytest.raises(Unexpected):
        hear(rounds, propose(block_by(1, 999), 999))
    with pytest.raises(Unexpected):
        hear(rounds, propose(block_by(1, 1)))
    assert rounds.tally.rounds() == []
    assert rounds.proposals == {}


def test_a_body_swapped_on_the_way_does_not_stand_in_the_way_of_the_honest_one() -> None:
    """The signature holds for the header; transactions or a commit that it does not name are refused, and forgotten."""
    rounds = make_rounds(KEYS[0])
    rounds.start()
    honest = propose(block_by(1))
    foreign = sign_transaction(key(9), GENESIS.network_id, 0, Register())
    commit = Commit(height=0, round=1, block_hash=NO_BLOCK)
    for part in ({"transactions": (foreign,)}, {"last_commit": commit}):
        swapped = msgspec.structs.replace(honest, block=msgspec.structs.replace(honest.block, **part))
        with pytest.raises(Malformed):
            hear(rounds, swapped)
    assert cast(hear(rounds, honest)) == [(VoteKind.PREVOTE, 0, honest.block.hash)]


def test_a_block_that_is_too_long_to_hold_is_not_kept() -> None:
    """Whoever has many turns ahead could else fill everybody's memory with blocks that no rule allows."""
    params = msgspec.structs.replace(GENESIS.params, max_block_transactions=1)
    transactions = tuple(sign_transaction(key(9), GENESIS.network_id, nonce, Register()) for nonce in range(2))
    for count, is_taken in ((1, True), (2, False)):
        rounds = Rounds(
            1, new_head().validators, None, params=params, network_id=GENESIS.network_id, is_valid=lambda _: False
        )
        body = transactions[:count]
        empty = block_by(1)
        header = msgspec.structs.replace(empty.header, transactions_root=transactions_root(body))
        proposal = propose(msgspec.structs.replace(empty, header=header, transactions=body))
        if is_taken:
            hear(rounds, proposal)
        else:
            with pytest.raises(Malformed, match="2 transactions"):
                hear(rounds, proposal)
        assert bool(rounds.proposals) is is_taken


class _Network:
    """Machines joined in memory: messages arrive in any order, late or twice; time-outs fire when nothing else can."""

    def __init__(self, seed: int, silent: Sequence[Identity]) -> None:
        self.random = random.Random(seed)
        self.machines: dict[bytes, Rounds] = {one.public_key: make_rounds(one) for one in KEYS if one not in silent}
        self.waiting: list[tuple[bytes, Proposal | Vote]] = []
        self.timeouts: list[tuple[int, bytes, Timeout]] = []
        self.now_ms = 0
        self.decided: dict[bytes, Decide] = {}

    def run(self) -> None:
        for name, machine in self.machines.items():
            self.carry_out(name, machine.start())
        for _ in range(20_000):
            if len(self.decided) == len(self.machines):
                return
            self.step()
        raise AssertionError("no decision in 20,000 steps")

    def step(self) -> None:
        if self.waiting and self.random.random() < 0.95:
            at = self.random.randrange(len(self.waiting))
            name, message = self.waiting[at]
            if self.random.random() < 0.9:  # else it stays and arrives once more
                self.waiting.pop(at)
            if name not in self.decided:
                machine = self.machines[name]
                effects = machine.on_vote(message) if isinstance(message, Vote) else hear(machine, message)
                self.carry_out(name, effects)
        elif self.timeouts:
            self.timeouts.sort(key=lambda entry: entry[0])
            self.now_ms, name, timeout = self.timeouts.pop(0)
            if name not in self.decided:
                self.carry_out(name, self.machines[name].on_timeout(timeout))

    def carry_out(self, name: bytes, effects: Sequence[Effect]) -> None:
        me = BY_KEY[name]
        for effect in effects:
            match effect:
                case CastVote():
                    self.send(vote(me, effect.kind, effect.block_hash, effect.round))
                case Propose():
                    block = effect.block or block_by(1 + effect.round, effect.round)
                    self.send(sign_proposal(me, GENESIS.network_id, effect.round, effect.valid_round, block))
                case ScheduleTimeout():
                    self.timeouts.append((self.now_ms + effect.after_ms, name, effect.timeout))
                case Decide():
                    self.decided[name] = effect

    def send(self, message: Proposal | Vote) -> None:
        self.waiting += [(name, message) for name in self.machines]


@pytest.mark.parametrize("seed", range(40))
def test_all_agree_in_any_order_of_messages(seed: int) -> None:
    """Forty orders of arrival, with one validator of a fifth of the stake silent in half of them."""
    network = _Network(seed, silent=[KEYS[3]] if seed % 2 else [])
    network.run()
    hashes = {decision.block.hash for decision in network.decided.values()}
    assert len(hashes) == 1
    head = new_head()
    for decision in network.decided.values():
        head.check_final(decision.block, decision.commit)


def test_an_old_block_time_counts_for_a_fresh_proposal_alone() -> None:
    """Our clock may refuse to be first with a block; what a quorum has taken in time it cannot refuse."""
    block = block_by(1)
    head = new_head()
    rounds = Rounds(
        1,
        head.validators,
        KEYS[0].public_key,
        params=GENESIS.params,
        network_id=GENESIS.network_id,
        is_valid=lambda _: True,
        is_timely=lambda _: False,
    )
    rounds.start()
    assert cast(hear(rounds, propose(block))) == [(VoteKind.PREVOTE, 0, NO_BLOCK)]
    effects: list[Effect] = []
    for signer in KEYS[1:]:
        effects += rounds.on_vote(vote(signer, VoteKind.PRECOMMIT, block.hash))
    assert any(isinstance(one, Decide) for one in effects)


def test_a_block_that_names_another_author_is_refused() -> None:
    """The header's proposer is whose turn it is, or was when a block is proposed again: nobody is made its author."""
    rounds = make_rounds(KEYS[0])
    rounds.start()
    other = next(number for number in range(1, 20) if turn_of(number) != turn_of(0))
    with pytest.raises(Unexpected):
        hear(rounds, propose(block_by(1, other)))
    again = block_by(1)
    hear(rounds, propose(again, other, valid_round=0))
    with pytest.raises(Unexpected):
        hear(rounds, propose(block_by(1, other), other + 1, valid_round=other - 1))


def test_two_proposals_for_one_round_are_shown() -> None:
    """The first one stays and is voted on; both together are evidence against whose turn it was."""
    rounds = make_rounds(KEYS[0])
    rounds.start()
    first, second = propose(block_by(1)), propose(block_by(2))
    hear(rounds, first)
    effects = hear(rounds, second)
    assert effects == [Equivocation(turn_of(0).public_key, first, second)]
    assert rounds.proposals == {0: first}
    assert hear(rounds, first) == []


def test_a_height_begins_once() -> None:
    """A second start, as a timer that comes twice would make, asks for nothing and goes back nowhere."""
    rounds = make_rounds(KEYS[0])
    rounds.start()
    rounds.on_timeout(Timeout(1, 0, Step.PROPOSE))
    before = rounds.round, rounds.step
    assert rounds.start() == []
    assert (rounds.round, rounds.step) == before


def test_a_proposal_out_of_reach_is_refused() -> None:
    """Its author would have many turns, and each of its blocks would be kept."""
    rounds = make_rounds(KEYS[0])
    rounds.start()
    near, far = MAX_ROUNDS_AHEAD, MAX_ROUNDS_AHEAD + 1
    hear(rounds, propose(block_by(1, near), near))
    with pytest.raises(Unexpected):
        hear(rounds, propose(block_by(1, far), far))
    assert set(rounds.proposals) == {near}


@pytest.mark.parametrize("valid_round", [2, 3])
def test_a_valid_round_lies_before_its_proposal(valid_round: int) -> None:
    """A quorum of the round under way, or of one to come, cannot have been seen."""
    rounds = make_rounds(KEYS[0])
    rounds.start()
    with pytest.raises(Unexpected):
        hear(rounds, propose(block_by(1), 2, valid_round=valid_round))


def test_no_quorum_makes_an_invalid_block_lock_or_final_here() -> None:
    """Two thirds may want what our own chain refuses; we neither lock on it, nor sign it, nor decide it."""
    rounds, block = make_rounds(KEYS[0], accepts=False), block_by(1)
    rounds.start()
    hear(rounds, propose(block))
    effects: list[Effect] = []
    for kind in VoteKind:
        for signer in KEYS[1:]:
            effects += rounds.on_vote(vote(signer, kind, block.hash))
    assert not any(isinstance(one, Decide) for one in effects)
    assert all(block_hash == NO_BLOCK for _, _, block_hash in cast(effects))


def test_votes_before_our_start_do_not_start_us() -> None:
    """Over a third may be ahead of our clock; the height begins with its interval, and then where they are."""
    rounds = make_rounds(KEYS[0])
    for signer in KEYS[1:]:
        for kind in VoteKind:
            assert rounds.on_vote(vote(signer, kind, NO_BLOCK, 3)) == []
    assert (rounds.round, rounds.step) == (0, Step.WAITING)
    rounds.start()
    assert rounds.round >= 3


def test_messages_of_another_height_are_refused() -> None:
    """However well they are signed: what they say of that height means nothing at this one."""
    rounds = make_rounds(KEYS[0])
    rounds.start()
    block = block_by(1)
    later = msgspec.structs.replace(block, header=msgspec.structs.replace(block.header, height=2))
    with pytest.raises(Unexpected):
        hear(rounds, propose(later))
    with pytest.raises(Unexpected):
        rounds.on_vote(sign_vote(KEYS[1], GENESIS.network_id, VoteKind.PREVOTE, 2, 0, block.hash))
    assert rounds.proposals == {}
    assert rounds.tally.rounds() == []
