"""Uids: their price, their owners, and the keys that work for them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moed.consensus.errors import (
    AlreadyRegistered,
    InsufficientBalance,
    KeyExpired,
    KeyInUse,
    NotPermitted,
    NotRegistered,
)
from moed.consensus.evidence import double_vote
from moed.consensus.params import CREDIT, ChainParams, emission_at
from moed.consensus.registration import burn_price, register, registration_price
from moed.consensus.state import (
    Overlay,
    Totals,
    change,
    neuron_key,
    pool_of,
    read_account,
    read_neuron,
    read_totals,
    read_validators,
)
from moed.consensus.transactions import (
    AddStake,
    Delegate,
    Register,
    ReportEvidence,
    RotateKey,
    SetOwner,
    SetWeights,
    Sponsor,
    Transfer,
    Undelegate,
    Withdraw,
    sign_consent,
)
from moed.consensus.votes import NO_BLOCK, VoteKind, sign_vote
from moed.protocol.errors import BadSignature
from support.chains import key
from support.ledgers import Ledger

PARAMS = ChainParams(
    tempo=10,
    commit_reveal=False,
    fee_per_byte=0,
    max_uids=4,
    max_registrations_per_block=100,
    immunity_period=0,
    min_burn=CREDIT,
    max_burn=100 * CREDIT,
    burn_step_ppm=500_000,
    burn_half_life=10,
    emission_per_block=0,
)
OWNER, FRESH = 5, 20


def ledger() -> Ledger:
    """Two validators; keys 3, 4 and 5 hold 100 each."""
    return Ledger((60, 40), (100, 100, 100), PARAMS)


def consent(book: Ledger, worker: int, owner: int) -> bytes:
    return sign_consent(key(worker), book.genesis.network_id, key(owner).public_key)


def rotate(book: Ledger, uid: int, to: int, owner: int, expires: int = 0) -> None:
    body = RotateKey(uid=uid, key=key(to).public_key, consent=consent(book, to, owner), expires=expires)
    book.send(owner, body)


def test_free_slots_cost_nothing_and_taken_ones_what_demand_makes_them() -> None:
    """Each replacement raises the price by half; it falls by half in each half-life without one."""
    book = ledger()
    assert registration_price(read_totals(book.state), PARAMS, book.height) == 0
    for number in (3, 4):
        book.send(number, Register())
    assert (book.balance(3), book.balance(4)) == (100 * CREDIT, 100 * CREDIT)
    with pytest.raises(InsufficientBalance):
        book.send(30, Register())
    book.send(OWNER, Register())
    totals = read_totals(book.state)
    assert (book.balance(OWNER), totals.burned) == (99 * CREDIT, CREDIT)
    assert registration_price(totals, PARAMS, book.height) == 3 * CREDIT // 2
    assert registration_price(totals, PARAMS, book.height + 5) == 3 * CREDIT // 2 * 3 // 4
    assert registration_price(totals, PARAMS, book.height + 10) == CREDIT  # not under the least


@pytest.mark.parametrize(
    ("emissions", "registered", "gone"),
    [((1, 5), (30, 20), 2), ((5, 1), (20, 30), 3), ((5, 5), (30, 20), 3), ((5, 5), (20, 20), 2)],
)
def test_the_least_paid_uid_goes_then_the_older_then_the_lower(
    emissions: tuple[int, int], registered: tuple[int, int], gone: int
) -> None:
    """Uids 2 and 3, the only ones without a permit, differ in what the last epoch paid or in their age."""
    book = ledger()
    book.height = 50
    for number in (3, 4):
        book.send(number, Register())
    for uid, emission, block in zip((2, 3), emissions, registered, strict=True):
        neuron = read_neuron(book.state, uid)
        assert neuron is not None
        book.state.put(neuron_key(uid), change(neuron, emission=emission, registered_block=block))
    book.send(5, Register())
    assert read_account(book.state, key(5).public_key).uid == gone


@given(st.integers(0, 2**62), st.integers(0, 2**40), st.integers(0, 2**40))
def test_the_price_only_falls_and_stays_between_its_bounds(price: int, block: int, later: int) -> None:
    """Without new registrations no block is dearer than the one before it."""
    totals = Totals(burn_price=price, burn_block=block)
    prices = [burn_price(totals, PARAMS, block + later + n) for n in range(25)]
    assert prices == sorted(prices, reverse=True)
    assert PARAMS.min_burn <= prices[-1] <= prices[0] <= PARAMS.max_burn


def test_an_owner_sponsors_a_key_that_agrees() -> None:
    """The sponsor pays and owns; without the key's own word nobody can put it to work."""
    book = ledger()
    good = Sponsor(key=key(FRESH).public_key, consent=consent(book, FRESH, OWNER))
    with pytest.raises(BadSignature):
        book.send(3, good)  # the consent names another owner
    book.send(OWNER, good)
    neuron = book.neuron(2)
    assert (neuron.key, neuron.payee, book.uid(FRESH)) == (key(FRESH).public_key, key(OWNER).public_key, 2)
    with pytest.raises(AlreadyRegistered):
        book.send(OWNER, good)


