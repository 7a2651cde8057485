"""What waits for a block is bounded in number, bytes and time, and never blocks its sender or others for ever."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moed.consensus.errors import (
    AlreadyRegistered,
    EvidenceRefused,
    InsufficientBalance,
    InvalidTransaction,
    NotPermitted,
    PoolFull,
    TooManyRegistrations,
    WrongNonce,
)
from moed.consensus.evidence import double_vote
from moed.consensus.mempool import (
    MAX_DUTY_BYTES,
    MAX_LOOSE_BYTES,
    MAX_PER_SENDER,
    MAX_POOL_BYTES,
    MAX_REGISTRATIONS,
    MAX_WAIT_BLOCKS,
    Mempool,
)
from moed.consensus.params import ChainParams
from moed.consensus.state import read_account
from moed.consensus.transactions import (
    MAX_MEMO_BYTES,
    AddStake,
    Body,
    CommitWeights,
    Register,
    ReportEvidence,
    RevealWeights,
    SetWeights,
    SignedTransaction,
    Sponsor,
    Transfer,
    sign_consent,
)
from moed.consensus.transition import Head
from moed.consensus.votes import NO_BLOCK, VoteKind, sign_vote
from support.chains import grow, key, make_genesis, signed

PARAMS = ChainParams(max_registrations_per_block=2, max_block_bytes=2_000, fee_per_byte=0)
GENESIS = make_genesis((60, 40), balances=(1_000, 1_000), params=PARAMS)
BOTH = [key(1), key(2)]


def new_head() -> Head:
    return Head.at_genesis(GENESIS)


def pay(head: Head, sender: int, nonce: int, amount: int = 1) -> SignedTransaction:
    return signed(head, key(sender), Transfer(to=key(9).public_key, amount=amount), nonce)


def test_each_sender_comes_in_the_order_of_its_nonces() -> None:
    """Whatever the order of arrival; what stands behind a gap waits."""
    head, pool = new_head(), Mempool(PARAMS)
    for nonce in (2, 0, 1, 4):
        pool.add(pay(head, 3, nonce), head.state, head.height)
    assert [one.nonce for one in pool.candidates(head.state)] == [0, 1, 2]
    assert pool.next_nonce(key(3).public_key, head.state) == 3
    with pytest.raises(WrongNonce):
        pool.add(pay(head, 3, 1, amount=2), head.state, head.height)
    with pytest.raises(WrongNonce):
        pool.add(pay(head, 3, MAX_PER_SENDER), head.state, head.height)


def test_what_a_block_took_is_dropped() -> None:
    """After the block its transactions, and others of the same nonce, are gone."""
    head, pool = new_head(), Mempool(PARAMS)
    first, second = pay(head, 3, 0), pay(head, 3, 1)
    for one in (first, second):
        pool.add(one, head.state, head.height)
    grow(head, BOTH, [first])
    pool.prune(head.state, head.height)
    assert list(pool.candidates(head.state)) == [second]
    assert (first in pool, second in pool, len(pool)) == (False, True, 1)


def test_what_no_block_takes_leaves_after_a_while() -> None:
    """A gap that is never filled holds neither a place in the pool nor its sender's nonce for ever."""
    head, pool = new_head(), Mempool(PARAMS)
    stuck = pay(head, 3, 5)
    pool.add(stuck, head.state, 0)
    pool.prune(head.state, MAX_WAIT_BLOCKS - 1)
    assert stuck in pool
    pool.prune(head.state, MAX_WAIT_BLOCKS)
    assert len(pool) == 0
    pool.add(stuck, head.state, MAX_WAIT_BLOCKS)


def fat(head: Head, sender: int, nonce: int) -> SignedTransaction:
    """The largest transaction that anybody may send."""
    return signed(head, key(sender), Transfer(to=key(9).public_key, amount=1, memo=b"." * MAX_MEMO_BYTES), nonce)


