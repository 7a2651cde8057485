"""Block after block: what holds is applied alike by everyone, what does not is refused whole."""

from __future__ import annotations

import msgspec
import pytest

from moed.consensus.blocks import GENESIS_COMMIT, Block, CommitSignature, VoteKind, sign_vote
from moed.consensus.errors import InvalidBlock, InvalidCommit, RuleBroken
from moed.consensus.metagraph import epoch_budget
from moed.consensus.params import DEVNET
from moed.consensus.state import read_account, read_neurons, read_totals, stake_behind
from moed.consensus.transactions import Register, SetWeights, SignedTransaction, Transfer, transactions_root
from moed.consensus.transition import Head
from moed.consensus.turns import proposer
from moed.protocol.codec import decode_record, encode_record
from moed.protocol.identity import Identity
from support.chains import grow, key, make_genesis, sign_commit, signed

CREDIT = 10**9
OPEN = msgspec.structs.replace(DEVNET, commit_reveal=False)
GENESIS = make_genesis((60 * CREDIT, 40 * CREDIT), balances=(10 * CREDIT, 0, 0, 0), params=OPEN)
BOTH = [key(1), key(2)]


def new_head() -> Head:
    return Head.at_genesis(GENESIS)


def test_two_nodes_reach_the_same_root() -> None:
    """A block that one node built executes on another's head to the root that it claims."""
    one, two = new_head(), new_head()
    for _ in range(3):
        block = grow(one, BOTH, [signed(one, key(3), Transfer(to=key(9).public_key, amount=5), one.height)])
        two.advance(two.execute(block), one.commit)
        assert one.state_root == two.state_root == block.header.state_root


def test_a_block_survives_its_bytes() -> None:
    """What is stored and sent decodes to the same block with the same hash."""
    head = new_head()
    grow(head, BOTH)
    block = grow(head, BOTH, [signed(head, key(3), Register())])
    again = decode_record(encode_record(block), Block)
    assert again == block
    assert again.hash == block.hash


def changed(block: Block, **fields: object) -> Block:
    return msgspec.structs.replace(block, header=msgspec.structs.replace(block.header, **fields))


def test_every_rule_of_a_block_is_checked() -> None:
    """Each lie in a header or a body is refused by name, and the head stays where it was."""
    head = new_head()
    grow(head, BOTH)
    good, _ = head.build([signed(head, key(3), Register())], proposer=key(1).public_key, now_ms=head.time_ms + 1)
    forged = signed(head, key(3), Register(), nonce=1)
    lies = {
        "height": changed(good, height=3),
        "parent": changed(good, parent=b"\1" * 32),
        "proposer": changed(good, proposer=key(3).public_key),
        "time in ms": changed(good, time_ms=head.time_ms),
        "transactions root": msgspec.structs.replace(good, transactions=()),
        "hash of the last commit": msgspec.structs.replace(good, last_commit=GENESIS_COMMIT),
        "state root after the block": changed(good, state_root=b"\1" * 32),
        "transactions of the block": head.build([], proposer=key(1).public_key, now_ms=head.time_ms + 1)[0],
    }
    lies["transactions of the block"] = with_transaction(lies["transactions of the block"], forged)
    root = head.state_root
    for rule, lie in lies.items():
        with pytest.raises(InvalidBlock) as refused:
            head.execute(lie)
        assert refused.value.rule == rule
        assert head.state_root == root
    head.execute(good)


def with_transaction(block: Block, transaction: SignedTransaction) -> Block:
    body = msgspec.structs.replace(block, transactions=(transaction,))
    return changed(body, transactions_root=transactions_root((transaction,)))


def test_a_block_from_the_future_gets_no_vote_but_is_followed_when_final() -> None:
    """The clock bounds what is voted for, not what two thirds have decided."""
    head = new_head()
    ahead = head.time_ms + DEVNET.max_clock_drift_ms + 2
    block, _ = head.build([], proposer=key(1).public_key, now_ms=ahead)
    assert not head.is_timely(block, head.time_ms + 1)
    assert head.is_timely(block, head.time_ms + 2)
    assert head.execute(block).block.hash == block.hash


@pytest.mark.parametrize("signers", [[key(1)], [key(2)], [key(3), key(4)], []], ids=["60", "40", "strangers", "nobody"])
def test_a_commit_needs_more_than_two_thirds_of_the_stake(signers: list[Identity]) -> None:
    """Neither of two validators with 60 and 40 per cent is enough; keys without stake count nothing."""
    head = new_head()
    block, _ = head.build([], proposer=key(1).public_key, now_ms=head.time_ms + 1)
    with pytest.raises(InvalidCommit):
        head.check_final(block, sign_commit(GENESIS, block, signers))
    head.check_final(block, sign_commit(GENESIS, block, BOTH))


