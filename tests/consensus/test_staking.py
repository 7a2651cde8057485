"""Stake as its holders see it: what they put in, earn, lose by a slash, and get back, and when."""

from __future__ import annotations

import pytest

from moed.consensus.blocks import NO_BLOCK, VoteKind, sign_vote
from moed.consensus.errors import (
    AmountOutOfRange,
    EvidenceRefused,
    InsufficientBalance,
    InsufficientStake,
    NotPermitted,
    StillBonded,
)
from moed.consensus.evidence import DoubleVote, double_vote
from moed.consensus.params import CREDIT, ChainParams
from moed.consensus.staking import MAX_LEAVING, add_dividends
from moed.consensus.state import Leaving, read_position, read_totals, read_validators, units_in
from moed.consensus.transactions import AddStake, Delegate, ReportEvidence, SetTake, Transfer, Undelegate, Withdraw
from moed.protocol.errors import BadSignature
from support.chains import key
from support.ledgers import Ledger

PARAMS = ChainParams(
    tempo=10,
    fee_per_byte=0,
    unbonding_blocks=30,
    default_take_ppm=100_000,
    max_take_ppm=180_000,
    take_pause_blocks=50,
    slash_ppm=50_000,
    emission_per_block=0,
)


def ledger(**changes: int) -> Ledger:
    """Two validators with 60 and 40 at stake; keys 3 and 4 hold 100 and 50."""
    fields = {name: getattr(PARAMS, name) for name in PARAMS.__struct_fields__}
    return Ledger((60, 40), (100, 50), ChainParams(**{**fields, **changes}))


def pool_key(number: int) -> bytes:
    return key(number).public_key


def offence(book: Ledger, number: int, height: int, round_number: int = 0) -> DoubleVote:
    network = book.genesis.network_id
    votes = [
        sign_vote(key(number), network, VoteKind.PRECOMMIT, height, round_number, block)
        for block in (NO_BLOCK, b"\1" * 32)
    ]
    return double_vote(*votes)


def test_delegated_stake_counts_for_the_validator_and_stays_its_holders() -> None:
    """It is behind the validator's key at once; only the holder can take it out, after the unbonding time."""
    book = ledger()
    book.send(3, Delegate(to=pool_key(1), amount=40 * CREDIT))
    assert (book.balance(3), book.stake(1), book.worth(1, 3)) == (60 * CREDIT, 100 * CREDIT, 40 * CREDIT)
    for stranger in (1, 4):
        with pytest.raises(InsufficientStake) as refused:
            book.send(stranger, Undelegate(pool=pool_key(1), amount=61 * CREDIT))
        assert refused.value.actual == (60 * CREDIT if stranger == 1 else 0)
    book.send(3, Undelegate(pool=pool_key(1), amount=30 * CREDIT))
    assert (book.stake(1), book.worth(1, 3), book.pool(1).leaving) == (70 * CREDIT, 10 * CREDIT, 30 * CREDIT)
    book.height += PARAMS.unbonding_blocks - 1
    with pytest.raises(StillBonded) as early:
        book.send(3, Withdraw(pool=pool_key(1)))
    assert (early.value.expected, early.value.actual) == (31, 30)
    book.height += 1
    book.send(3, Withdraw(pool=pool_key(1)))
    assert (book.balance(3), book.pool(1).leaving) == (90 * CREDIT, 0)
    with pytest.raises(StillBonded):
        book.send(3, Withdraw(pool=pool_key(1)))


def test_all_of_a_position_leaves_at_once() -> None:
    """Without an amount everything goes, to the last share."""
    book = ledger()
    book.send(3, Delegate(to=pool_key(2), amount=33 * CREDIT + 1))
    add_dividends(book.state, book.neuron(1), 7 * CREDIT + 3, book.params)  # an uneven price
    worth = book.worth(2, 3)
    book.send(3, Undelegate(pool=pool_key(2)))
    book.height += PARAMS.unbonding_blocks
    book.send(3, Withdraw(pool=pool_key(2)))
    assert book.balance(3) == 67 * CREDIT - 1 + worth
    assert book.worth(2, 3) == 0


def test_dividends_reach_delegators_after_the_owners_take() -> None:
    """Of 10 credits the owner takes a tenth first; the rest is shared by stake, and all of it compounds."""
    book = ledger()
    book.send(3, Delegate(to=pool_key(1), amount=30 * CREDIT))
    add_dividends(book.state, book.neuron(0), 9 * CREDIT, book.params)
    assert book.stake(1) == 99 * CREDIT
    assert book.worth(1, 3) == pytest.approx(30 * CREDIT + 0.9 * 9 * CREDIT / 3, abs=2)
    assert book.worth(1, 1) == pytest.approx(60 * CREDIT + 0.9 * 9 * CREDIT * 2 / 3 + 0.9 * CREDIT, abs=2)