def test_a_rotated_key_keeps_uid_rank_and_stake() -> None:
    """Only the key changes: what the last epoch said of the uid, its weights and the stake behind it stay."""
    book = ledger()
    book.send(3, Delegate(to=key(1).public_key, amount=10 * CREDIT))
    book.send(1, SetWeights(weights=((1, 5),)))
    before = change(book.neuron(0), incentive_u16=777, dividends_u16=99, bonds=((1, 3),))
    book.state.put(neuron_key(0), before)
    rotate(book, 0, FRESH, 1)
    owner = key(1).public_key
    assert book.neuron(0) == change(before, key=key(FRESH).public_key, owner=owner)
    assert (book.uid(1), book.uid(FRESH), book.stake(FRESH)) == (None, 0, 70 * CREDIT)
    assert pool_of(book.state, key(FRESH).public_key) == pool_of(book.state, owner) == owner
    with pytest.raises(NotRegistered):
        book.send(1, SetWeights(weights=((1, 9),)))
    book.send(FRESH, SetWeights(weights=((1, 9),)))
    book.send(3, Delegate(to=key(FRESH).public_key, amount=CREDIT))
    assert book.worth(1, 3) == 11 * CREDIT
    book.close()
    assert key(FRESH).public_key in {member.key for member in read_validators(book.state).members}


def test_a_replaced_key_still_answers_for_what_it_signed() -> None:
    """Rotation is no way out of a slash, and the old key gets no uid beside the pool."""
    book = ledger()
    network = book.genesis.network_id
    votes = [sign_vote(key(1), network, VoteKind.PREVOTE, 1, 0, block) for block in (NO_BLOCK, b"\1" * 32)]
    rotate(book, 0, FRESH, 1)
    book.height = 2
    book.send(3, ReportEvidence(evidence=double_vote(*votes)))
    assert book.stake(FRESH) == 57 * CREDIT
    with pytest.raises(AlreadyRegistered):
        book.send(1, Register())


def test_keys_in_use_are_no_new_keys() -> None:
    """A key with a uid, with stake of its own, or of another pool cannot be taken; going back to an old one can."""
    book = ledger()
    book.send(3, Register())
    book.send(4, AddStake(amount=CREDIT))
    for taken in (2, 3, 4):
        with pytest.raises(KeyInUse):
            rotate(book, 0, taken, 1)
    rotate(book, 0, FRESH, 1)
    with pytest.raises(KeyInUse):
        rotate(book, 2, 1, 3)
    with pytest.raises(BadSignature):
        book.send(1, RotateKey(uid=0, key=key(21).public_key, consent=consent(book, FRESH, 1)))
    rotate(book, 0, 1, 1)
    assert (book.neuron(0).key, book.uid(FRESH)) == (key(1).public_key, None)


def test_an_owner_that_is_elsewhere_decides_and_is_paid() -> None:
    """Handed over once, the uid obeys the owner key alone, which the machine does not have."""
    book = ledger()
    with pytest.raises(NotPermitted):
        book.send(3, SetOwner(uid=0, owner=key(3).public_key))
    book.send(1, SetOwner(uid=0, owner=key(OWNER).public_key))
    with pytest.raises(NotPermitted):
        rotate(book, 0, FRESH, 1)
    with pytest.raises(NotPermitted):
        book.send(1, SetOwner(uid=0, owner=key(1).public_key))
    rotate(book, 0, FRESH, OWNER)
    assert book.neuron(0).payee == key(OWNER).public_key


