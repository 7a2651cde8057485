"""Whole messages: round trips, another reader, alignment, and hostile bytes."""

from __future__ import annotations

from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moed.protocol.codec import Record
from moed.protocol.errors import LocalProtocolError, Malformed, RemoteProtocolError, TooLarge
from moed.protocol.messages import (
    Head,
    NoticeHead,
    RefusalHead,
    ReplyHead,
    RequestHead,
    decode_message,
    encode_message,
)
from moed.protocol.tensor_codecs import decode_tensor
from moed.protocol.tensors import Codec, plain_array

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
BODIES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
METHODS = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=64)
HEADS: st.SearchStrategy[Head] = st.one_of(
    st.builds(RequestHead, method=METHODS, body=BODIES),
    st.builds(NoticeHead, method=METHODS, body=BODIES),
    st.builds(ReplyHead, body=BODIES),
    st.builds(RefusalHead, code=METHODS, message=TEXT),
)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
DTYPES = st.lists(st.sampled_from("bhilfde?"), min_size=5, max_size=5)


def whole(head: Head, *tensors: Any, codec: Codec = Codec.NONE) -> bytes:
    """The bytes of a message."""
    return b"".join(bytes(buffer) for buffer in encode_message(head, tensors, codec=codec))


@settings(deadline=None)
@given(
    head=HEADS,
    shapes=st.lists(SHAPES, max_size=5),
    dtypes=st.lists(st.sampled_from("bhilfde?"), min_size=5, max_size=5),
)
def test_messages_come_back_with_aligned_tensors(head: Head, shapes: list[tuple[int, ...]], dtypes: list[str]) -> None:
    """Any head and any tensors arrive equal, their values at multiples of 16, and encode to the same bytes again."""
    arrays = [np.ones(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=False)]
    data = whole(head, *arrays)
    buffer = bytearray(data)
    message = decode_message(memoryview(buffer))
    assert message.head == head
    start = np.frombuffer(buffer, np.uint8).ctypes.data
    for tensor, array in zip(message.tensors, arrays, strict=True):
        back = plain_array(tensor)
        np.testing.assert_array_equal(back, array)
        if array.size:
            assert (back.ctypes.data - start) % 16 == 0
    assert whole(message.head, *message.tensors) == data


def test_plain_cbor2_reads_a_whole_message() -> None:
    """Without any of our code: one item, the head as a map, the tensor's shape and values where they belong."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4) / 3
    data = whole(RequestHead(method="text.next", body={"rows": 3}), values, np.arange(5, dtype=np.int64))
    head, *items = cbor2.loads(data)
    assert head == {"kind": "request", "method": "text.next", "body": {"rows": 3}, "hashed": False}
    first, second = [item for item in items if not isinstance(item, bytes)]
    assert first.tag == second.tag == 40
    shape, typed = first.value
    assert (shape, typed.tag) == ([3, 4], 85)
    np.testing.assert_array_equal(np.frombuffer(typed.value, "<f4").reshape(shape), values)
    assert np.frombuffer(second.value[1].value, "<i8").tolist() == [0, 1, 2, 3, 4]


def test_the_tensors_memory_is_among_the_buffers() -> None:
    """A large tensor is not copied on the way out."""
    values = np.zeros(100_000, np.float32)
    buffers = encode_message(ReplyHead(), [values])
    assert any(np.shares_memory(np.frombuffer(buffer, np.uint8), values) for buffer in buffers if len(buffer) > 1000)


def test_a_codec_applies_to_each_tensor_that_it_can_carry() -> None:
    """Floats are shortened, integers travel as they are."""
    data = whole(ReplyHead(), np.ones(1000, np.float32), np.arange(3), codec=Codec.INT8_BLOCK)
    message = decode_message(memoryview(data))
    assert [tensor.codec for tensor in message.tensors] == [Codec.INT8_BLOCK, Codec.NONE]
    assert len(data) < 1300
    np.testing.assert_allclose(decode_tensor(message.tensors[0]), 1, atol=1 / 253)


class Greeting(Record, frozen=True):
    """A record as a body."""

    name: str
    number: int


def test_a_record_may_be_a_body() -> None:
    """It travels as a map."""
    message = decode_message(memoryview(whole(ReplyHead(body=Greeting(name="a", number=3)))))
    assert message.head == ReplyHead(body={"name": "a", "number": 3})


DEEP: Any = 1
for _ in range(17):
    DEEP = [DEEP]


@pytest.mark.parametrize("body", [1 << 64, {1: "integer key"}, np.float32(1), object(), DEEP])
def test_a_body_that_the_other_side_would_refuse_is_our_own_mistake(body: Any) -> None:
    """Bignums, other keys, tags, foreign types and deep nesting never leave this side."""
    with pytest.raises(LocalProtocolError):
        whole(RequestHead(method="x", body=body))


def test_too_many_tensors_are_our_own_mistake() -> None:
    """64 travel, 65 do not."""
    assert len(decode_message(memoryview(whole(ReplyHead(), *[np.ones(1)] * 64))).tensors) == 64
    with pytest.raises(LocalProtocolError):
        whole(ReplyHead(), *[np.ones(1)] * 65)


GOOD = whole(
    RequestHead(method="m", body=[1, "two", b"3"]), np.ones((2, 2), np.float32), np.zeros((0,), np.int8), np.ones(3)
)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"\xa0",
        b"\x81\xa0",
        cbor2.dumps([{"kind": "request"}]),
        cbor2.dumps([{"kind": "what", "body": None}], canonical=True),
        cbor2.dumps([{"body": None, "kind": "request", "method": ""}], canonical=True),
        cbor2.dumps([{"body": None, "kind": "request", "method": "m", "extra": 1}], canonical=True),
        cbor2.dumps([{"kind": "request", "body": None, "method": "m"}]),
        cbor2.dumps([{"body": None, "kind": "reply"}, b""], canonical=True),
        cbor2.dumps([{"body": None, "kind": "reply"}, 1], canonical=True),
        GOOD + b"\0",
        GOOD[:-1],
        b"\x81" + GOOD[1:],
        b"\x9f" + GOOD[1:] + b"\xff",
    ],
    ids=range(15),
)
def test_malformed_messages_are_refused(data: bytes) -> None:
    """Wrong shape, kind, field, order, count or length."""
    with pytest.raises(Malformed):
        decode_message(memoryview(data))


def test_a_head_over_the_limit_is_refused() -> None:
    """The head alone is bounded: it is decoded into objects, tensors are not."""
    data = whole(ReplyHead(body="x" * 2000))
    with pytest.raises(TooLarge):
        decode_message(memoryview(data), max_head_bytes=1000)


@settings(max_examples=300, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, len(GOOD)), st.binary(max_size=4), st.integers(0, 4)), max_size=4))
def test_mutated_messages_are_refused_or_are_exactly_their_bytes(edits: list[tuple[int, bytes, int]]) -> None:
    """Damage anywhere gives RemoteProtocolError, or a message that encodes to the damaged bytes."""
    data = bytearray(GOOD)
    for at, inserted, removed in edits:
        data[at : at + removed] = inserted
    try:
        message = decode_message(memoryview(data))
    except RemoteProtocolError:
        return
    assert whole(message.head, *message.tensors) == bytes(data)


@given(data=st.binary(max_size=200))
def test_any_bytes_give_only_the_remote_error(data: bytes) -> None:
    """Foreign bytes are a message or a RemoteProtocolError."""
    try:
        message = decode_message(memoryview(data))
    except RemoteProtocolError:
        return
    assert whole(message.head, *message.tensors) == data