def test_a_commit_counts_each_validator_once_and_only_what_it_signed() -> None:
    """Sixty of a hundred do not become a hundred and twenty; nor does a signature for another block count."""
    head = new_head()
    block, other = (head.build([], proposer=key(1).public_key, now_ms=head.time_ms + n)[0] for n in (1, 2))
    good = sign_commit(GENESIS, block, BOTH)
    alone, elsewhere = sign_commit(GENESIS, block, [key(1)]), sign_commit(GENESIS, other, BOTH)
    prevotes = tuple(
        CommitSignature(validator=vote.validator, signature=vote.signature)
        for vote in (
            sign_vote(signer, GENESIS.network_id, VoteKind.PREVOTE, 1, 0, block.hash)
            for signer in sorted(BOTH, key=lambda one: one.public_key)
        )
    )
    lies = {
        "twice": msgspec.structs.replace(alone, signatures=alone.signatures * 2),
        "falling": msgspec.structs.replace(good, signatures=good.signatures[::-1]),
        "for another": elsewhere,
        "of another": msgspec.structs.replace(good, signatures=elsewhere.signatures),
        "of another round": msgspec.structs.replace(good, round=1),
        "of prevotes": msgspec.structs.replace(good, signatures=prevotes),
    }
    for lie in lies.values():
        with pytest.raises(InvalidCommit):
            head.check_final(block, lie)
    head.check_final(block, good)


def test_a_block_has_bounds_and_the_first_one_no_commit() -> None:
    """One transaction or byte too many is refused by name, whoever built it; a commit before the first block too."""
    sender = key(3)
    few = msgspec.structs.replace(OPEN, max_block_transactions=2)
    move = Transfer(to=key(9).public_key, amount=1)
    small = msgspec.structs.replace(OPEN, max_block_bytes=2 * signed(new_head(), sender, move).size_bytes)
    for params, rule in ((few, "transactions"), (small, "bytes of transactions")):
        genesis = make_genesis((60 * CREDIT, 40 * CREDIT), balances=(10 * CREDIT,), params=params)
        wide = make_genesis((60 * CREDIT, 40 * CREDIT), balances=(10 * CREDIT,), params=OPEN)
        head = Head.at_genesis(genesis)
        moves = [signed(head, sender, move, nonce) for nonce in range(3)]
        fitting, _ = head.build(moves, proposer=key(1).public_key, now_ms=head.time_ms + 1)
        assert len(fitting.transactions) == 2
        head.execute(fitting)
        crowded, _ = Head.at_genesis(wide).build(moves, proposer=key(1).public_key, now_ms=head.time_ms + 1)
        with pytest.raises(InvalidBlock) as refused:
            head.execute(changed(crowded, parent=head.hash))
        assert refused.value.rule == rule
    head = new_head()
    block, _ = head.build([], proposer=key(1).public_key, now_ms=head.time_ms + 1)
    commit = sign_commit(GENESIS, block, BOTH)
    early = changed(msgspec.structs.replace(block, last_commit=commit), last_commit_hash=commit.hash)
    with pytest.raises(InvalidBlock, match="before the first block"):
        head.execute(early)


def test_an_epoch_pays_miners_and_validators_what_it_may() -> None:
    """Weights on two miners, one twice as good: both earn, in that order, and no more than the budget is minted."""
    head = new_head()
    grow(head, BOTH, [signed(head, key(number), Register()) for number in (3, 4)])
    weights = SetWeights(weights=((2, 200), (3, 100)))
    grow(head, BOTH, [signed(head, key(1), weights), signed(head, key(2), weights)])
    supply = read_totals(head.state).supply
    while head.height < DEVNET.tempo:
        grow(head, BOTH)
    neurons = read_neurons(head.state)
    totals = read_totals(head.state)
    minted = totals.supply - supply
    assert (totals.epoch, totals.epoch_block) == (1, DEVNET.tempo)
    assert 0.999 * epoch_budget(DEVNET, DEVNET.tempo) < minted <= epoch_budget(DEVNET, DEVNET.tempo)
    assert neurons[2].incentive_emission == pytest.approx(2 * neurons[3].incentive_emission, rel=1e-3)
    assert [read_account(head.state, key(4).public_key).balance] == [neurons[3].incentive_emission]
    stakes = [stake_behind(head.state, key(number).public_key) for number in (1, 2)]
    assert stakes[0] > 60 * CREDIT
    assert stakes[1] > 40 * CREDIT
    assert {member.key: member.power for member in head.validators.members} == {
        key(1).public_key: stakes[0],
        key(2).public_key: stakes[1],
    }


def test_every_proposer_gets_its_share_of_turns() -> None:
    """Over many blocks each validator's turns are in proportion to its stake."""
    head = new_head()
    turns: dict[bytes, int] = {key(1).public_key: 0, key(2).public_key: 0}
    for _ in range(50):
        turns[proposer(head.validators, 0)] += 1
        grow(head, BOTH)
    assert turns[key(1).public_key] == pytest.approx(30, abs=1)


def test_the_set_that_decided_signs_even_when_the_next_one_differs() -> None:
    """The commit of an epoch's last block is checked against the validators before the epoch."""
    head = new_head()
    while head.height < DEVNET.tempo + 2:
        grow(head, BOTH)
    assert head.height == DEVNET.tempo + 2
    block, _ = head.build([], proposer=key(1).public_key, now_ms=head.time_ms + 1)
    wrong = msgspec.structs.replace(block, last_commit=sign_commit(GENESIS, block, BOTH))
    with pytest.raises(RuleBroken):
        head.execute(wrong)