def test_a_key_acts_until_its_time_is_over_and_again_when_renewed() -> None:
    """An expired key sets no weights and loses its seat at the epoch's end; uid and stake wait for the owner."""
    book = ledger()
    rotate(book, 0, FRESH, 1, expires=8)
    book.height = 7
    book.send(FRESH, SetWeights(weights=((1, 1),)))
    book.height = 8
    with pytest.raises(KeyExpired) as refused:
        book.send(FRESH, SetWeights(weights=((1, 2),)))
    assert refused.value.actual == 8
    book.close()
    assert not book.neuron(0).has_permit
    assert [member.key for member in read_validators(book.state).members] == [key(2).public_key]
    rotate(book, 0, FRESH, 1)
    book.close()
    book.send(FRESH, SetWeights(weights=((1, 2),)))
    assert len(read_validators(book.state).members) == 2


def test_a_permit_takes_the_least_stake() -> None:
    """Whoever has less than the network asks for loses permit and seat at the end of the epoch, until it has more."""
    params = ChainParams(tempo=10, fee_per_byte=0, min_stake=50 * CREDIT, emission_per_block=0)
    book = Ledger((60, 49), (1,), params)
    book.close()
    assert [book.neuron(uid).has_permit for uid in (0, 1)] == [True, False]
    assert [member.key for member in read_validators(book.state).members] == [key(1).public_key]
    book.send(3, Delegate(to=key(2).public_key, amount=CREDIT))
    book.close()
    assert [book.neuron(uid).has_permit for uid in (0, 1)] == [True, True]


