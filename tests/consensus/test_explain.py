"""Tests of a reward taken apart: its parts add up to what was paid, and the counterfactuals are real epochs."""

from __future__ import annotations

import random

import pytest

from moed.consensus.epoch_form import decode_inputs, encode_inputs
from moed.consensus.errors import InvalidEpochInput
from moed.consensus.explain import explain_reward, without_validator
from moed.consensus.fixedpoint import ONE
from moed.consensus.yuma import EpochInputs, epoch
from support.epochs import as_dict, two_validators_two_miners


def random_inputs(seed: int, yuma_version: int) -> EpochInputs:
    """Eight uids, four of which rate all others, with bonds of an epoch before."""
    draw = random.Random(seed)
    n = 8

    def rows() -> list[list[tuple[int, int]]]:
        return [[(j, draw.randrange(1, 65_536)) for j in range(n) if j != i] if i < 4 else [] for i in range(n)]

    return EpochInputs(
        n=n,
        block=100,
        last_tempo_block=64,
        emission=10**9,
        stake=[draw.randrange(1, 10**12) for _ in range(n)],
        validator_permit=[uid < 4 for uid in range(n)],
        last_update=[90] * n,
        block_at_registration=[0] * n,
        weights_u16=rows(),
        bonds_u16=rows(),
        yuma_version=yuma_version,
    )


@pytest.mark.parametrize("yuma_version", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_parts_add_up_to_the_reward(seed: int, yuma_version: int) -> None:
    """Stake times clipped weight sums to the rank, and what bonds bring decides the dividends."""
    inputs = random_inputs(seed, yuma_version)
    brought = []
    for uid in range(inputs.n):
        reward = explain_reward(inputs, uid)
        assert sum(rating.rank_bits for rating in reward.ratings) == reward.result.ranks_bits[uid]
        assert all(rating.clipped_bits <= rating.weight_bits for rating in reward.ratings)
        stake = int(reward.result.active_stake_bits[uid]) if yuma_version == 3 else ONE
        brought.append(sum(holding.dividend_bits for holding in reward.holdings) * stake >> 32)
    dividends = [part / sum(brought) for part in brought]
    assert dividends == pytest.approx((epoch(inputs).dividends_bits / ONE).tolist(), abs=1e-8)


def test_a_push_over_consensus_is_clipped_and_named() -> None:
    """The smaller validator pushes uid 3: it is cut to what the larger supports, and without it uid 3 gets less."""
    reward = explain_reward(two_validators_two_miners(), 3)
    larger, smaller = reward.ratings
    assert (larger.uid, smaller.uid) == (0, 1)
    assert smaller.weight_bits == ONE
    assert smaller.clipped_bits == larger.weight_bits == reward.result.consensus_bits[3]
    without = epoch(without_validator(two_validators_two_miners(), 1))
    assert smaller.without_incentive_bits == without.incentive_bits[3] < reward.result.incentive_bits[3]
    assert without.dividends_bits[1] == 0


def test_a_miner_holds_nothing_and_a_stranger_has_no_reward() -> None:
    """Only validators have bonds; only registered uids can be asked about."""
    assert explain_reward(two_validators_two_miners(), 2).holdings == []
    with pytest.raises(InvalidEpochInput):
        explain_reward(two_validators_two_miners(), 4)


def test_inputs_survive_their_bytes() -> None:
    """What is kept of an epoch gives the same epoch again; other bytes are refused by name."""
    inputs = random_inputs(1, 1)
    assert as_dict(epoch(decode_inputs(encode_inputs(inputs)))) == as_dict(epoch(inputs))
    for wrong in (b"", b"[]", b'{"n": 3}', b"\xff"):
        with pytest.raises(InvalidEpochInput):
            decode_inputs(wrong)