def test_an_epoch_pays_delegators_by_what_they_hold() -> None:
    """Through a real epoch: the validators' emission goes by stake to two pools, and in each to everybody in it."""
    book = ledger(emission_per_block=CREDIT)
    book.send(3, Delegate(to=pool_key(1), amount=40 * CREDIT))
    book.close()
    minted = 10 * CREDIT * 100 // 140  # nobody is ranked, so all of it goes by stake: 100 of 140 behind the first
    assert book.stake(1) == pytest.approx(100 * CREDIT + minted, abs=10)
    assert book.worth(1, 3) == pytest.approx(40 * CREDIT + minted * 0.9 * 0.4, abs=10)
    assert book.worth(1, 1) == pytest.approx(60 * CREDIT + minted * (0.9 * 0.6 + 0.1), abs=10)


def test_a_take_has_a_ceiling_and_is_raised_slowly() -> None:
    """Delegators must be able to leave between two raises; lowering it is free, and only the owner sets it."""
    book = ledger()
    with pytest.raises(NotPermitted):
        book.send(1, SetTake(uid=0, take_ppm=180_001))
    with pytest.raises(NotPermitted):
        book.send(2, SetTake(uid=0, take_ppm=0))
    book.send(1, SetTake(uid=0, take_ppm=120_000))
    with pytest.raises(NotPermitted) as early:
        book.send(1, SetTake(uid=0, take_ppm=130_000))
    assert (early.value.expected, early.value.actual) == (51, 1)
    book.send(1, SetTake(uid=0, take_ppm=10_000))
    book.height = 51
    book.send(1, SetTake(uid=0, take_ppm=180_000))
    assert book.pool(1).take_ppm == 180_000


def test_what_is_too_small_or_not_there_is_refused() -> None:
    """No amount that buys no share, and none that the sender does not have."""
    book = ledger()
    with pytest.raises(InsufficientBalance):
        book.send(3, Delegate(to=pool_key(1), amount=101 * CREDIT))
    add_dividends(book.state, book.neuron(0), 60 * CREDIT, book.params)  # a share is worth about two units now
    with pytest.raises(AmountOutOfRange) as refused:
        book.send(3, Delegate(to=pool_key(1), amount=1))
    assert refused.value.actual == 1


def test_parts_that_leave_are_bounded() -> None:
    """One position cannot grow a record without end; those of one block are one part."""
    book = ledger()
    for _ in range(3):
        book.send(1, Undelegate(pool=pool_key(1), amount=1_000))
    for _ in range(MAX_LEAVING - 1):
        book.height += 1
        book.send(1, Undelegate(pool=pool_key(1), amount=1_000))
    book.height += 1
    with pytest.raises(NotPermitted):
        book.send(1, Undelegate(pool=pool_key(1), amount=1_000))
    book.height += PARAMS.unbonding_blocks
    book.send(1, Withdraw(pool=pool_key(1)))
    book.send(1, Undelegate(pool=pool_key(1), amount=1_000))


def test_parts_of_one_block_are_one_and_those_before_stay() -> None:
    """What is asked for twice in a block leaves together; what left before keeps its own amount and its own day."""
    book = ledger()
    for height, amount in ((1, 1_000), (2, 200), (2, 30)):
        book.height = height
        book.send(1, Undelegate(pool=pool_key(1), amount=amount))
    parts = read_position(book.state, pool_key(1), pool_key(1)).leaving
    assert parts == (Leaving(shares=1_000, release=31), Leaving(shares=230, release=32))


def test_what_leaves_after_hard_slashes_keeps_its_shares_countable() -> None:
    """Each slash makes the shares of what leaves cheaper; those that would not fit 63 bits are not sold."""
    book = ledger(slash_ppm=999_999)
    book.send(1, Undelegate(pool=pool_key(1)))  # a pool without shares sells them one for one again
    for height in (5, 8):
        book.height = height
        book.send(4, ReportEvidence(evidence=offence(book, 1, height - 1)))
        book.send(3, Delegate(to=pool_key(1), amount=50 * CREDIT))
        if height == 5:
            book.send(3, Undelegate(pool=pool_key(1)))
    before = book.pool(1)
    with pytest.raises(AmountOutOfRange):
        book.send(3, Undelegate(pool=pool_key(1)))
    assert book.pool(1) == before


