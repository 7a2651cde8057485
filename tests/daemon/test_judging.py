"""Blocks under vote are executed once each, and only those that can soon be voted on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moed.consensus.blocks import NO_BLOCK, Proposal, VoteKind, sign_proposal, sign_vote
from moed.consensus.params import ChainParams
from moed.consensus.rounds import Rounds
from moed.consensus.transactions import Transfer
from moed.consensus.transition import Head
from moed.consensus.turns import proposer
from moed.daemon.judging import FEW_TRANSACTIONS, Judge
from moed.protocol.identity import Identity
from support.chains import key, make_genesis, signed

GENESIS = make_genesis((60, 40), balances=(1_000,), params=ChainParams(fee_per_byte=0, min_stake=0))
BY_KEY: dict[bytes, Identity] = {key(number).public_key: key(number) for number in (1, 2)}


class Elsewhere:
    """Runs blocking functions at once, and counts the blocks that were executed."""

    def __init__(self) -> None:
        self.executed = 0

    async def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.executed += function.__name__ == "_execute"
        return function(*arguments)


def propose_many(head: Head, round_number: int) -> Proposal:
    """A proposal for this round of a block that is too long to be executed at once."""
    turn = BY_KEY[proposer(head.validators, round_number)]
    transfers = [
        signed(head, key(3), Transfer(to=key(9).public_key, amount=1), nonce) for nonce in range(FEW_TRANSACTIONS + 1)
    ]
    block, refused = head.build(transfers, proposer=turn.public_key, now_ms=head.time_ms + 1 + round_number)
    assert refused == []
    return sign_proposal(turn, head.network_id, round_number, -1, block)


@pytest.fixture
def head() -> Head:
    return Head.at_genesis(GENESIS)


async def test_a_block_of_a_far_round_is_executed_when_its_round_is_near(head: Head) -> None:
    """Proposals for every turn of the next rounds cost their check alone, until the rounds come there."""
    elsewhere = Elsewhere()
    judge = Judge(head, elsewhere)
    rounds = Rounds(1, head.validators, None, params=head.params, network_id=head.network_id, is_valid=judge.holds)
    rounds.start()
    for round_number in range(2, 12):
        proposal = propose_many(head, round_number)
        await judge.examine(rounds, proposal)
        rounds.on_proposal(proposal)
    await judge.prepare(rounds)
    assert elsewhere.executed == 0
    rounds.on_vote(sign_vote(key(2), head.network_id, VoteKind.PREVOTE, 1, 5, NO_BLOCK))
    assert rounds.round == 5
    await judge.prepare(rounds)
    await judge.prepare(rounds)
    assert elsewhere.executed == 1  # that of round 6; the jump into round 5 voted on its block at once
    assert judge.executed(rounds.proposals[6].block).block == rounds.proposals[6].block


async def test_a_block_of_the_round_under_way_is_executed_before_the_vote(head: Head) -> None:
    """So that no vote ever holds up the event loop for as long as a block takes."""
    elsewhere = Elsewhere()
    judge = Judge(head, elsewhere)
    rounds = Rounds(1, head.validators, None, params=head.params, network_id=head.network_id, is_valid=judge.holds)
    for round_number in (0, 1):
        await judge.examine(rounds, propose_many(head, round_number))
        assert elsewhere.executed == round_number + 1
