"""Two session machines in memory: streams, limits, priorities, cancellation, and what hostile bytes can do."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moed.protocol import aead
from moed.protocol.batch import Batch
from moed.protocol.errors import BadCiphertext, LocalProtocolError, Malformed, RemoteProtocolError, TooLarge, Unexpected
from moed.protocol.frames import Data, Frame, Open, Ping, Priority, Reset, ResetCode, Role, Window, encode_frame
from moed.protocol.handshake import SessionLimits
from moed.protocol.incoming import ByteBudget
from moed.protocol.session import Session
from moed.protocol.session_events import NoticeReceived, RequestEnded, RequestReceived, ResponseReceived, SessionOpened
from support.pairs import ALICE, BOB, NETWORK_ID, SessionPair, drain, joined, open_pair

MIB = 1 << 20
SIZES = [1, 2, 1000, 16 << 10, (16 << 10) + 1, 64 << 10, 65_519, 300_000, 5 * MIB + 3]


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes that show a wrong order or offset."""
    return random.Random(seed).randbytes(size)


def inject_block(pair: SessionPair, block: bytes, *chunks: bytes) -> None:
    """Send Bob a block, and raw messages after it, in Alice's encryption, past every check that her machine makes."""
    parts = [memoryview(part) for part in (block, *chunks)]
    pair.bob.receive_data(Batch().seal(pair.alice.peer.send, parts))


def inject(pair: SessionPair, *frames: Frame) -> None:
    """The same with frames."""
    inject_block(pair, b"".join(encode_frame(frame) for frame in frames))


def test_opening_names_the_peer_on_both_sides() -> None:
    """Each side learns the other's node id, public key and limits."""
    pair = SessionPair()
    pair.settle()
    assert [type(event) for event in pair.alice_events] == [SessionOpened]
    opened = pair.bob_events[0]
    assert isinstance(opened, SessionOpened)
    assert opened.node_id == ALICE.node_id
    assert pair.alice.peer.public_key == BOB.public_key
    assert pair.alice.peer.handshake_hash == pair.bob.peer.handshake_hash


@pytest.mark.parametrize("size", SIZES)
def test_request_and_response_of_any_length_arrive_unchanged(size: int) -> None:
    """Both ways, in one frame or many windows, from several buffers; nothing is held afterwards."""
    budget = ByteBudget(64 * MIB)
    pair = open_pair(bob_budget=budget)
    message = pattern(size)
    cut = size // 3
    stream = pair.alice.send_request([message[:cut], b"", message[cut:]], deadline_s=2.5)
    (request,) = pair.take_bob()
    assert isinstance(request, RequestReceived)
    assert (request.stream, request.remaining_ms) == (stream, 2500)
    assert request.message == message
    assert budget.used_bytes == (size if size > 64 << 10 else 0)
    assert pair.bob.send_response(stream, [message[::-1]])
    (response,) = pair.take_alice()
    assert isinstance(response, ResponseReceived)
    assert response.message == message[::-1]
    assert pair.alice.open_streams == pair.bob.open_streams == budget.used_bytes == 0


@settings(max_examples=20, deadline=None)
@given(
    messages=st.lists(st.tuples(st.integers(1, 200_000), st.sampled_from(Priority)), max_size=8),
    cuts=st.lists(st.integers(1, 70_000), max_size=5),
)
def test_any_cut_of_the_byte_stream_gives_the_same_messages(
    messages: list[tuple[int, Priority]], cuts: list[int]
) -> None:
    """How TCP cuts the bytes does not matter."""
    pair = open_pair()
    sent = {}
    for number, (size, priority) in enumerate(messages):
        sent[pair.alice.send_request([pattern(size, number)], priority=priority)] = pattern(size, number)
    received: dict[int, bytes] = {}
    turn = 0
    while data := joined(pair.alice.data_to_send(0.0)):
        while data:
            cut = [*cuts, 30_011][turn % (len(cuts) + 1)]
            turn += 1
            pair.bob.receive_data(data[:cut])
            data = data[cut:]
        for event in drain(pair.bob):
            assert isinstance(event, RequestReceived)
            received[event.stream] = bytes(event.message)
    assert received == sent