def test_signing_twice_costs_everybody_who_stood_behind_it() -> None:
    """A twentieth of the stake and of what was leaving goes to the treasury; the permit is gone for the epoch."""
    book = ledger()
    book.send(3, Delegate(to=pool_key(1), amount=40 * CREDIT))
    book.send(3, Undelegate(pool=pool_key(1), amount=20 * CREDIT))
    book.height = 5
    book.send(4, ReportEvidence(evidence=offence(book, 1, 4)))
    assert (book.stake(1), book.pool(1).leaving, book.treasury) == (76 * CREDIT, 19 * CREDIT, 5 * CREDIT)
    assert book.worth(1, 3) == 19 * CREDIT
    assert not book.neuron(0).has_permit
    book.height = 1 + PARAMS.unbonding_blocks
    book.send(3, Withdraw(pool=pool_key(1)))
    assert book.balance(3) == (60 + 19) * CREDIT


def test_an_offence_is_punished_once() -> None:
    """The same evidence again, and any other of before the punishment, is refused; a later offence is not."""
    book = ledger()
    book.height = 5
    book.send(3, ReportEvidence(evidence=offence(book, 1, 4)))
    for again in (offence(book, 1, 4), offence(book, 1, 4, round_number=1), offence(book, 1, 5)):
        with pytest.raises(EvidenceRefused):
            book.send(4, ReportEvidence(evidence=again))
    book.height = 8
    book.send(4, ReportEvidence(evidence=offence(book, 1, 6)))
    assert book.stake(1) == 60 * CREDIT * 95 * 95 // 10_000


def test_only_a_validator_within_the_time_is_punished() -> None:
    """Keys without a seat cost nothing and would fill blocks; old offences and future ones are not judged."""
    book = ledger()
    book.send(3, AddStake(amount=50 * CREDIT))
    for accused, height, now in ((3, 1, 2), (9, 1, 2), (1, 1, 32), (1, 3, 2)):
        book.height = now
        with pytest.raises(EvidenceRefused):
            book.send(4, ReportEvidence(evidence=offence(book, accused, height)))
    book.height = 25  # and a validator that lost its seat long before
    with pytest.raises(EvidenceRefused):
        book.send(4, ReportEvidence(evidence=offence(book, 1, 20)))
    assert book.treasury == 0


def test_forged_evidence_never_reaches_the_ledger() -> None:
    """The signatures inside a transaction are checked with its own."""
    book = ledger()
    honest = offence(book, 1, 4)
    framed = DoubleVote(
        validator=key(2).public_key,
        height=4,
        round=0,
        kind=honest.kind,
        first=honest.first,
        second=honest.second,
    )
    book.height = 5
    with pytest.raises(BadSignature):
        book.send(3, ReportEvidence(evidence=framed))
    assert book.stake(2) == 40 * CREDIT


def test_fees_and_slashes_are_paid_out_before_anything_is_minted() -> None:
    """The treasury goes back into the next epoch's payments; the supply grows by what is missing."""
    book = ledger(emission_per_block=CREDIT, fee_per_byte=1_000)
    supply = read_totals(book.state).supply
    book.send(3, Transfer(to=key(4).public_key, amount=CREDIT))
    fee = 99 * CREDIT - book.balance(3)
    assert book.treasury == fee > 100 * 1_000
    book.height = 5
    book.send(4, ReportEvidence(evidence=offence(book, 2, 4)))
    slashed = 2 * CREDIT
    assert book.treasury == fee + slashed
    book.close()
    totals = read_totals(book.state)
    assert totals.treasury == 0
    assert totals.supply - supply == pytest.approx(10 * CREDIT - fee - slashed, abs=10)
    book.base.apply(book.state.changes)
    assert units_in(book.base.records()) == totals.supply


def test_who_goes_on_signing_for_want_of_others_answers_for_it() -> None:
    """Where nobody is entitled to a seat the old validators keep theirs, and what they sign then can be punished."""
    book = ledger(min_stake=1_000 * CREDIT)
    book.close()
    book.close()
    assert [member.key for member in read_validators(book.state).members] == sorted(map(pool_key, (1, 2)))
    assert not any(book.neuron(uid).has_permit for uid in (0, 1))
    book.height = 25
    book.send(4, ReportEvidence(evidence=offence(book, 1, 24)))
    assert book.treasury == 3 * CREDIT