def test_the_pool_is_bounded_in_bytes() -> None:
    """Even where nothing costs a fee, what many keys send must not fill the memory."""
    senders = MAX_POOL_BYTES // (MAX_PER_SENDER * MAX_MEMO_BYTES)
    head, pool = Head.at_genesis(make_genesis((60, 40), balances=(100,) * senders, params=PARAMS)), Mempool(PARAMS)
    held = 0
    with pytest.raises(PoolFull):  # noqa: PT012  # which one is the last depends on their sizes
        for nonce in range(MAX_PER_SENDER):
            for number in range(3, 3 + senders):
                one = fat(head, number, nonce)
                pool.add(one, head.state, head.height)
                held += one.size_bytes
    assert 0 <= MAX_POOL_BYTES - held < one.size_bytes
    pool.prune(head.state, MAX_WAIT_BLOCKS)
    pool.add(fat(head, 3, 0), head.state, head.height)


def test_a_burst_of_registrations_is_taken_over_several_blocks() -> None:
    """A block's limit refuses the rest of the burst as such, and the next blocks take it."""
    head = new_head()
    waiting = [signed(head, key(number), Register()) for number in range(10, 15)]
    blocks = 0
    while waiting:
        block, refused = head.build(waiting, proposer=key(1).public_key, now_ms=head.time_ms + 1)
        assert all(isinstance(error, TooManyRegistrations) for _, error in refused)
        grow(head, BOTH, block.transactions)
        waiting = [transaction for transaction, _ in refused]
        blocks += 1
    assert blocks == 3
    assert all(read_account(head.state, key(number).public_key).uid is not None for number in range(10, 15))


def test_what_follows_a_transaction_without_room_waits_with_it() -> None:
    """A smaller one of the same sender behind it is no wrong nonce: it is passed over for now."""
    sizes = [pay(new_head(), 3, 0).size_bytes, pay(new_head(), 4, 1).size_bytes]
    genesis = make_genesis(balances=(1_000, 1_000), params=ChainParams(max_block_bytes=sum(sizes), fee_per_byte=0))
    head = Head.at_genesis(genesis)
    filler, small = pay(head, 3, 0), pay(head, 1, 1)
    large = signed(head, key(1), SetWeights(weights=tuple((uid, 1) for uid in range(30))), 0)
    assert small.size_bytes <= sizes[1] < large.size_bytes
    block, refused = head.build([filler, large, small], proposer=key(1).public_key, now_ms=head.time_ms + 1)
    assert (block.transactions, refused) == ((filler,), [])


def test_who_holds_no_credit_fills_no_pool() -> None:
    """A transaction waits only if its sender can pay for all of its own that wait; rows of strangers are not free."""
    params = ChainParams(fee_per_byte=10)
    fee = 10 * pay(new_head(), 3, 0).size_bytes
    head = Head.at_genesis(make_genesis((60, 40), balances=(2 * fee + 99, 0), params=params))
    pool = Mempool(params)
    for nonce in (0, 1):
        pool.add(pay(head, 3, nonce), head.state, head.height)
    for broke in (pay(head, 3, 2), pay(head, 4, 0)):
        with pytest.raises(InsufficientBalance):
            pool.add(broke, head.state, head.height)
    with pytest.raises(NotPermitted):
        pool.add(signed(head, key(50), SetWeights(weights=((0, 1),))), head.state, head.height)
    pool.discard(pay(head, 3, 1))
    pool.add(pay(head, 3, 1), head.state, head.height)


def test_what_costs_nothing_leaves_room_for_what_does() -> None:
    """Registrations of endless new keys fill their own part of the pool and no more."""
    params = ChainParams(fee_per_byte=1)
    head = Head.at_genesis(make_genesis((60, 40), balances=(10_000,), params=params))
    pool = Mempool(params)
    crowd(head, pool)
    pool.add(pay(head, 3, 0), head.state, head.height)
    assert len(pool) == MAX_REGISTRATIONS + 1


def test_who_cannot_pay_for_a_uid_does_not_wait_for_one() -> None:
    """Once slots cost something, new empty keys have no place in the pool, and no proposer tries them."""
    params = ChainParams(max_uids=2, immunity_period=0, fee_per_byte=0, min_burn=100)
    head = Head.at_genesis(make_genesis((60, 40), balances=(99, 100), params=params))
    pool = Mempool(params)
    for number in (3, 20):
        with pytest.raises(InsufficientBalance):
            pool.add(signed(head, key(number), Register()), head.state, head.height)
    consent = sign_consent(key(20), head.network_id, key(4).public_key)
    pool.add(signed(head, key(4), Sponsor(key=key(20).public_key, consent=consent)), head.state, head.height)
    with pytest.raises(AlreadyRegistered):
        pool.add(signed(head, key(1), Register()), head.state, head.height)


