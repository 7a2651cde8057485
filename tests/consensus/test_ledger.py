"""The ledger by rule and by random life: nothing is applied that a rule forbids, and no unit appears or is lost."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moed.consensus.errors import (
    AlreadyRegistered,
    InsufficientBalance,
    InvalidTransaction,
    NoFreeSlot,
    NotPermitted,
    NotRegistered,
    TooManyRegistrations,
    WrongNonce,
)
from moed.consensus.genesis import genesis_state
from moed.consensus.ledger import apply
from moed.consensus.params import ChainParams
from moed.consensus.state import (
    Overlay,
    State,
    change,
    neuron_key,
    read_account,
    read_neuron,
    read_neurons,
    read_totals,
    stake_behind,
)
from moed.consensus.transactions import AddStake, Body, Register, SetWeights, Transfer, sign_transaction
from support.chains import key, make_genesis

PARAMS = ChainParams(
    commit_reveal=False, max_uids=4, max_registrations_per_block=3, immunity_period=10, fee_per_byte=0, min_burn=0
)
GENESIS = make_genesis((60, 40), balances=(1_000, 500, 0, 0), params=PARAMS)


def fresh() -> Overlay:
    return Overlay(genesis_state(GENESIS))


def send(state: Overlay, sender: int, body: Body, *, nonce: int | None = None, height: int = 1) -> None:
    """Apply one transaction of ``key(sender)``, by default with its next nonce."""
    identity = key(sender)
    number = read_account(state, identity.public_key).nonce if nonce is None else nonce
    apply(state, sign_transaction(identity, GENESIS.network_id, number, body), params=PARAMS, height=height)


def balance(state: Overlay, number: int) -> int:
    return read_account(state, key(number).public_key).balance


def units(state: Overlay) -> int:
    """All units that this test's keys hold, at hand and at stake."""
    keys = [key(number).public_key for number in range(1, 10)]
    return sum(read_account(state, one).balance + stake_behind(state, one) for one in keys)


def test_a_transfer_moves_what_it_says() -> None:
    """From one balance to another, to a key that was never seen as well."""
    state = fresh()
    send(state, 3, Transfer(to=key(9).public_key, amount=300))
    assert (balance(state, 3), balance(state, 9)) == (700, 300)


def test_a_refused_transaction_leaves_no_trace() -> None:
    """Neither the nonce nor a balance moves when a rule says no."""
    state = fresh()
    with pytest.raises(InsufficientBalance) as refused:
        send(state, 3, Transfer(to=key(9).public_key, amount=1_001))
    assert refused.value.actual == 1_000
    assert dict(state.changes) == {}


def test_a_transaction_applies_once() -> None:
    """The nonce makes a replay, and a gap, refusals."""
    state = fresh()
    send(state, 3, Transfer(to=key(9).public_key, amount=1), nonce=0)
    for nonce in (0, 2):
        with pytest.raises(WrongNonce):
            send(state, 3, Transfer(to=key(9).public_key, amount=1), nonce=nonce)
    send(state, 3, Transfer(to=key(9).public_key, amount=1), nonce=1)
    assert balance(state, 9) == 2


def test_a_transfer_to_oneself_makes_nothing() -> None:
    """The one account that is both sides ends as it was, but for its nonce."""
    state = fresh()
    send(state, 3, Transfer(to=key(3).public_key, amount=1_000))
    assert balance(state, 3) == 1_000


def test_stake_comes_from_the_balance() -> None:
    """Bonding moves units from balance to stake of the same key."""
    state = fresh()
    send(state, 3, AddStake(amount=400))
    assert (balance(state, 3), stake_behind(state, key(3).public_key)) == (600, 400)


def test_registration_takes_the_next_uid_once() -> None:
    """Uids are given in order; a key holds one."""
    state = fresh()
    send(state, 3, Register())
    send(state, 4, Register())
    assert [neuron.uid for neuron in read_neurons(state)] == [0, 1, 2, 3]
    assert read_account(state, key(4).public_key).uid == 3
    with pytest.raises(AlreadyRegistered):
        send(state, 3, Register())


