"""Random lives of a whole ledger: whatever is asked, in whatever order, no unit appears, is lost, or changes hands."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

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
    read_account,
    read_neurons,
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

KEYS = 9
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
GENESIS = make_genesis((700_000, 400_001), balances=(300_000, 200_000, 100_000, 0, 0), params=PARAMS)
NUMBERS = st.integers(1, KEYS)
AMOUNTS = st.one_of(st.integers(1, 50), st.integers(1, 500_000))
SALT = b"s" * 32
ROW = ((0, 3), (1, 1), (2, 5))


def public(number: int) -> bytes:
    return key(number).public_key


def consent(worker: int, owner: int) -> bytes:
    return sign_consent(key(worker), GENESIS.network_id, public(owner))


def lie(number: int, height: int) -> Body:
    votes = [sign_vote(key(number), GENESIS.network_id, VoteKind.PREVOTE, height, 0, bytes([n]) * 32) for n in (1, 2)]
    return ReportEvidence(evidence=double_vote(*votes))


class LedgerLife(RuleBasedStateMachine):
    """Nine keys send whatever they like; epochs end; the sums are looked at after every step."""

    sent = Bundle("sent")

    def __init__(self) -> None:
        super().__init__()
        self.state = genesis_state(GENESIS)
        self.height = 1
        self.minted = read_totals(self.state).supply

    def attempt(self, sender: int, body: Body) -> SignedTransaction | None:
        """Apply one transaction; a refusal must leave every byte as it was."""
        nonce = read_account(self.state, public(sender)).nonce
        transaction = sign_transaction(key(sender), GENESIS.network_id, nonce, body)
        transaction.check_signature(GENESIS.network_id)
        return transaction if self.apply(transaction) else None

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

    @rule(target=sent, sender=NUMBERS, other=NUMBERS, amount=AMOUNTS, kind=st.integers(0, 3), whole=st.booleans())
    def move(self, sender: int, other: int, amount: int, kind: int, whole: bool) -> object:
        """Money and stake go back and forth."""
        bodies: list[Callable[[], Body]] = [
            lambda: Transfer(to=public(other), amount=amount),
            lambda: AddStake(amount=amount),
            lambda: Delegate(to=public(other), amount=amount),
            lambda: Undelegate(pool=public(other), amount=None if whole else amount),
        ]
        done = self.attempt(sender, bodies[kind]())
        return multiple() if done is None else done

    @rule(sender=NUMBERS, other=NUMBERS)
    def withdraw(self, sender: int, other: int) -> None:
        self.attempt(sender, Withdraw(pool=public(other)))

    @rule(sender=NUMBERS, other=NUMBERS, expires=st.integers(0, 30))
    def register(self, sender: int, other: int, expires: int) -> None:
        """For oneself, or for another key that agrees."""
        if sender == other:
            self.attempt(sender, Register())
        else:
            self.attempt(sender, Sponsor(key=public(other), consent=consent(other, sender), expires=expires))

    @rule(sender=NUMBERS, other=NUMBERS, uid=st.integers(0, 5), expires=st.integers(0, 30))
    def rotate(self, sender: int, other: int, uid: int, expires: int) -> None:
        self.attempt(sender, RotateKey(uid=uid, key=public(other), consent=consent(other, sender), expires=expires))

    @rule(sender=NUMBERS, other=NUMBERS, uid=st.integers(0, 5), take=st.integers(0, 200_000))
    def administer(self, sender: int, other: int, uid: int, take: int) -> None:
        self.attempt(sender, SetTake(uid=uid, take_ppm=take))
        self.attempt(sender, SetOwner(uid=uid, owner=public(other)))

    @rule(sender=NUMBERS)
    def weigh(self, sender: int) -> None:
        """Show what was hidden, and hide the next."""
        self.attempt(sender, RevealWeights(weights=ROW, salt=SALT))
        self.attempt(sender, CommitWeights(commitment=weights_commitment(public(sender), SALT, ROW)))

    @rule(sender=NUMBERS, accused=NUMBERS, back=st.integers(0, 8))
    def accuse(self, sender: int, accused: int, back: int) -> None:
        if self.height > back:
            self.attempt(sender, lie(accused, self.height - back))

    @rule(transaction=sent)
    def replay(self, transaction: SignedTransaction) -> None:
        """What was applied once never applies again."""
        assert not self.apply(transaction)

    @rule()
    def end_block(self) -> None:
        """The epoch may end; it mints no more than its budget, and only what the treasury does not hold."""
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

    @invariant()
    def supply_is_conserved(self) -> None:
        """Balances, stakes, what leaves, treasury and burned are all units ever made."""
        assert units_in(self.state.records()) == read_totals(self.state).supply == self.minted

    @invariant()
    def shares_belong_to_somebody(self) -> None:
        """The shares of every pool are those of its holders, and are worth something as long as there are any."""
        records = records_of(self.state)
        for name, pool in records.items():
            if not isinstance(pool, Pool):
                continue
            held = [one for at, one in records.items() if isinstance(one, Position) and at[1:33] == name[1:]]
            assert sum(one.shares for one in held) == pool.shares
            assert sum(part.shares for one in held for part in one.leaving) == pool.leaving_shares
            assert (pool.stake > 0) == (pool.shares > 0)
            assert (pool.leaving > 0) == (pool.leaving_shares > 0)

    @invariant()
    def uids_keys_and_pools_agree(self) -> None:
        """Each uid has one working key and one pool, and nothing else points to it."""
        neurons = read_neurons(self.state)
        assert len(neurons) <= PARAMS.max_uids
        records = records_of(self.state)
        accounts = [one for one in records.values() if isinstance(one, Account) and one.uid is not None]
        pools = [one for one in records.values() if isinstance(one, Pool) and one.uid is not None]
        uids = [neuron.uid for neuron in neurons]
        assert sorted(one.uid for one in accounts if one.uid is not None) == uids
        assert sorted(one.uid for one in pools if one.uid is not None) == uids
        assert all(read_account(self.state, neuron.key).uid == neuron.uid for neuron in neurons)

    @invariant()
    def somebody_decides_the_next_block(self) -> None:
        members = read_validators(self.state).members
        assert members
        assert all(member.power > 0 for member in members)


def records_of(state: State) -> dict[bytes, StateRecord]:
    return {name: decode_state_record(name, encoded) for name, encoded in state.encoded().items()}


def test_a_total_is_no_holder_twice() -> None:
    """The sum over records counts what the totals hold besides, and not the supply itself."""
    assert units_in([Totals(supply=99, treasury=2, burned=3), Account(balance=5), Pool(stake=7, leaving=11)]) == 28


TestLedgerLife = LedgerLife.TestCase
TestLedgerLife.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
