"""Whose turn it is to propose: weighted round robin over the validators, by priorities that live in the state.

The proposer selection of Tendermint (cometbft spec/consensus/proposer-selection): each turn everyone gains its
power, the highest priority proposes and loses the total, so over ``total`` turns each proposes in proportion to its
stake. A newcomer starts at -1.125 times the total, so that leaving and coming back does not jump the queue; and when
powers change, priorities that grew under a greater total are scaled down to the new one.
"""

from __future__ import annotations

from collections.abc import Mapping

from .state import Validator, ValidatorSet, change

PRIORITY_WINDOW = 2
"""How far apart two priorities may be after a change of powers, in totals (Tendermint's PriorityWindowSizeFactor)."""


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
    """The set with new powers: who stays keeps its place in the queue, who is new starts behind the middle of it."""
    total = sum(powers.values())
    staying = {member.key: member.priority for member in validators.members if member.key in powers}
    priorities = _fit(staying, PRIORITY_WINDOW * total)
    newcomer = -(total + total // 8)
    return ValidatorSet(
        members=tuple(
            Validator(key=key, power=powers[key], priority=priorities.get(key, newcomer)) for key in sorted(powers)
        )
    )


def _fit(priorities: Mapping[bytes, int], window: int) -> dict[bytes, int]:
    """The priorities around 0 and no further apart than ``window``.

    One further ahead would be worked off by one total a turn: where much stake has left, one validator would propose in
    hundreds of rounds on end, and the chain stand still if that one is silent.
    """
    if not priorities:
        return {}
    spread = max(priorities.values()) - min(priorities.values())
    ratio = max(1, -(-spread // window))
    scaled = {key: priority // ratio for key, priority in priorities.items()}
    mean = sum(scaled.values()) // len(scaled)
    return {key: priority - mean for key, priority in scaled.items()}
