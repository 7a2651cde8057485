"""Whose turn it is to propose: weighted round robin over the validators, by priorities that live in the state.

The proposer selection of Tendermint (cometbft spec/consensus/proposer-selection): each turn everyone gains its
power, the highest priority proposes and loses the total, so over ``total`` turns each proposes in proportion to its
stake. A newcomer starts at -1.125 times the total, so that leaving and coming back does not jump the queue.
"""

from __future__ import annotations

from collections.abc import Mapping

from .state import Validator, ValidatorSet, change


def total_power(validators: ValidatorSet) -> int:
    """The stake behind all validators together, in units."""
    return sum(member.power for member in validators.members)


def power_of(validators: ValidatorSet, key: bytes) -> int:
    """The stake behind one key, 0 if it is no validator."""
    return next((member.power for member in validators.members if member.key == key), 0)


def is_quorum(power: int, total: int) -> bool:
    """Whether ``power`` is more than two thirds of ``total``."""
    return 3 * power > 2 * total


def next_turn(validators: ValidatorSet) -> tuple[ValidatorSet, bytes]:
    """The set after one turn, and the key that proposes in it. The set must not be empty."""
    members = validators.members
    mean = sum(member.priority for member in members) // len(members)
    gained = [change(member, priority=member.priority - mean + member.power) for member in members]
    # equal priorities go to the lower key, so every node agrees
    chosen = min(gained, key=lambda member: (-member.priority, member.key)).key
    total = total_power(validators)
    moved = tuple(
        change(member, priority=member.priority - total) if member.key == chosen else member for member in gained
    )
    return ValidatorSet(members=moved), chosen


def proposer(validators: ValidatorSet, round_number: int) -> bytes:
    """The key that proposes in a round of the height that ``validators`` are about to decide."""
    chosen = b""
    for _ in range(round_number + 1):
        validators, chosen = next_turn(validators)
    return chosen


def replace_members(validators: ValidatorSet, powers: Mapping[bytes, int]) -> ValidatorSet:
    """The set with new powers: who stays keeps its priority, who is new starts behind everyone."""
    priorities = {member.key: member.priority for member in validators.members}
    total = sum(powers.values())
    newcomer = -(total + total // 8)
    return ValidatorSet(
        members=tuple(
            Validator(key=key, power=powers[key], priority=priorities.get(key, newcomer)) for key in sorted(powers)
        )
    )