@given(st.integers(1, 10**10), st.integers(1, 10**6))
def test_halvings_never_add_up_to_more_than_two_first_periods(emission: int, interval: int) -> None:
    """Each period pays half of the one before; the sum of all that will ever be minted is bounded."""
    params = ChainParams(emission_per_block=emission, halving_interval=interval)
    periods = [emission_at(params, period * interval) for period in range(80)]
    assert periods[0] == emission == emission_at(params, interval - 1)
    assert all(later == earlier // 2 for earlier, later in pairwise(periods))
    assert sum(periods) * interval <= 2 * emission * interval
    assert periods[-1] == 0


def test_an_expired_miner_earns_nothing_until_it_is_renewed() -> None:
    """Weights on a uid whose key is over count for nothing; rank and pay come back with the key."""
    params = ChainParams(tempo=10, commit_reveal=False, fee_per_byte=0, emission_per_block=CREDIT)
    book = Ledger((60, 40), (100,), params)
    book.send(3, Sponsor(key=key(FRESH).public_key, consent=consent(book, FRESH, 3), expires=15))
    book.height = 2
    for validator in (1, 2):
        book.send(validator, SetWeights(weights=((2, 1),)))
    paid = []
    for expires in (None, None, 0):
        if expires is not None:
            rotate(book, 2, FRESH, 3, expires=expires)
        before = book.balance(3)
        book.close()
        paid.append(book.balance(3) - before)
    assert paid[0] > 0 == paid[1]
    assert paid[2] > 0


def test_who_cannot_pay_costs_no_replacement() -> None:
    """The price is asked for before a row of anybody is touched: a refused registration has rewritten nothing."""
    book = ledger()
    for number in (3, 4):
        book.send(number, Register())
    for validator in (1, 2):
        book.send(validator, SetWeights(weights=((2, 1), (3, 1))))
    step = Overlay(book.state)
    with pytest.raises(InsufficientBalance):
        register(step, key(30).public_key, b"", key(30).public_key, PARAMS, book.height)
    assert not step.changes


def test_no_new_pool_hides_a_key_that_signed_twice() -> None:
    """A liar takes its stake out, loses its uid, and slips under another uid's pool: its own must still answer."""
    book = ledger()
    for number in (3, 4):
        book.send(number, Register())
    network = book.genesis.network_id
    votes = [sign_vote(key(2), network, VoteKind.PREVOTE, 4, 0, block) for block in (NO_BLOCK, b"\1" * 32)]
    book.height = 5
    book.send(2, Undelegate(pool=key(2).public_key))
    book.close()
    book.send(OWNER, Register())
    assert (book.uid(2), book.uid(OWNER)) == (None, 1)
    with pytest.raises(KeyInUse):
        rotate(book, 2, 2, 3)
    book.send(1, ReportEvidence(evidence=double_vote(*votes)))
    assert (book.pool(2).leaving, book.treasury) == (38 * CREDIT, 2 * CREDIT)
    book.height += PARAMS.unbonding_blocks
    book.send(2, Withdraw(pool=key(2).public_key))
    with pytest.raises(KeyInUse):
        rotate(book, 2, 2, 3)  # with nothing left in it, it still had the seat


def test_a_strangers_coin_stops_no_rotation() -> None:
    """What others delegated to the new key stays theirs; only stake of its own binds it, until it is withdrawn."""
    book = ledger()
    fresh, other = key(FRESH).public_key, key(21).public_key
    for part in (fresh, other):
        book.send(3, Delegate(to=part, amount=2))
        book.send(3, Undelegate(pool=part, amount=1))
    book.send(4, Transfer(to=other, amount=1))
    book.send(21, AddStake(amount=1))
    with pytest.raises(KeyInUse):
        rotate(book, 0, 21, 1)
    book.send(21, Undelegate(pool=other))
    with pytest.raises(KeyInUse):
        rotate(book, 0, 21, 1)
    rotate(book, 0, FRESH, 1)
    assert (book.uid(FRESH), book.stake(FRESH)) == (0, 60 * CREDIT)
    book.send(3, Undelegate(pool=fresh))
    book.height += PARAMS.unbonding_blocks
    for holder, part in ((3, fresh), (21, other)):
        book.send(holder, Withdraw(pool=part))
    assert (book.balance(3), book.balance(21)) == (100 * CREDIT - 2, 1)
    rotate(book, 0, 21, 1)
    assert (book.uid(21), book.stake(21)) == (0, 60 * CREDIT)


def test_a_replaced_key_does_not_take_the_stake_of_a_lost_uid() -> None:
    """The owner replaced a stolen key and the uid was given up: only that owner brings the stake under a uid again."""
    book, stolen, thief = ledger(), FRESH, 4
    book.send(OWNER, Sponsor(key=key(stolen).public_key, consent=consent(book, stolen, OWNER)))
    rotate(book, 2, 21, OWNER)
    book.send(3, Delegate(to=key(21).public_key, amount=50 * CREDIT))
    book.send(22, Register())
    book.send(3, Register())
    assert (book.uid(21), book.uid(3), book.stake(stolen)) == (None, 2, 50 * CREDIT)
    for number in (stolen, 21):
        book.send(thief, Transfer(to=key(number).public_key, amount=10 * CREDIT))
        for owner in (None, key(OWNER).public_key):
            with pytest.raises(NotPermitted):
                book.send(number, Register(owner=owner))
        with pytest.raises(NotPermitted):
            book.send(thief, Sponsor(key=key(number).public_key, consent=consent(book, number, thief)))
    book.send(OWNER, Sponsor(key=key(21).public_key, consent=consent(book, 21, OWNER)))
    uid = book.uid(21)
    assert uid is not None
    assert (book.neuron(uid).payee, book.stake(21)) == (key(OWNER).public_key, 50 * CREDIT)


def test_a_key_that_was_never_replaced_comes_back_by_itself() -> None:
    """Without stake behind it for whom it likes, with stake only for the owner that it had."""
    book, fresh, owner = ledger(), key(FRESH).public_key, key(OWNER).public_key
    book.send(4, Transfer(to=fresh, amount=10 * CREDIT))
    book.send(FRESH, Register(owner=owner))
    push_out(book, range(30, 40))
    book.send(FRESH, Register())
    push_out(book, range(40, 50))
    book.send(FRESH, Register(owner=owner))
    push_out(book, range(50, 60))
    book.send(3, Delegate(to=fresh, amount=CREDIT))
    for other in (None, key(3).public_key):
        with pytest.raises(NotPermitted):
            book.send(FRESH, Register(owner=other))
    book.send(FRESH, Register(owner=owner))
    assert book.stake(FRESH) == CREDIT


def push_out(book: Ledger, fresh: range) -> None:
    """Let others register until the key ``FRESH`` has no uid."""
    for number in fresh:
        if book.uid(FRESH) is None:
            break
        book.height += 10  # back to the lowest price
        book.send(4, Sponsor(key=key(number).public_key, consent=consent(book, number, 4)))
    assert book.uid(FRESH) is None
