"""Random lives of a whole ledger: whatever is asked, in whatever order, no unit appears, is lost, or changes hands."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from moed.consensus.errors import InvalidTransaction
from moed.consensus.evidence import double_vote
from moed.consensus.genesis import genesis_state
from moed.consensus.ledger import apply
from moed.consensus.metagraph import close_epoch, epoch_budget
from moed.consensus.params import ChainParams
from moed.consensus.state import (
    Account,
    Overlay,
    Pool,
    Position,
    State,
    StateRecord,
    Totals,
    decode_state_record,
    pool_of,
    read_account,
    read_neurons,
    read_pool,
    read_totals,
    read_validators,
    units_in,
)
from moed.consensus.transactions import (
    AddStake,
    Body,
    CommitWeights,
    Delegate,
    Register,
    ReportEvidence,
    RevealWeights,
    RotateKey,
    SetOwner,
    SetTake,
    SetWeights,
    SignedTransaction,
    Sponsor,
    Transfer,
    Undelegate,
    Withdraw,
    sign_consent,
    sign_transaction,
    weights_commitment,
)
from moed.consensus.votes import VoteKind, sign_vote
from support.chains import key, make_genesis

KEYS = 12
PARAMS = ChainParams(
    tempo=3,
    emission_per_block=1_000_003,
    halving_interval=4,
    max_uids=5,
    max_registrations_per_block=2,
    immunity_period=2,
    fee_per_byte=1,
    min_burn=100,
    max_burn=5_000,
    burn_half_life=3,
    min_stake=10,
    unbonding_blocks=5,
    take_pause_blocks=2,
    slash_ppm=333_333,
)
GENESIS = make_genesis((700_000, 400_001), balances=(300_000, 200_000, 100_000, 90_000, 80_000), params=PARAMS)
GENESIS = msgspec.structs.replace(  # validators can pay fees too
    GENESIS, accounts=tuple(msgspec.structs.replace(one, balance=max(50_000, one.balance)) for one in GENESIS.accounts)
)
ALL = list(range(1, KEYS + 1))
AMOUNTS = [1, 2, 7, 49, 1_000, 9_999, 30_001, 200_000]
SALT = b"s" * 32
ROW = ((0, 3), (1, 1), (2, 5))


def public(number: int) -> bytes:
    return key(number).public_key


def consent(worker: int, owner: int) -> bytes:
    return sign_consent(key(worker), GENESIS.network_id, public(owner))


def lie(number: int, height: int) -> Body:
    votes = [sign_vote(key(number), GENESIS.network_id, VoteKind.PREVOTE, height, 0, bytes([n]) * 32) for n in (1, 2)]
    return ReportEvidence(evidence=double_vote(*votes))


Choose = Callable[[Sequence[Any]], Any]
"""Picks one of several; the draws of a life all come from it."""


class Life:
    """Twelve keys send whatever they like; epochs end. Mostly somebody tries who may, or lives would be refusals."""

    def __init__(self) -> None:
        self.state = genesis_state(GENESIS)
        self.height = 1
        self.minted = read_totals(self.state).supply
        self.sent: list[SignedTransaction] = []
        self.applied: Counter[str] = Counter()

    def act(self, action: str, choose: Choose) -> None:
        """Do one thing of `ACTIONS`."""
        ACTIONS[action](self, choose)

    def attempt(self, sender: int, body: Body) -> None:
        """Send one transaction; a refusal must leave every byte as it was."""
        nonce = read_account(self.state, public(sender)).nonce
        transaction = sign_transaction(key(sender), GENESIS.network_id, nonce, body)
        transaction.check_signature(GENESIS.network_id)
        if self.apply(transaction):
            self.sent.append(transaction)
            self.applied[type(body).__name__] += 1

    def apply(self, transaction: SignedTransaction) -> bool:
        step = Overlay(self.state)
        try:
            apply(step, transaction, params=PARAMS, height=self.height)
        except InvalidTransaction as error:
            refusal = type(error)
        else:
            self.take(step)
            return True
        assert refusal is not InvalidTransaction, "a refusal without a name of its own"
        assert not step.changes
        return False

    def take(self, step: Overlay) -> None:
        """Make an overlay's changes the state; what is stored reads back as what it was."""
        for name, encoded in step.encoded_changes().items():
            assert decode_state_record(name, encoded) == step.changes[name]
        self.state.apply(step.changes)

    def somebody(self, choose: Choose, able: Iterable[bytes]) -> int:
        """The number of one of the keys that are able, now and then of any."""
        numbers = [number for number in ALL if public(number) in set(able)]
        return int(choose(numbers * 16 + ALL))

    def rich(self, amount: int) -> list[bytes]:
        return [one for one in map(public, ALL) if read_account(self.state, one).balance >= amount]

    def positions(self) -> list[tuple[bytes, bytes, Position]]:
        """Pool, holder and position of everybody who holds something or has it leaving."""
        records = records_of(self.state).items()
        found = [(name[1:33], name[33:], one) for name, one in records if isinstance(one, Position)]
        return [(pool, holder, one) for pool, holder, one in found if one.shares or one.leaving]

    # what they do

    def transfer(self, choose: Choose) -> None:
        amount = choose(AMOUNTS)
        self.attempt(self.somebody(choose, self.rich(amount)), Transfer(to=public(choose(ALL)), amount=amount))

    def delegate(self, choose: Choose) -> None:
        amount, other = choose(AMOUNTS), choose(ALL)
        sender = self.somebody(choose, self.rich(amount))
        self.attempt(sender, AddStake(amount=amount) if sender == other else Delegate(to=public(other), amount=amount))

    def undelegate(self, choose: Choose) -> None:
        pool, holder, _ = choose(self.positions())
        self.attempt(self.somebody(choose, [holder]), Undelegate(pool=pool, amount=choose([None, *AMOUNTS])))

    def withdraw(self, choose: Choose) -> None:
        leaving = [one for one in self.positions() if one[2].leaving]
        pool, holder, _ = choose(leaving or self.positions())
        self.attempt(self.somebody(choose, [holder]), Withdraw(pool=pool))

    def register(self, choose: Choose) -> None:
        """For oneself, or for another key that agrees."""
        free = [one for one in map(public, ALL) if read_account(self.state, one).uid is None]
        worker, sender = self.somebody(choose, free), self.somebody(choose, self.rich(5_000))
        if choose([True, False]):
            self.attempt(worker, Register(owner=choose([None, public(sender)])))
        else:
            body = Sponsor(key=public(worker), consent=consent(worker, sender), expires=choose([0, self.height + 9]))
            self.attempt(sender, body)

    def rotate(self, choose: Choose) -> None:
        neuron = choose(read_neurons(self.state))
        sender, other = self.somebody(choose, [neuron.payee]), choose(ALL)
        body = RotateKey(
            uid=neuron.uid, key=public(other), consent=consent(other, sender), expires=choose([0, self.height + 9])
        )
        self.attempt(sender, body)

    def administer(self, choose: Choose) -> None:
        neuron = choose(read_neurons(self.state))
        sender = self.somebody(choose, [neuron.payee])
        bodies = [SetTake(uid=neuron.uid, take_ppm=choose([0, 90_000, 150_000, 200_000]))]
        self.attempt(sender, choose([*bodies, SetOwner(uid=neuron.uid, owner=public(choose(ALL)))]))

    def weigh(self, choose: Choose) -> None:
        """Validators, and one who may be none, show what they hid and hide the next."""
        permitted = [neuron.key for neuron in read_neurons(self.state) if neuron.has_permit]
        for sender in sorted({choose(ALL), *(number for number in ALL if public(number) in permitted)}):
            self.attempt(sender, RevealWeights(weights=ROW, salt=SALT))
            self.attempt(sender, CommitWeights(commitment=weights_commitment(public(sender), SALT, ROW)))

    def accuse(self, choose: Choose) -> None:
        """A validator signed twice, a while ago; or somebody who was none did."""
        accused = self.somebody(choose, [member.key for member in read_validators(self.state).members])
        pool = read_pool(self.state, pool_of(self.state, public(accused)))
        before = self.applied["ReportEvidence"]
        self.attempt(choose(ALL), lie(accused, max(1, self.height - choose([0, 1, 4, 8]))))
        if pool.leaving > 10:
            self.applied["slash of what leaves"] += self.applied["ReportEvidence"] - before

    def replay(self, choose: Choose) -> None:
        """What was applied once never applies again."""
        if self.sent:
            assert not self.apply(choose(self.sent))

    def end_blocks(self, choose: Choose) -> None:
        for _ in range(choose([1, 2, 6])):
            self.end_block()

    def end_block(self) -> None:
        """The epoch may end; it pays no more than its budget, and mints only what the treasury does not hold."""
        if self.height % PARAMS.tempo == 0:
            step, before = Overlay(self.state), read_totals(self.state)
            close_epoch(step, PARAMS, self.height)
            after = read_totals(step)
            paid = after.supply - before.supply + before.treasury - after.treasury
            assert 0 <= paid <= epoch_budget(PARAMS, self.height)
            assert after.supply == before.supply or after.treasury == 0
            self.minted += after.supply - before.supply
            self.take(step)
        self.height += 1
        totals = read_totals(self.state)
        self.state.apply({b"t": msgspec.structs.replace(totals, registrations_in_block=0)})

    # what must hold after each of it

    def check(self) -> None:
        records = records_of(self.state)
        totals = read_totals(self.state)
        # balances, stakes, what leaves, treasury and burned are all units ever made
        assert units_in(records.values()) == totals.supply == self.minted
        for name, pool in records.items():
            if isinstance(pool, Pool):
                held = [one for at, one in records.items() if isinstance(one, Position) and at[1:33] == name[1:]]
                # the shares of a pool are those of its holders, and worth something as long as there are any
                assert sum(one.shares for one in held) == pool.shares
                assert sum(part.shares for one in held for part in one.leaving) == pool.leaving_shares
                assert (pool.stake > 0, pool.leaving > 0) == (pool.shares > 0, pool.leaving_shares > 0)
        # each uid has one working key and one pool, and nothing else points to it
        neurons = read_neurons(self.state)
        for kind in (Account, Pool):
            pointing = [one.uid for one in records.values() if isinstance(one, kind) and one.uid is not None]
            assert sorted(pointing) == [neuron.uid for neuron in neurons]
        assert all(read_account(self.state, neuron.key).uid == neuron.uid for neuron in neurons)
        assert len(neurons) == totals.uids <= PARAMS.max_uids
        # somebody decides the next block
        assert all(member.power > 0 for member in read_validators(self.state).members)
        assert read_validators(self.state).members