def test_a_vote_overtakes_a_large_tensor() -> None:
    """An urgent notice queued while 32 MiB are under way is sent in the very next turn."""
    pair = open_pair()
    pair.alice.send_request([pattern(1000), memoryview(bytearray(32 * MIB))], priority=Priority.BULK)
    for _ in range(3):
        pair.step()
    pair.alice.send_notice([b"vote"], priority=Priority.HIGH)
    pair.step()
    (vote,) = pair.bob_events
    assert isinstance(vote, NoticeReceived)
    assert bytes(vote.message) == b"vote"
    assert [type(event) for event in pair.take_bob()] == [NoticeReceived, RequestReceived]


def test_equal_priorities_take_turns_and_low_ones_do_not_starve() -> None:
    """Two equal messages end within one round of each other; a bulk one ends while normal ones keep coming."""
    pair = open_pair()
    streams = [pair.alice.send_request([bytes(2 * MIB)]) for _ in range(2)]
    bulk = pair.alice.send_request([bytes(MIB)], priority=Priority.BULK)
    done_at: dict[int, int] = {}
    for turn in range(200):
        if turn % 8 == 0:
            pair.alice.send_request([bytes(MIB)])
        pair.step()
        for event in pair.bob_events:
            assert isinstance(event, RequestReceived)
            done_at.setdefault(event.stream, turn)
    assert abs(done_at[streams[0]] - done_at[streams[1]]) <= 4  # turns: others are in the round too
    assert bulk in done_at


def test_bytes_under_way_to_a_slow_reader_are_bounded_by_the_window() -> None:
    """Without credit from the receiver a sender stops after its window."""
    pair = open_pair(SessionLimits(window_bytes=1 << 20))
    pair.alice.send_request([bytes(4 * MIB)])
    sent = 0
    while data := joined(pair.alice.data_to_send(0.0)):
        sent += len(data)
    assert MIB <= sent < MIB + 10_000


def test_an_honest_sender_queues_what_the_peer_has_no_room_for() -> None:
    """Over the peer's streams and bytes in flight requests wait at home, and all arrive in the end."""
    pair = open_pair(SessionLimits(max_streams=2, max_inflight_bytes=300_000, max_message_bytes=200_000))
    for _ in range(5):
        pair.alice.send_request([bytes(150_000)])
    served = 0
    while requests := pair.take_bob():
        assert len(requests) <= 2
        for event in requests:
            assert isinstance(event, RequestReceived)
            served += 1
            pair.bob.send_response(event.stream, [bytes(150_000)])
    assert served == 5
    assert len(pair.take_alice()) == 5


LIMITS = SessionLimits(
    max_streams=2,
    max_message_bytes=1 << 20,
    max_inflight_bytes=1 << 20,
    window_bytes=1 << 16,
    max_notice_bytes=1 << 17,
)


def request(stream: int, size: int = 10, inline: bytes = b"0123456789", role: Role = Role.REQUEST) -> Open:
    """An OPEN frame."""
    return Open(stream, role, Priority.NORMAL, 0, size, inline)


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        ([request(1, size=(1 << 20) + 1)], TooLarge),
        ([request(1, size=1 << 63)], TooLarge),
        ([request(1, size=(1 << 17) + 1, role=Role.NOTICE)], TooLarge),
        ([request(1), request(3), request(5)], TooLarge),
        ([request(1, size=700_000), request(3, size=700_000)], TooLarge),
        ([request(1), request(1)], Unexpected),
        ([request(2)], Unexpected),
        ([request(1, role=Role.RESPONSE)], Unexpected),
        ([request(2, role=Role.RESPONSE)], Unexpected),
        ([request(1, size=20), Data(1, 11)], Malformed),
        ([request(1, size=1 << 20), Data(1, 1 << 17)], Unexpected),
        ([Reset(2, ResetCode.CANCELLED)], Unexpected),
        ([Window(100, 1)], Unexpected),
        ([Data(2, 1)], Unexpected),
        ([Ping(number) for number in range(17)], Unexpected),
        ([request(1, size=5)], Malformed),
        ([request(1, size=0, inline=b"")], Malformed),
        ([Data(1, 0)], Malformed),
    ],
)
def test_every_broken_rule_has_its_typed_error_and_kills_the_machine(
    frames: list[Frame], error: type[RemoteProtocolError]
) -> None:
    """Limits are checked before allocation, streams by owner, windows by the byte; afterwards nothing works."""
    pair = open_pair(LIMITS)
    allocated: list[int] = []

    def allocate(size: int) -> memoryview:
        allocated.append(size)
        return memoryview(bytearray(size))

    pair.bob._inbox._allocate = allocate
    inject(pair, *frames)
    with pytest.raises(error):
        drain(pair.bob)
    assert sum(allocated) <= LIMITS.max_inflight_bytes
    with pytest.raises(error):
        pair.bob.next_event()
    assert pair.bob.data_to_send(0.0) == []
    with pytest.raises(LocalProtocolError):
        pair.bob.send_request([b"x"])


