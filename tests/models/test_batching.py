"""The queue shares the device by stake, starves nobody, keeps its bounds and loses nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moed.models.batching import Batch, BatchQueue, QueueLimits, Request
from moed.models.errors import DeadlinePassed, QueueFull, RequestTooLarge, ShapeMismatch, UnknownExpert
from moed.protocol.experts import BatchSchema


def make_queue(max_rows: int = 8, limits: QueueLimits | None = None) -> BatchQueue:
    schema = BatchSchema(dtype="u8", max_rows=max_rows, max_length=64)
    return BatchQueue({"a": schema, "b": schema}, limits)


def submit(
    queue: BatchQueue,
    caller: str,
    *,
    rows: int = 1,
    length: int = 16,
    share: float = 0.0,
    deadline_s: float = 1e9,
    expert: str = "a",
    now_s: float = 0.0,
) -> Request:
    tokens = np.zeros((rows, length), dtype=np.uint8)
    return queue.submit(expert, tokens, caller=caller.encode(), stake_share=share, deadline_s=deadline_s, now_s=now_s)


def served(batch: Batch | None) -> list[str]:
    assert batch is not None
    return [request.caller.decode() for request in batch.requests]


def test_requests_of_several_callers_share_a_batch() -> None:
    """Of the same expert and length, up to the limit; another expert or length waits for its own batch."""
    queue = make_queue(max_rows=4)
    for caller, expert, length in (("x", "a", 16), ("y", "a", 16), ("z", "b", 16), ("v", "a", 32)):
        submit(queue, caller, expert=expert, length=length)
    assert sorted(served(queue.next_batch(0))) == ["x", "y"]
    assert sorted([*served(queue.next_batch(0)), *served(queue.next_batch(0))]) == ["v", "z"]
    assert queue.next_batch(0) is None


def test_a_batch_keeps_its_limit() -> None:
    """Requests are never split, and a smaller one behind may still fill the room."""
    queue = make_queue(max_rows=4)
    for caller, rows in (("x", 3), ("y", 2), ("z", 1)):
        submit(queue, caller, rows=rows)
    first = queue.next_batch(0)
    assert first is not None
    assert (served(first), first.rows) == (["x", "z"], 4)
    assert served(queue.next_batch(0)) == ["y"]


def test_busy_callers_share_by_stake() -> None:
    """With always-full lines of stake 0.6, 0.3 and 0.1, rows are served in that proportion."""
    queue = make_queue(max_rows=1)
    shares = {"big": 0.6, "mid": 0.3, "small": 0.1}
    count: Counter[str] = Counter()
    for caller, share in shares.items():
        submit(queue, caller, share=share)
    for _ in range(400):
        for caller in served(queue.next_batch(0)):
            count[caller] += 1
            submit(queue, caller, share=shares[caller])
            submit(queue, caller, share=shares[caller]) if count[caller] == 1 else None
    assert {name: round(count[name] / 400, 2) for name in shares} == pytest.approx(shares, abs=0.03)


def test_who_was_away_comes_back_level() -> None:
    """A caller whose one large request was served long ago has no more right to the device than one of the same stake
    that was busy since."""
    queue = make_queue(max_rows=8)
    submit(queue, "away", rows=8, share=0.5)
    submit(queue, "busy", rows=8, share=0.5)
    for _ in range(40):
        submit(queue, "busy", rows=8, share=0.5)
        queue.next_batch(0)
    for _ in range(10):
        submit(queue, "away", rows=8, share=0.5)
        submit(queue, "busy", rows=8, share=0.5)
    order = [served(queue.next_batch(0))[0] for _ in range(10)]
    assert order.count("away") in (5, 6), order


def test_without_stake_one_is_slow_but_served() -> None:
    """Among always-busy stake, a request without any is served before long; a crowd without stake gets no more."""
    queue = make_queue(max_rows=1, limits=QueueLimits(max_requests=5000))
    submit(queue, "rich", share=1.0)
    submit(queue, "rich", share=1.0)
    for number in range(1000):
        submit(queue, f"poor {number}")
    order: list[str] = []
    for _ in range(505):
        caller = served(queue.next_batch(0))[0]
        order.append(caller)
        if caller == "rich":
            submit(queue, "rich", share=1.0)
    poor = [caller for caller in order if caller != "rich"]
    assert 4 <= len(poor) <= 7
    assert poor == [f"poor {number}" for number in range(len(poor))]


def test_within_a_caller_the_earliest_deadline_goes_first() -> None:
    """In whatever order they came."""
    queue = make_queue(max_rows=1)
    for deadline_s in (9.0, 3.0, 6.0):
        submit(queue, "x", share=0.5, deadline_s=deadline_s)
    batches = [queue.next_batch(0) for _ in range(3)]
    assert [batch.requests[0].deadline_s for batch in batches if batch] == [3.0, 6.0, 9.0]


def test_late_requests_are_never_served_and_can_be_collected() -> None:
    """Work that nobody awaits any more is dropped."""
    queue = make_queue()
    late, early = submit(queue, "x", deadline_s=1.0), submit(queue, "y", deadline_s=5.0)
    assert served(queue.next_batch(2.0)) == ["y"]
    assert queue.next_batch(2.0) is None
    assert queue.expire(2.0) == [late]
    assert not queue.cancel(early)
    assert (len(queue), queue.rows) == (0, 0)


def test_bounds_are_refused_by_name() -> None:
    """Each bound has its own error, and a refused request leaves nothing behind."""
    limits = QueueLimits(max_requests=4, max_rows=20, max_requests_per_caller=3, max_requests_per_unstaked_caller=2)
    queue = make_queue(limits=limits)
    with pytest.raises(UnknownExpert):
        submit(queue, "x", expert="none")
    with pytest.raises(RequestTooLarge):
        submit(queue, "x", rows=9)
    with pytest.raises(RequestTooLarge):
        submit(queue, "x", length=65)
    with pytest.raises(ShapeMismatch):
        queue.submit("a", np.zeros(3, np.uint8), caller=b"x", stake_share=0, deadline_s=9, now_s=0)
    for deadline_s in (0.0, float("nan")):
        with pytest.raises(DeadlinePassed):
            submit(queue, "x", deadline_s=deadline_s)
    submit(queue, "x")
    submit(queue, "x", rows=8)
    with pytest.raises(QueueFull, match="of this caller"):
        submit(queue, "x")
    submit(queue, "y", rows=8, share=0.5)
    with pytest.raises(QueueFull, match="3 requests of 17 rows"):
        submit(queue, "y", rows=4, share=0.5)
    submit(queue, "y", share=0.5)
    with pytest.raises(QueueFull):
        submit(queue, "z")
    assert (len(queue), queue.rows) == (4, 18)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("submit"), st.sampled_from("xyz"), st.integers(1, 5), st.sampled_from([0.0, 0.2, 0.7])),
            st.just(("serve",)),
            st.tuples(st.just("cancel"), st.integers(0, 30)),
            st.tuples(st.just("wait"), st.integers(1, 4)),
        ),
        max_size=60,
    )
)
@settings(max_examples=100, deadline=None)
def test_every_request_leaves_exactly_once(actions: list[tuple[object, ...]]) -> None:
    """Served, cancelled, expired or refused: no request is lost or served twice, and the counts agree."""
    queue, now_s = make_queue(max_rows=6), 0.0
    made: list[Request] = []
    left: Counter[int] = Counter()
    for action in actions:
        match action:
            case ("submit", str(caller), int(rows), float(share)):
                made.append(submit(queue, caller, rows=rows, share=share, deadline_s=now_s + 3, now_s=now_s))
            case ("serve",):
                batch = queue.next_batch(now_s)
                left.update(request.request_id for request in (batch.requests if batch else ()))
                assert batch is None or 1 <= batch.rows <= 6
            case ("cancel", int(number)) if number < len(made):
                left.update([made[number].request_id] if queue.cancel(made[number]) else [])
            case ("wait", int(seconds)):
                now_s += seconds
                left.update(request.request_id for request in queue.expire(now_s))
    while (batch := queue.next_batch(now_s)) is not None:
        left.update(request.request_id for request in batch.requests)
    assert left == Counter({request.request_id: 1 for request in made})
    assert (len(queue), queue.rows, queue._places, queue._of_caller) == (0, 0, {}, {})
