"""How calls of a session end without an answer: refused, cancelled, reset, too late, or at a goodbye."""

from __future__ import annotations

import pytest

from moed.protocol.errors import LocalProtocolError, RemoteProtocolError
from moed.protocol.frames import GoodbyeCode, ResetCode
from moed.protocol.handshake import SessionLimits
from moed.protocol.incoming import ByteBudget
from moed.protocol.session_events import (
    Ended,
    GoodbyeReceived,
    NoticeReceived,
    PongReceived,
    RequestCancelled,
    RequestEnded,
    RequestReceived,
    ResponseReceived,
)
from support.pairs import drain, open_pair

MIB = 1 << 20


def test_a_full_node_budget_refuses_one_request_and_keeps_the_session() -> None:
    """BUSY goes to that caller alone; the next message gets through, and a busy caller's own budget works the same."""
    pair = open_pair(bob_budget=ByteBudget(100_000), alice_budget=ByteBudget(100_000))
    refused = pair.alice.send_request([bytes(3 * MIB)])
    fits = pair.alice.send_request([bytes(90_000)])
    events = pair.take_alice()
    assert events == [RequestEnded(refused, ResetCode.BUSY, is_local=False)]
    (request,) = pair.take_bob()
    assert isinstance(request, RequestReceived)
    assert request.stream == fits
    pair.bob.send_response(fits, [bytes(100_001)])
    assert pair.take_alice() == [RequestEnded(fits, ResetCode.BUSY, is_local=True)]
    again = pair.alice.send_request([b"small"])
    assert [type(event) for event in pair.take_bob()] == [RequestReceived]
    assert pair.bob.send_response(again, [b"answer"])
    assert [type(event) for event in pair.take_alice()] == [ResponseReceived]


@pytest.mark.parametrize("size", [1, 1_000, 1_001, 300_000])
def test_an_answer_over_its_requests_bound_gets_no_memory(size: int) -> None:
    """TOO_LARGE ends that request alone, on both sides, whether the answer comes in one piece or in many."""
    pair = open_pair()
    allocated: list[int] = []
    allocate = pair.alice._inbox._allocate
    pair.alice._inbox._allocate = lambda size: allocated.append(size) or allocate(size)  # type: ignore[func-returns-value]
    bounded = pair.alice.send_request([b"ask"], max_answer_bytes=1_000)
    free = pair.alice.send_request([b"ask"])
    pair.take_bob()
    for stream in (bounded, free):
        assert pair.bob.send_response(stream, [bytes(size)])
    events = {event.stream: event for event in pair.take_alice()}  # type: ignore[union-attr]
    assert isinstance(events[free], ResponseReceived)
    if size <= 1_000:
        assert isinstance(events[bounded], ResponseReceived)
        assert allocated == [size, size]
    else:
        assert events[bounded] == RequestEnded(bounded, ResetCode.TOO_LARGE, is_local=True)
        assert allocated == [size]
    assert pair.alice.open_streams == pair.bob.open_streams == 0
    assert not pair.bob.has_unsent


@pytest.mark.parametrize("turns", [0, 1, 4, 1000])
def test_the_caller_cancels_before_during_and_after_sending(turns: int) -> None:
    """Whenever it comes, both sides forget the stream, and the server hears of it if it had the request."""
    budget = ByteBudget(64 * MIB)
    pair = open_pair(bob_budget=budget)
    stream = pair.alice.send_request([bytes(3 * MIB)])
    for _ in range(turns):
        pair.step()
    had_request = bool(pair.bob_events)
    pair.bob_events.clear()
    pair.alice.reset(stream, ResetCode.CANCELLED)
    expected = [RequestCancelled(stream, ResetCode.CANCELLED)] if had_request else []
    assert pair.take_bob() == expected
    assert not pair.bob.send_response(stream, [b"late"])
    assert budget.used_bytes == pair.alice.open_streams == pair.bob.open_streams == 0
    assert pair.take_alice() == []


def test_the_caller_cancels_while_the_answer_is_under_way() -> None:
    """The rest of a long answer is thrown away and the session goes on."""
    pair = open_pair()
    stream = pair.alice.send_request([b"question"])
    pair.take_bob()
    pair.bob.send_response(stream, [bytes(3 * MIB)])
    pair.step()
    pair.step()
    pair.alice.reset(stream, ResetCode.DEADLINE)
    assert pair.take_alice() == []
    assert pair.alice.send_request([b"next"])
    assert [type(event) for event in pair.take_bob()] == [RequestReceived]


