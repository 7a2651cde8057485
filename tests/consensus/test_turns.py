"""Turns to propose follow the stake, and no change of stake gives one validator a long run of them."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from moed.consensus.state import ValidatorSet
from moed.consensus.turns import next_turn, proposer, replace_members
from support.chains import key

ONE, TWO, WHALE = (key(number).public_key for number in (1, 2, 3))
Powers = dict[bytes, int]


def run_turns(validators: ValidatorSet, count: int) -> tuple[ValidatorSet, list[bytes]]:
    turns = []
    for _ in range(count):
        validators, chosen = next_turn(validators)
        turns.append(chosen)
    return validators, turns


def longest_run(turns: list[bytes]) -> int:
    return max(len(list(run)) for _, run in groupby(turns))


def test_each_proposes_in_proportion_to_its_stake() -> None:
    """Over as many turns as there are units of stake, each validator has as many turns as it has units."""
    powers: Powers = {ONE: 5, TWO: 3, WHALE: 12}
    validators, _ = run_turns(replace_members(ValidatorSet(), powers), 200)
    assert Counter(run_turns(validators, 20)[1]) == powers


def test_after_a_whale_left_the_others_take_turns() -> None:
    """Priorities that grew under a far greater total do not give one of two equals a run of rounds."""
    validators, chosen = next_turn(replace_members(ValidatorSet(), {ONE: 10, TWO: 10, WHALE: 10_000}))
    while chosen == WHALE:
        validators, chosen = next_turn(validators)
    left = replace_members(validators, {ONE: 10, TWO: 10})
    assert longest_run([proposer(left, round_number) for round_number in range(50)]) <= 4


@given(
    st.lists(
        st.dictionaries(st.sampled_from([ONE, TWO, WHALE]), st.integers(1, 1_000_000), min_size=1),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.integers(0, 40), min_size=4, max_size=4),
)
def test_no_history_of_stake_keeps_a_validator_waiting(history: list[Powers], turns_each: list[int]) -> None:
    """Whatever stake came and went: of two who are left with equal stake, neither waits for long."""
    validators = ValidatorSet()
    for powers, turns in zip(history, turns_each, strict=False):
        validators, _ = run_turns(replace_members(validators, powers), turns)
    left = replace_members(validators, {ONE: 7, TWO: 7})
    assert longest_run(run_turns(left, 40)[1]) <= 5


def test_a_newcomer_starts_behind_who_is_there() -> None:
    """Leaving and coming back right before one's turn gains nothing: the others propose first."""
    validators, _ = run_turns(replace_members(ValidatorSet(), {ONE: 10, TWO: 10}), 5)
    without = replace_members(validators, {TWO: 10})
    back = replace_members(without, {ONE: 10, TWO: 10})
    assert proposer(back, 0) == TWO