def test_a_full_metagraph_gives_up_its_least_earning_slot() -> None:
    """After immunity the neuron with the least emission goes, with every word about it; before, nobody does."""
    state = fresh()
    send(state, 3, Register(), height=5)
    send(state, 4, Register(), height=5)
    for uid, emission in ((2, 7), (3, 5)):
        neuron = read_neuron(state, uid)
        assert neuron is not None
        state.put(neuron_key(uid), change(neuron, emission=emission))
    send(state, 1, SetWeights(weights=((2, 10), (3, 90))), height=6)
    with pytest.raises(NoFreeSlot):
        send(state, 5, Register(), height=14)
    send(state, 5, Register(), height=15)
    taken, validator = read_neuron(state, 3), read_neuron(state, 0)
    assert taken is not None
    assert validator is not None
    assert (taken.key, taken.registered_block) == (key(5).public_key, 15)
    assert read_account(state, key(4).public_key).uid is None
    assert validator.weights == ((2, 7282), (3, 0))  # 10 of 90, scaled so that 90 is 65535


def test_a_burst_of_registrations_is_spread_over_blocks() -> None:
    """The limit of a block holds for free slots too."""
    params = ChainParams(max_registrations_per_block=1, fee_per_byte=0)
    state = fresh()
    first, second = (sign_transaction(key(number), GENESIS.network_id, 0, Register()) for number in (3, 4))
    apply(state, first, params=params, height=1)
    with pytest.raises(TooManyRegistrations):
        apply(state, second, params=params, height=1)


def test_only_permitted_uids_set_weights_and_only_on_registered_ones() -> None:
    """A miner cannot rank; nobody can rank a slot that does not exist."""
    state = fresh()
    send(state, 3, Register())
    with pytest.raises(NotPermitted):
        send(state, 3, SetWeights(weights=((0, 1),)))
    with pytest.raises(NotRegistered):
        send(state, 4, SetWeights(weights=((0, 1),)))
    with pytest.raises(NotRegistered):
        send(state, 1, SetWeights(weights=((3, 1),)))
    send(state, 1, SetWeights(weights=((2, 1),)), height=9)
    validator = read_neuron(state, 0)
    assert validator is not None
    assert (validator.weights, validator.last_update) == (((2, 65_535),), 9)


BODIES = st.one_of(
    st.builds(Transfer, to=st.integers(1, 9).map(lambda number: key(number).public_key), amount=st.integers(1, 2_000)),
    st.builds(AddStake, amount=st.integers(1, 2_000)),
    st.just(Register()),
    st.just(SetWeights(weights=((0, 1), (1, 2)))),
)


@given(st.lists(st.tuples(st.integers(1, 9), BODIES, st.booleans()), max_size=60))
def test_supply_is_conserved(life: list[tuple[int, Body, bool]]) -> None:
    """Whatever is asked, and whatever is refused, the units stay as many."""
    state = fresh()
    before = units(state)
    for sender, body, replayed in life:
        nonce = max(0, read_account(state, key(sender).public_key).nonce - replayed)
        with suppress(InvalidTransaction):
            send(state, sender, body, nonce=nonce)
        assert units(state) == before == read_totals(state).supply


def test_an_overlay_reads_like_the_state_it_becomes() -> None:
    """Random lives give the same records whether changes are stacked in overlays or applied one by one."""
    generator = random.Random(7)
    stacked, applied = fresh(), State()
    applied.apply({bytes(name): record for name, record in genesis_state(GENESIS)._records.items()})
    for _ in range(200):
        sender, to, amount = generator.randint(1, 9), generator.randint(1, 9), generator.randint(1, 300)
        body = Transfer(to=key(to).public_key, amount=amount)
        step = Overlay(applied)
        outcomes = []
        for state in (stacked, step):
            try:
                send(state, sender, body)
                outcomes.append("applied")
            except InvalidTransaction as error:
                outcomes.append(error.code)
        assert outcomes[0] == outcomes[1]
        applied.apply(step.changes)
    assert all(read_account(stacked, key(n).public_key) == read_account(applied, key(n).public_key) for n in range(10))