def test_a_raw_message_longer_than_announced_is_refused() -> None:
    """Raw body may not run past its DATA frame."""
    pair = open_pair()
    block = encode_frame(request(1, size=20)) + encode_frame(Data(1, 5))
    inject_block(pair, block, b"123456")
    with pytest.raises(Malformed):
        drain(pair.bob)


def test_endless_resets_without_reading_are_bounded() -> None:
    """A peer that makes us answer but never reads is cut off before the answers pile up."""
    pair = open_pair(bob_budget=ByteBudget(0))
    for _ in range(20):
        inject(pair, *[request(2 * number + 1, size=100_000) for number in range(500)])
    with pytest.raises(Unexpected):
        drain(pair.bob)
    assert pair.bob._control._bytes < 80_000


class _Fuzzed:
    """Where a byte stream is damaged: in the handshake or after it, and which side receives it."""

    def __init__(self, turns: int, *, to_bob: bool) -> None:
        self.pair = SessionPair()
        for _ in range(turns):
            self.pair.step()
        self.victim = self.pair.bob if to_bob else self.pair.alice


@settings(max_examples=150, deadline=None)
@given(data=st.binary(min_size=1, max_size=3000), turns=st.integers(0, 3), to_bob=st.booleans())
def test_any_bytes_give_only_the_remote_error(data: bytes, turns: int, to_bob: bool) -> None:
    """In every phase and on both sides, foreign bytes raise RemoteProtocolError, the same for ever, or wait."""
    fuzzed = _Fuzzed(turns, to_bob=to_bob)
    fuzzed.victim.receive_data(data)
    faults = []
    for _ in range(2):
        try:
            drain(fuzzed.victim)
        except RemoteProtocolError as fault:
            faults.append(fault)
    assert len(faults) in (0, 2)
    assert len(set(map(id, faults))) <= 1


@settings(max_examples=300, deadline=None)
@given(block=st.binary(max_size=300) | st.lists(st.sampled_from(range(256)), max_size=60).map(bytes))
def test_any_authenticated_block_gives_only_the_remote_error(block: bytes) -> None:
    """A peer that holds the keys but sends nonsense raises RemoteProtocolError, or is merely odd."""
    pair = open_pair(LIMITS)
    inject_block(pair, block)
    try:
        drain(pair.bob)
        pair.bob.data_to_send(0.0)
    except RemoteProtocolError:
        assert pair.bob.data_to_send(0.0) == []


STREAMS = st.integers(1, 8)
FRAMES: Any = st.one_of(
    st.builds(
        Open,
        STREAMS,
        st.sampled_from(Role),
        st.sampled_from(Priority),
        st.integers(0, 2**32 - 1),
        st.integers(1, 1 << 21),
        st.binary(max_size=30),
    ),
    st.builds(Data, STREAMS, st.integers(1, 100)),
    st.builds(Window, STREAMS, st.integers(0, 2**32 - 1)),
    st.builds(Reset, STREAMS, st.sampled_from(ResetCode)),
    st.builds(Ping, st.integers(0, 2**64 - 1)),
)


