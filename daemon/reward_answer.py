"""One reward taken apart, in the words of the local API."""

from __future__ import annotations

from typing import Any

from moed.consensus.explain import Reward
from moed.consensus.fixedpoint import ONE


def reward_answer(number: int, reward: Reward) -> dict[str, Any]:
    """The answer of ``/v1/why/reward``: shares from 0 to 1, amounts in units."""
    uid, result = reward.uid, reward.result
    return {
        "uid": uid,
        "epoch": number,
        "height": result.inputs.block,
        "consensus": int(result.consensus_bits[uid]) / ONE,
        "rank": int(result.ranks_bits[uid]) / ONE,
        "incentive": int(result.incentive_bits[uid]) / ONE,
        "dividends": int(result.dividends_bits[uid]) / ONE,
        "incentive_emission": int(result.server_emission[uid]),
        "dividend_emission": int(result.validator_emission[uid]),
        "emission": int(result.emission[uid]),
        "is_emergency": result.is_emergency,
        "ratings": [
            {
                "uid": one.uid,
                "stake": one.stake_bits / ONE,
                "weight": one.weight_bits / ONE,
                "clipped": one.clipped_bits / ONE,
                "rank": one.rank_bits / ONE,
                "bond": one.bond_bits / ONE,
                "without": {"incentive": one.without_incentive_bits / ONE, "emission": one.without_emission},
            }
            for one in reward.ratings
        ],
        "holdings": [
            {
                "uid": one.uid,
                "bond": one.bond_bits / ONE,
                "incentive": one.incentive_bits / ONE,
                "dividend": one.dividend_bits / ONE,
            }
            for one in reward.holdings
        ],
    }