def test_what_stands_behind_a_gap_takes_no_ones_room() -> None:
    """Senders who leave out their first transaction pay nothing; they keep a corner, of which the oldest gives way."""
    senders = MAX_POOL_BYTES // (MAX_PER_SENDER * MAX_MEMO_BYTES)
    head, pool = Head.at_genesis(make_genesis((60, 40), balances=(100,) * senders, params=PARAMS)), Mempool(PARAMS)
    for number in range(4, 3 + senders):
        for nonce in range(1, MAX_PER_SENDER):
            pool.add(fat(head, number, nonce), head.state, head.height)
    assert len(pool) == pytest.approx(MAX_LOOSE_BYTES / fat(head, 4, 1).size_bytes, abs=1)
    honest = [fat(head, 3, nonce) for nonce in range(4)]
    for one in (honest[0], *reversed(honest[1:])):
        pool.add(one, head.state, head.height)
    assert list(pool.candidates(head.state)) == honest


def test_what_would_not_apply_does_not_wait_for_a_block() -> None:
    """Nor what follows it: a first transaction that fails would else carry sixty others for nothing."""
    head, pool = new_head(), Mempool(PARAMS)
    pool.add(pay(head, 3, 0, amount=600), head.state, head.height)
    for amount in (401, 2_000):
        with pytest.raises(InsufficientBalance):
            pool.add(pay(head, 3, 1, amount=amount), head.state, head.height)
    pool.add(pay(head, 3, 1, amount=400), head.state, head.height)
    grow(head, BOTH, [pay(head, 3, 0, amount=700)])
    pool.prune(head.state, head.height)
    assert len(pool) == 0  # 300 are left


def crowd(head: Head, pool: Mempool) -> None:
    """Registrations of endless new keys, as many as fit."""
    template = signed(head, key(100), Register())
    for number in range(MAX_REGISTRATIONS):
        sender = (1_000 + number).to_bytes(32, "big")
        pool.add(msgspec.structs.replace(template, sender=sender), head.state, head.height)
    with pytest.raises(PoolFull):
        pool.add(template, head.state, head.height)


def offence(head: Head, liar: int) -> ReportEvidence:
    votes = [
        sign_vote(key(liar), head.network_id, VoteKind.PREVOTE, head.height + 1, 0, block)
        for block in (NO_BLOCK, b"\1" * 32)
    ]
    return ReportEvidence(evidence=double_vote(*votes))


def test_free_registrations_crowd_out_neither_evidence_nor_weights() -> None:
    """What permit holders owe the network, and evidence, wait in rooms of their own and come first, evidence before."""
    params = ChainParams(max_registrations_per_block=2, fee_per_byte=1_000)
    head = Head.at_genesis(make_genesis((60, 40), balances=(10**9,), params=params))
    pool = Mempool(params)
    crowd(head, pool)
    pool.add(pay(head, 3, 0), head.state, head.height)
    weights = signed(head, key(2), CommitWeights(commitment=b"c" * 32))
    by_a_peer, by_a_stranger = signed(head, key(2), offence(head, 1), 1), signed(head, key(77), offence(head, 1))
    duties = [signed(head, key(1), CommitWeights(commitment=b"d" * 32)), weights, by_a_peer, by_a_stranger]
    for one in duties:
        pool.add(one, head.state, head.height)
    found = list(pool.candidates(head.state))
    assert set(map(id, found[:4])) == set(map(id, duties))
    assert found[3] == duties[0]
    assert len(found) == 5 + 2 * params.max_registrations_per_block
    grow(head, BOTH, [by_a_stranger])
    pool.prune(head.state, head.height)
    assert by_a_peer not in pool  # the liar is punished
    assert next(pool.candidates(head.state)) == weights
    with pytest.raises(EvidenceRefused):
        pool.add(signed(head, key(78), offence(Head.at_genesis(head.genesis), 1)), head.state, head.height)