@settings(max_examples=200, deadline=None)
@given(frames=st.lists(FRAMES, max_size=12), open_first=st.integers(0, 2), raw=st.binary(max_size=40))
def test_any_frames_of_a_hostile_peer_give_only_the_remote_error(
    frames: list[Frame], open_first: int, raw: bytes
) -> None:
    """Well-formed frames in any order, with calls of ours open, never break an invariant of the machine."""
    pair = open_pair(LIMITS, bob_budget=ByteBudget(1 << 20))
    for _ in range(open_first):
        pair.bob.send_request([bytes(100_000)])
    pair.settle()
    pair.bob_events.clear()
    try:
        for frame in frames:
            inject_block(pair, encode_frame(frame), *([raw] if isinstance(frame, Data) else []))
            for event in drain(pair.bob):
                if isinstance(event, RequestReceived):
                    pair.bob.send_response(event.stream, [b"answer"])
            pair.bob.data_to_send(0.0)
    except RemoteProtocolError:
        pass
    pair.bob.close()
    assert pair.bob._inbox._budget.used_bytes == 0


def test_another_network_never_opens() -> None:
    """Different network ids break the handshake on the dialling side with BadCiphertext."""
    pair = SessionPair(alice_network=bytes(32))
    with pytest.raises(BadCiphertext):
        pair.settle()


def test_a_tampered_byte_after_the_handshake_kills_the_session() -> None:
    """One flipped bit in a transport message raises BadCiphertext."""
    pair = open_pair()
    pair.alice.send_request([b"hello"])
    data = bytearray(joined(pair.alice.data_to_send(0.0)))
    data[-1] ^= 1
    pair.bob.receive_data(data)
    with pytest.raises(BadCiphertext):
        drain(pair.bob)


def test_a_stranger_costs_a_small_buffer() -> None:
    """Before the handshake no length is believed beyond one kibibyte."""
    session = Session(BOB, NETWORK_ID, is_initiator=False, ephemeral=b"y" * 32)
    session.receive_data(bytes([0x13]) + (1025).to_bytes(2, "big"))
    with pytest.raises(TooLarge):
        drain(session)
    assert len(session.receive_space()) <= 4096


def test_idle_sessions_give_their_large_buffers_back() -> None:
    """After a large message `trim` leaves a few kibibytes, and the session still works."""
    pair = open_pair()
    pair.alice.send_request([bytes(MIB)])
    pair.take_bob()
    assert len(pair.bob.receive_space()) > 200_000
    pair.bob.trim()
    pair.alice.trim()
    assert len(pair.bob.receive_space()) <= 4096
    pair.alice.send_request([bytes(MIB)])
    assert [type(event) for event in pair.take_bob()] == [RequestReceived]


def test_the_public_binding_carries_a_whole_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where libsodium's own handle is not there, handshake and tensors go through PyNaCl's public functions."""
    monkeypatch.setattr(aead, "_SEAL", aead._table(aead._public_seal))
    monkeypatch.setattr(aead, "_OPEN", aead._table(aead._public_open))
    pair = open_pair()
    data = bytes(range(256)) * 2000
    stream = pair.alice.send_request([data])
    (request,) = pair.take_bob()
    assert isinstance(request, RequestReceived)
    assert request.message == data
    pair.bob.send_response(request.stream, [data[::-1]])
    (response,) = pair.take_alice()
    assert isinstance(response, ResponseReceived)
    assert response.stream == stream
    assert response.message == data[::-1]


def test_a_large_request_is_judged_by_its_first_bytes() -> None:
    """Refused, it costs no buffer; the session and its limits are as before."""
    judged: list[tuple[bytes, int]] = []
    pair = open_pair()

    def screen(first: memoryview, size: int) -> bool:
        judged.append((bytes(first), size))
        return size != 300_000

    pair.bob._inbox._screen = screen
    refused = pair.alice.send_request([b"head", bytes(299_996)])
    assert pair.take_alice() == [RequestEnded(refused, ResetCode.UNFIT, is_local=False)]
    assert pair.bob.open_streams == pair.alice.open_streams == 0
    pair.alice.send_request([b"head", bytes(200_000)])
    pair.alice.send_request([bytes(60_000)])
    assert len([event for event in pair.take_bob() if isinstance(event, RequestReceived)]) == 2
    assert judged == [(b"head", 300_000), (b"head", 200_004)]
