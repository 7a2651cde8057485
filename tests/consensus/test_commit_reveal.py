"""Tests of hidden weights in the ledger: a row counts if its hash came an epoch before it, and else not at all."""

from __future__ import annotations

import pytest

from moed.consensus.errors import NotPermitted, NotRegistered, WrongReveal
from moed.consensus.ledger import apply
from moed.consensus.metagraph import epoch_inputs
from moed.consensus.params import ChainParams
from moed.consensus.state import Neuron, Overlay, read_neuron, read_neurons
from moed.consensus.transactions import (
    Body,
    CommitWeights,
    Register,
    RevealWeights,
    SetWeights,
    sign_transaction,
    weights_commitment,
)
from moed.consensus.transition import Head
from support.chains import grow, key, make_genesis, signed

TEMPO = 10
PARAMS = ChainParams(min_stake=0, min_burn=0, fee_per_byte=0, tempo=TEMPO, immunity_period=0, max_uids=4)
BOTH = [key(1), key(2)]
SALT = b"s" * 32
ROW = ((2, 65_535), (3, 100))


class Life:
    """A chain of two validators and two miners, grown one block at a time."""

    def __init__(self) -> None:
        self.head = Head.at_genesis(make_genesis((60, 40), balances=(0, 0, 0), params=PARAMS))
        self.nonces = dict.fromkeys(range(1, 6), 0)
        self.block((3, Register()), (4, Register()))

    def block(self, *sent: tuple[int, Body]) -> None:
        """One block with these bodies of these senders, each of which must apply."""
        transactions = []
        for sender, body in sent:
            transactions.append(signed(self.head, key(sender), body, self.nonces[sender]))
            self.nonces[sender] += 1
        grow(self.head, BOTH, transactions)

    def until_epoch(self, number: int) -> None:
        """Empty blocks up to the last one of the epoch before ``number``."""
        while self.head.height < number * TEMPO:
            self.block()

    def refuses(self, sender: int, body: Body, why: type[Exception]) -> None:
        """The next block would not take this body."""
        transaction = sign_transaction(key(sender), self.head.network_id, self.nonces[sender], body)
        _, refused = self.head.build([transaction], proposer=key(1).public_key, now_ms=self.head.time_ms + 1)
        assert [type(error) for _, error in refused] == [why]

    def neuron(self, uid: int) -> Neuron:
        neuron = read_neuron(self.head.state, uid)
        assert neuron is not None
        return neuron


def commit_of(sender: int, salt: bytes = SALT, row: tuple[tuple[int, int], ...] = ROW) -> CommitWeights:
    return CommitWeights(commitment=weights_commitment(key(sender).public_key, salt, row))


REVEAL = RevealWeights(weights=ROW, salt=SALT)


def test_a_row_counts_from_its_reveal_as_of_its_commit() -> None:
    """Hidden in one epoch, in force from the next one on, dated by the block that took its hash."""
    life = Life()
    life.block((1, commit_of(1)))
    committed_at = life.head.height
    life.until_epoch(1)
    assert life.neuron(0).weights == ()
    assert life.neuron(2).incentive_u16 == 0
    life.block((1, REVEAL))
    assert life.neuron(0).weights == ROW
    assert life.neuron(0).last_update == committed_at
    assert life.neuron(0).commits == ()
    life.until_epoch(2)
    assert life.neuron(2).incentive_u16 > life.neuron(3).incentive_u16 > 0


def test_too_early_and_too_late_count_as_none() -> None:
    """Not in the epoch of the commit, not two epochs after; then the row in force stays the one before."""
    life = Life()
    life.block((1, commit_of(1)))
    life.refuses(1, REVEAL, WrongReveal)
    life.until_epoch(2)
    life.refuses(1, REVEAL, WrongReveal)
    assert life.neuron(0).weights == ()
    assert life.neuron(0).commits == ()


def test_another_row_or_salt_or_sender_counts_as_none() -> None:
    """Only what was hashed opens a commitment, and a copied commitment opens for nobody but its first sender."""
    life = Life()
    life.block((1, commit_of(1)), (2, commit_of(1)))  # the second validator copies the first one's hash
    life.until_epoch(1)
    life.refuses(1, RevealWeights(weights=((2, 1),), salt=SALT), WrongReveal)
    life.refuses(1, RevealWeights(weights=ROW, salt=b"t" * 32), WrongReveal)
    life.refuses(2, REVEAL, WrongReveal)
    life.block((1, REVEAL))
    life.refuses(1, REVEAL, WrongReveal)  # once is enough


def test_the_last_commit_of_an_epoch_counts() -> None:
    """A validator that restarts may commit again; what it committed to first is gone."""
    life = Life()
    life.block((1, commit_of(1, row=((2, 9),))))
    life.block((1, commit_of(1)))
    assert len(life.neuron(0).commits) == 1
    life.until_epoch(1)
    life.refuses(1, RevealWeights(weights=((2, 9),), salt=SALT), WrongReveal)
    life.block((1, REVEAL), (1, commit_of(1)))
    assert life.neuron(0).weights == ROW
    assert [commit.epoch for commit in life.neuron(0).commits] == [1]


def test_each_network_has_one_way_to_write_weights() -> None:
    """Where weights are hidden first nobody sets them in the open, and the other way round."""
    life = Life()
    life.refuses(1, SetWeights(weights=ROW), NotPermitted)
    life.refuses(3, commit_of(3), NotPermitted)  # a miner
    life.refuses(5, commit_of(5), NotRegistered)
    open_head = Head.at_genesis(make_genesis(params=ChainParams(commit_reveal=False, min_stake=0, fee_per_byte=0)))
    for body in (commit_of(1), REVEAL):
        transaction = signed(open_head, key(1), body)
        with pytest.raises(NotPermitted):
            apply(Overlay(open_head.state), transaction, params=open_head.params, height=1)


def test_a_uid_taken_after_the_commit_gets_nothing_of_it() -> None:
    """Weights hidden for a uid's old holder do not pay its new one."""
    life = Life()
    life.block((1, commit_of(1)))
    life.block((5, Register()))  # all four uids are taken, so the least earning one, uid 2, is replaced
    assert life.neuron(2).key == key(5).public_key
    life.until_epoch(1)
    life.block((1, REVEAL))
    life.until_epoch(2)
    assert life.neuron(2).incentive_u16 == 0
    assert life.neuron(3).incentive_u16 > 0


def test_the_epoch_is_told_of_commits_that_wait() -> None:
    """``commit_blocks`` holds the earliest one of each uid, and None where there is none."""
    life = Life()
    life.block((1, commit_of(1)))
    first = life.head.height
    life.until_epoch(1)
    life.block((1, commit_of(1, salt=b"u" * 32)))
    inputs = epoch_inputs(life.head.state, PARAMS, 2 * TEMPO)
    assert inputs.commit_blocks == [first, None, None, None]
    open_inputs = epoch_inputs(life.head.state, ChainParams(commit_reveal=False, min_stake=0, tempo=TEMPO), 2 * TEMPO)
    assert open_inputs.commit_blocks is None
    assert len(read_neurons(life.head.state)) == 4