def test_the_server_resets_a_request() -> None:
    """The caller hears the code, and the room is free on both sides."""
    pair = open_pair()
    stream = pair.alice.send_request([bytes(MIB)])
    pair.take_bob()
    pair.bob.reset(stream, ResetCode.DEADLINE)
    assert pair.take_alice() == [RequestEnded(stream, ResetCode.DEADLINE, is_local=False)]
    assert pair.alice.open_streams == pair.bob.open_streams == 0


def test_an_expired_request_is_never_sent() -> None:
    """A deadline that passes in the queue ends the call at home; what is left of a later one travels."""
    pair = open_pair()
    late = pair.alice.send_request([b"late"], deadline_s=1.0)
    timely = pair.alice.send_request([b"timely"], deadline_s=3.0)
    pair.now_s = 1.5
    (request,) = pair.take_bob()
    assert isinstance(request, RequestReceived)
    assert (request.stream, request.remaining_ms) == (timely, 1500)
    assert drain(pair.alice) == [RequestEnded(late, ResetCode.DEADLINE, is_local=True)]


def test_ping_measures_and_goodbye_stops_new_streams() -> None:
    """The token comes back; after goodbye open streams end, new ones are refused at home."""
    pair = open_pair()
    pair.alice.ping(77)
    assert pair.take_alice() == [PongReceived(77)]
    stream = pair.alice.send_request([b"open"])
    pair.take_bob()
    pair.bob.goodbye(GoodbyeCode.SHUTDOWN)
    assert pair.take_alice() == [GoodbyeReceived(GoodbyeCode.SHUTDOWN)]
    for send in (pair.alice.send_request, pair.alice.send_notice, pair.bob.send_request):
        with pytest.raises(LocalProtocolError):
            send([b"more"])
    assert pair.bob.send_response(stream, [b"done"])
    assert [type(event) for event in pair.take_alice()] == [ResponseReceived]
    pair.alice.receive_data(b"")
    assert drain(pair.alice) == [Ended(is_clean=True)]


def test_requests_that_cross_a_goodbye_are_told_so() -> None:
    """A request sent before the goodbye arrived ends with GOING_AWAY instead of hanging."""
    pair = open_pair()
    pair.bob.goodbye(GoodbyeCode.SHUTDOWN)
    stream = pair.alice.send_request([bytes(MIB)])
    assert RequestEnded(stream, ResetCode.GOING_AWAY, is_local=False) in pair.take_alice()


def test_waiting_notices_are_bounded_and_the_oldest_go() -> None:
    """While nothing can be sent, 1,024 notices of a priority wait at most; newer ones replace older ones."""
    pair = open_pair()
    dropped = [pair.alice.send_notice([str(number).encode()]) for number in range(1068)]
    assert sum(dropped) == 44
    texts = [bytes(event.message) for event in pair.take_bob() if isinstance(event, NoticeReceived)]
    assert texts == [str(number).encode() for number in range(44, 1068)]


def test_what_is_gone_is_neither_answered_nor_reset() -> None:
    """A machine that failed or a stream that is over takes no answer and says nothing about it."""
    pair = open_pair()
    stream = pair.alice.send_request([b"ask"])
    pair.take_bob()
    assert pair.bob.send_response(stream, [b"first"])
    assert not pair.bob.send_response(stream, [b"second"])
    assert [type(event) for event in pair.take_alice()] == [ResponseReceived]
    pair.alice.reset(stream, ResetCode.CANCELLED)
    assert not pair.alice.wants_to_send
    late = pair.alice.send_request([b"ask"])
    pair.take_bob()
    pair.bob.receive_data(b"\0\1\0")
    with pytest.raises(RemoteProtocolError):
        pair.bob.next_event()
    assert not pair.bob.send_response(late, [b"late"])
    pair.bob.reset(late, ResetCode.CANCELLED)
    assert pair.bob.data_to_send(0.0) == []


def test_messages_over_the_peers_limit_are_refused_at_home() -> None:
    """Nothing is sent that the peer would have to refuse."""
    pair = open_pair(SessionLimits(max_message_bytes=10_000, max_notice_bytes=5_000))
    for send, size in ((pair.alice.send_request, 10_001), (pair.alice.send_notice, 5_001)):
        with pytest.raises(LocalProtocolError):
            send([bytes(size)])
    with pytest.raises(LocalProtocolError):
        pair.alice.send_request([])
    stream = pair.alice.send_request([b"ask"])
    pair.take_bob()
    with pytest.raises(LocalProtocolError):
        pair.bob.send_response(stream, [bytes(10_001)])
    assert pair.bob.send_response(stream, [bytes(10_000)])