ACTIONS: dict[str, Callable[[Life, Choose], None]] = {
    action.__name__: action
    for action in (
        Life.transfer,
        Life.delegate,
        Life.undelegate,
        Life.withdraw,
        Life.register,
        Life.rotate,
        Life.administer,
        Life.weigh,
        Life.accuse,
        Life.replay,
        Life.end_blocks,
    )
}


def records_of(state: State) -> dict[bytes, StateRecord]:
    return {name: decode_state_record(name, encoded) for name, encoded in state.encoded().items()}


class ShortLives(RuleBasedStateMachine):
    """Lives that hypothesis makes up, and makes shorter when one fails."""

    def __init__(self) -> None:
        super().__init__()
        self.life = Life()

    @rule(draw=st.data(), action=st.sampled_from(sorted(ACTIONS)))
    def act(self, draw: st.DataObject, action: str) -> None:
        self.life.act(action, lambda several: draw.draw(st.sampled_from(several)))

    @invariant()
    def holds(self) -> None:
        self.life.check()


TestShortLives = ShortLives.TestCase
TestShortLives.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


def test_long_lives_keep_every_unit_in_its_place() -> None:
    """Four seeded lives of 300 actions, in which everything that can be done was done, slashes of leaving stake too."""
    done: Counter[str] = Counter()
    for seed in range(4):
        choose, life = random.Random(f"ledger {seed}").choice, Life()
        for number in range(300):
            action = choose(sorted(ACTIONS))
            try:
                life.act(action, choose)
                life.check()
            except Exception as error:  # any at all: it goes on, with what brings it back
                error.add_note(f"seed {seed}, action {number}: {action}")
                raise
        done += life.applied
    kinds = {kind.__name__ for kind in Body.__args__ if kind is not SetWeights}  # open weights are another network's
    assert kinds | {"slash of what leaves"} <= done.keys(), done


def test_a_total_is_no_holder_twice() -> None:
    """The sum over records counts what the totals hold besides, and not the supply itself."""
    assert units_in([Totals(supply=99, treasury=2, burned=3), Account(balance=5), Pool(stake=7, leaving=11)]) == 28
