"""Agreement by scenario and by simulation: one block, whatever the order, as long as two thirds take part."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import pytest

from moed.consensus.blocks import (
    NO_BLOCK,
    Block,
    Commit,
    Proposal,
    Vote,
    VoteKind,
    sign_proposal,
    sign_vote,
    signed_share,
)
from moed.consensus.effects import CastVote, Decide, Effect, Equivocation, Lock, Propose, ScheduleTimeout, Step, Timeout
from moed.consensus.rounds import MAX_ROUNDS_AHEAD, Rounds
from moed.consensus.tally import MAX_VOTES_EACH
from moed.consensus.transactions import Register, sign_transaction, transactions_root
from moed.consensus.transition import Head
from moed.consensus.turns import proposer
from moed.protocol.errors import BadSignature, Malformed, Unexpected
from moed.protocol.identity import Identity
from support.chains import key, make_genesis, sign_commit

STAKES = (30, 30, 20, 20)
GENESIS = make_genesis(STAKES)
KEYS = [key(number) for number in range(1, len(STAKES) + 1)]
BY_KEY: dict[bytes, Identity] = {one.public_key: one for one in KEYS}


def new_head() -> Head:
    return Head.at_genesis(GENESIS)


def make_rounds(me: Identity | None, *, accepts: bool = True) -> Rounds:
    head = new_head()
    return Rounds(
        1,
        head.validators,
        me.public_key if me else None,
        params=GENESIS.params,
        network_id=GENESIS.network_id,
        is_valid=lambda _: accepts,
    )


def turn_of(round_number: int) -> Identity:
    return BY_KEY[proposer(new_head().validators, round_number)]


def block_by(number: int, round_number: int = 0) -> Block:
    """A block of that round's proposer that differs by its time."""
    head = new_head()
    return head.build([], proposer=turn_of(round_number).public_key, now_ms=head.time_ms + number)[0]


def propose(block: Block, round_number: int = 0, valid_round: int = -1) -> Proposal:
    return sign_proposal(turn_of(round_number), GENESIS.network_id, round_number, valid_round, block)


def vote(signer: Identity, kind: VoteKind, block_hash: bytes, round_number: int = 0) -> Vote:
    return sign_vote(signer, GENESIS.network_id, kind, 1, round_number, block_hash)


def hear(rounds: Rounds, proposal: Proposal) -> list[Effect]:
    """Check a proposal and take it, as whoever drives the rounds does."""
    rounds.check_proposal(proposal)
    return rounds.on_proposal(proposal)


def cast(effects: Sequence[Effect]) -> list[tuple[VoteKind, int, bytes]]:
    return [(one.kind, one.round, one.block_hash) for one in effects if isinstance(one, CastVote)]


def others(*without: Identity) -> list[Identity]:
    return [one for one in KEYS if one not in without]


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


def lock_on(rounds: Rounds, block: Block) -> Lock:
    """Bring a machine to having precommitted ``block`` in round 0, without a decision; what it then put on disk."""
    rounds.start()
    hear(rounds, propose(block))
    effects: list[Effect] = []
    for signer in KEYS[:3]:
        effects = rounds.on_vote(vote(signer, VoteKind.PREVOTE, block.hash))
    assert cast(effects) == [(VoteKind.PRECOMMIT, 0, block.hash)]
    rounds.on_timeout(Timeout(1, 0, Step.PRECOMMIT))
    assert rounds.round == 1
    [lock] = [one.lock for one in effects if isinstance(one, CastVote) and one.lock is not None]
    return lock


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


def test_more_than_a_third_in_a_later_round_pulls_along() -> None:
    """Rule 9: over one third of the stake is at least one honest validator."""
    rounds = make_rounds(KEYS[0])
    rounds.start()
    rounds.on_vote(vote(KEYS[1], VoteKind.PREVOTE, NO_BLOCK, 5))
    assert rounds.round == 0
    rounds.on_vote(vote(KEYS[2], VoteKind.PREVOTE, NO_BLOCK, 5))
    assert rounds.round == 5


def test_a_stale_timeout_changes_nothing() -> None:
    """A time-out names its height, round and step; any other moment ignores it."""
    rounds = make_rounds(KEYS[0])
    rounds.start()
    hear(rounds, propose(block_by(1)))
    for stale in (Timeout(1, 0, Step.PROPOSE), Timeout(2, 0, Step.PREVOTE), Timeout(1, 3, Step.PREVOTE)):
        assert rounds.on_timeout(stale) == []
    assert (rounds.round, rounds.step) == (0, Step.PREVOTE)


def test_two_votes_in_one_round_are_shown_and_count_once() -> None:
    """Equivocation is evidence, and whoever signs two has voted once."""
    rounds = make_rounds(None)
    rounds.start()
    rounds.on_vote(vote(KEYS[0], VoteKind.PREVOTE, b"\1" * 32))
    effects = rounds.on_vote(vote(KEYS[0], VoteKind.PREVOTE, b"\2" * 32))
    assert [type(one) for one in effects] == [Equivocation]
    assert not rounds.tally.has_quorum_of_any(VoteKind.PREVOTE, 0)
    assert rounds.tally.voters(0) == {KEYS[0].public_key}


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
    for signer in (KEYS[0], KEYS[1]):
        rounds.on_vote(vote(signer, VoteKind.PREVOTE, block.hash))
    assert not rounds.tally.has_quorum(VoteKind.PREVOTE, 0, block.hash)
    rounds.on_vote(wanted)
    assert rounds.tally.has_quorum(VoteKind.PREVOTE, 0, block.hash)


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


def test_over_a_third_spread_over_later_rounds_pulls_along() -> None:
    """Rule 9 asks where a third of the stake is or beyond: not all of it need be seen in one round."""
    rounds = make_rounds(KEYS[0])
    rounds.start()
    rounds.on_vote(vote(KEYS[1], VoteKind.PREVOTE, NO_BLOCK, 4))
    rounds.on_vote(vote(KEYS[2], VoteKind.PREVOTE, NO_BLOCK, 9))
    assert rounds.round == 4


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


def test_a_restart_after_a_vote_for_none_is_locked_on_nothing() -> None:
    """A precommit for no block is no lock: in the next round a fresh block gets our vote."""
    before = [vote(KEYS[0], kind, NO_BLOCK) for kind in VoteKind]
    rounds = make_rounds(KEYS[0])
    rounds.resume([], before)
    rounds.start()
    rounds.on_timeout(Timeout(1, 0, Step.PRECOMMIT))
    block = block_by(1, 1)
    assert (VoteKind.PREVOTE, 1, block.hash) in cast(hear(rounds, propose(block, 1)))


def test_the_share_of_a_commit_is_its_stake() -> None:
    """What people read beside a block: whose signatures are in, by stake and not by heads."""
    block = block_by(1)
    validators = new_head().validators
    for signers, share in ((KEYS, 1.0), (KEYS[:2], 0.6), (KEYS[2:3], 0.2)):
        assert signed_share(sign_commit(GENESIS, block, signers), validators) == pytest.approx(share)
    assert signed_share(sign_commit(GENESIS, block, []), validators) == 0


def test_those_who_are_missing_are_named() -> None:
    """Of whom nothing was heard in the round under way is what stands still for."""
    rounds = make_rounds(None)
    rounds.start()
    rounds.on_vote(vote(KEYS[1], VoteKind.PREVOTE, NO_BLOCK))
    rounds.on_vote(vote(KEYS[3], VoteKind.PREVOTE, NO_BLOCK))
    assert set(rounds.missing()) == {KEYS[0].public_key, KEYS[2].public_key}