def test_who_is_sponsored_passes_the_crowd() -> None:
    """A fee of somebody with credit goes before any number of keys that pay nothing; what follows waits its turn."""
    params = ChainParams(max_registrations_per_block=2, fee_per_byte=1)
    head = Head.at_genesis(make_genesis((60, 40), balances=(10**9,), params=params))
    pool = Mempool(params)
    crowd(head, pool)
    for nonce, number in enumerate((60, 61)):
        consent = sign_consent(key(number), head.network_id, key(3).public_key)
        sent = signed(head, key(3), Sponsor(key=key(number).public_key, consent=consent), 2 * nonce)
        after = pay(head, 3, 2 * nonce + 1)
        for one in (sent, after):
            pool.add(one, head.state, head.height)
        found = list(pool.candidates(head.state))
        assert found[0] == sent
        assert found.count(after) == 1
        grow(head, BOTH, [sent, after])
        pool.prune(head.state, head.height)
        assert read_account(head.state, key(number).public_key).uid is not None


def test_a_permit_holder_fills_its_own_room_alone() -> None:
    """Rows of weights that will never apply take the place of its own duties, and of nobody else's."""
    head, pool = new_head(), Mempool(PARAMS)
    row = RevealWeights(weights=tuple((uid, 65_535) for uid in range(10_000)), salt=b"s" * 32)
    size = signed(head, key(1), row).size_bytes
    fitting = MAX_DUTY_BYTES // size
    for nonce in range(fitting):
        pool.add(signed(head, key(1), row, nonce), head.state, head.height)
    with pytest.raises(PoolFull):
        pool.add(signed(head, key(1), row, fitting), head.state, head.height)
    pool.add(signed(head, key(2), row), head.state, head.height)
    pool.add(pay(head, 3, 0), head.state, head.height)
    assert len(pool) == fitting + 2


def test_no_sender_is_always_behind_the_others() -> None:
    """Keys that were ground to sort first starve nobody: each block asks the senders in another order."""
    many = 40
    head, pool = Head.at_genesis(make_genesis((60, 40), balances=(100,) * many, params=PARAMS)), Mempool(PARAMS)
    for number in range(3, 3 + many):
        pool.add(pay(head, number, 0), head.state, head.height)
    first: set[bytes] = set()
    for height in range(1, MAX_WAIT_BLOCKS):
        pool.prune(head.state, height)
        order = [one.sender for one in pool.candidates(head.state)]
        assert len(order) == many
        first.update(order[:5])
    assert len(first) == many


@given(st.lists(st.tuples(st.sampled_from("apsrdb"), st.integers(3, 5), st.integers(0, 5)), max_size=40))
@settings(max_examples=150, deadline=None)
def test_whatever_comes_and_goes_the_rooms_add_up(steps: list[tuple[str, int, int]]) -> None:
    """What waits is what the rooms count; and what has its place for its fees applies."""
    head, pool = Head.at_genesis(make_genesis((60, 40), balances=(900, 90, 0), params=PARAMS)), Mempool(PARAMS)
    for kind, sender, nonce in steps:
        bodies: dict[str, Body] = {
            "p": Transfer(to=key(9).public_key, amount=50),
            "s": AddStake(amount=300),
            "r": Register(),
        }
        one = signed(head, key(sender), bodies.get(kind, offence(head, 1)), nonce)
        if kind == "d":
            for waiting in list(pool.candidates(head.state))[:1]:
                pool.discard(waiting)
        elif kind == "b":
            block, refused = head.build(
                pool.candidates(head.state), proposer=key(1).public_key, now_ms=head.time_ms + 1
            )
            for loose, _ in refused:
                assert pool._lines[loose.sender].entries[loose.nonce].room is not pool._paying
                pool.discard(loose)
            grow(head, BOTH, block.transactions)
            pool.prune(head.state, head.height)
        else:
            with suppress(InvalidTransaction):
                pool.add(one, head.state, head.height)
        rooms = [
            pool._paying,
            pool._registrations,
            pool._sponsored,
            pool._evidence,
            pool._loose,
            *pool._duties.values(),
        ]
        entries = [entry for line in pool._lines.values() for entry in line.entries.values()]
        assert len(pool) == len(entries) == sum(room.count for room in rooms)
        assert sum(entry.size_bytes for entry in entries) == sum(room.held_bytes for room in rooms)
        assert len(pool._loose_ones) == pool._loose.count
        assert all(line.entries for line in pool._lines.values())
