"""What waits for a block is bounded in number, bytes and time, and never blocks its sender or others for ever."""

from __future__ import annotations

import msgspec
import pytest

from moed.consensus.errors import InsufficientBalance, PoolFull, TooManyRegistrations, WrongNonce
from moed.consensus.mempool import MAX_FREE_TRANSACTIONS, MAX_PER_SENDER, MAX_POOL_BYTES, MAX_WAIT_BLOCKS, Mempool
from moed.consensus.params import ChainParams
from moed.consensus.state import read_account
from moed.consensus.transactions import Register, SetWeights, SignedTransaction, Sponsor, Transfer, sign_consent
from moed.consensus.transition import Head
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


def test_the_pool_is_bounded_in_bytes() -> None:
    """Even where nothing costs a fee, rows of weights of many keys must not fill the memory."""
    head, pool = new_head(), Mempool(PARAMS)
    row = SetWeights(weights=tuple((uid, 65_535) for uid in range(10_000)))
    size = signed(head, key(99), row).size_bytes
    for number in range(100, 100 + MAX_POOL_BYTES // size):
        pool.add(signed(head, key(number), row), head.state, head.height)
    with pytest.raises(PoolFull):
        pool.add(signed(head, key(99), row), head.state, head.height)
    pool.prune(head.state, MAX_WAIT_BLOCKS)
    pool.add(signed(head, key(99), row), head.state, head.height)


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
    row = SetWeights(weights=((0, 1),))
    for broke in (pay(head, 3, 2), pay(head, 4, 0), signed(head, key(50), row)):
        with pytest.raises(InsufficientBalance):
            pool.add(broke, head.state, head.height)
    pool.discard(pay(head, 3, 1))
    pool.add(pay(head, 3, 1), head.state, head.height)


def test_what_costs_nothing_leaves_room_for_what_does() -> None:
    """Registrations of endless new keys fill their own part of the pool and no more."""
    params = ChainParams(fee_per_byte=1)
    head = Head.at_genesis(make_genesis((60, 40), balances=(10_000,), params=params))
    pool, template = Mempool(params), signed(head, key(100), Register())
    for number in range(MAX_FREE_TRANSACTIONS):
        sender = (1_000 + number).to_bytes(32, "big")
        pool.add(msgspec.structs.replace(template, sender=sender), head.state, head.height)
    with pytest.raises(PoolFull):
        pool.add(template, head.state, head.height)
    pool.add(pay(head, 3, 0), head.state, head.height)
    assert len(pool) == MAX_FREE_TRANSACTIONS + 1


def test_who_cannot_pay_for_a_uid_does_not_wait_for_one() -> None:
    """Once slots cost something, new empty keys have no place in the pool, and no proposer tries them."""
    params = ChainParams(max_uids=2, immunity_period=0, fee_per_byte=0, min_burn=100)
    head = Head.at_genesis(make_genesis((60, 40), balances=(250,), params=params))
    pool = Mempool(params)
    consents = [sign_consent(key(number), head.network_id, key(3).public_key) for number in (20, 21, 22)]
    with pytest.raises(InsufficientBalance):
        pool.add(signed(head, key(20), Register()), head.state, head.height)
    for nonce, consent in enumerate(consents[:2]):
        body = Sponsor(key=key(20 + nonce).public_key, consent=consent)
        pool.add(signed(head, key(3), body, nonce), head.state, head.height)
    third = signed(head, key(3), Sponsor(key=key(22).public_key, consent=consents[2]), 2)
    with pytest.raises(InsufficientBalance) as refused:
        pool.add(third, head.state, head.height)
    assert (refused.value.expected, refused.value.actual) == ("at least 300", 250)
