"""One height of a chain of four validators: their machines, what they propose and what they vote."""

from __future__ import annotations

from collections.abc import Sequence

from moed.consensus.blocks import Block, Proposal, Vote, VoteKind, sign_proposal, sign_vote
from moed.consensus.effects import CastVote, Effect, Lock, Step, Timeout
from moed.consensus.rounds import Rounds
from moed.consensus.transition import Head
from moed.consensus.turns import proposer
from moed.protocol.identity import Identity
from support.chains import key, make_genesis

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
