"""Rate limits and time-outs: what one source may send, how long an answer is waited for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moed.protocol.round_trips import FIRST_TIMEOUT_S, MAX_TIMEOUT_S, MIN_TIMEOUT_S, RoundTrips
from moed.protocol.throttle import Throttle


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=200))
def test_no_source_exceeds_burst_and_rate(gaps_s: list[float]) -> None:
    """Whatever the gaps, what is admitted up to any moment is at most the burst and the rate since."""
    throttle = Throttle(10, 5)
    now_s = 0.0
    admitted = 0
    for gap_s in gaps_s:
        now_s += gap_s
        admitted += throttle.admit("a", now_s)
        assert admitted <= 5 + 10 * now_s + 1e-6
    assert admitted >= min(5, len(gaps_s))


def test_sources_do_not_share_and_are_forgotten_in_order() -> None:
    """One flooding source does not touch another, and the table is bounded."""
    throttle = Throttle(1, 2, max_sources=100)
    assert [throttle.admit("flood", 0) for _ in range(4)] == [True, True, False, False]
    assert throttle.admit("other", 0)
    for number in range(1000):
        throttle.admit(number, 0)
    assert len(throttle) == 100


def test_an_answer_that_we_asked_for_is_admitted() -> None:
    """Each granted token admits one datagram more, also from a source that has used up its burst."""
    throttle = Throttle(1, 2)
    for _ in range(3):
        throttle.admit("peer", 0)
    throttle.grant("peer", 0)
    assert throttle.admit("peer", 0)
    assert not throttle.admit("peer", 0)


def test_a_clock_that_steps_back_gives_nothing() -> None:
    """Time going backwards neither refills nor empties a bucket."""
    throttle = Throttle(1000, 1)
    assert throttle.admit("a", 100)
    assert not throttle.admit("a", 50)


@given(st.lists(st.floats(0, 10), max_size=50))
def test_time_outs_stay_within_bounds(round_trips_s: list[float]) -> None:
    """Whatever is measured, the time-out is neither hasty nor the library's five seconds."""
    measured = RoundTrips()
    assert measured.timeout_s == FIRST_TIMEOUT_S
    for each in round_trips_s:
        measured.add(each)
        assert MIN_TIMEOUT_S <= measured.timeout_s <= MAX_TIMEOUT_S


def test_time_outs_follow_what_is_measured() -> None:
    """Steady 300 ms round trips end in a time-out just above them; a scatter widens it."""
    steady, scattered = RoundTrips(), RoundTrips()
    for number in range(100):
        steady.add(0.3)
        scattered.add(0.1 + 0.4 * (number % 2))
    assert steady.timeout_s == MIN_TIMEOUT_S
    assert 0.6 < scattered.timeout_s <= MAX_TIMEOUT_S


def test_a_hedge_comes_before_the_time_out_and_never_at_once() -> None:
    """An answer is late a little over what is usual; how steady it was says how little, down to a floor."""
    measured = RoundTrips()
    assert measured.hedge_s(0.01) == FIRST_TIMEOUT_S
    for number in range(100):
        measured.add(0.2 + 0.2 * (number % 2))
    assert 0.3 < measured.hedge_s(0.01) < measured.timeout_s
    steady = RoundTrips()
    for _ in range(200):
        steady.add(0.001)
    assert steady.hedge_s(0.05) == 0.05
