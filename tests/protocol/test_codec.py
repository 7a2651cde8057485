"""The one CBOR that we accept: everything that we write, and of everything else nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moed.protocol.codec import (
    MAX_DEPTH,
    Record,
    check_again,
    check_item,
    decode,
    decode_record,
    encode,
    encode_record,
    read_head,
    write_head,
)
from moed.protocol.errors import Malformed, RemoteProtocolError, TooLarge

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBERS = st.integers(-(2**64), 2**64 - 1) | st.floats(allow_nan=False)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


class Sample(Record, frozen=True):
    """A record with the kinds of fields that ours have."""

    name: str
    count: int
    key: bytes
    tags: tuple[str, ...] = ()


def test_what_cannot_be_written_leaves_nothing_behind() -> None:
    inner: list[Any] = [1]
    with pytest.raises(cbor2.CBOREncodeError):
        encode([inner, object()])
    inner.append(inner)
    with pytest.raises(cbor2.CBOREncodeError):
        encode(inner)
    del inner[1]
    assert encode([inner, inner]) == bytes.fromhex("8281018101")


@given(value=VALUES)
def test_what_is_written_is_read_back(value: Any) -> None:
    """Any builtin value survives, and its bytes have no other reading."""
    data = encode(value)
    assert decode(data) == value
    assert check_item(memoryview(data)) == len(data)


def _end_of(check: Callable[..., int], data: memoryview, at: int) -> int | None:
    try:
        return check(data, at)
    except Malformed:
        return None


@given(
    items=st.lists(VALUES.map(encode) | st.binary(min_size=1, max_size=6), min_size=1, max_size=12),
    picks=st.lists(st.tuples(st.integers(0, 11), st.binary(max_size=4), st.integers(0, 9), st.integers(0, 3))),
)
def test_an_item_seen_before_ends_where_a_walk_ends(
    items: list[bytes], picks: list[tuple[int, bytes, int, int]]
) -> None:
    """Again and again, with other bytes after it, cut off, or in another place: the answer is the walk's."""
    for pick, after, cut, at in picks:
        item = items[pick % len(items)] + after
        data = memoryview(bytes(at) + item[: len(item) - cut])
        assert _end_of(check_again, data, at) == _end_of(check_item, data, at)


@settings(max_examples=500)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused_or_are_exactly_their_value(data: bytes) -> None:
    """Only RemoteProtocolError is raised, and what is accepted encodes to the same bytes."""
    try:
        value = decode(data)
    except RemoteProtocolError:
        return
    assert encode(value) == data


@given(data=st.binary(max_size=120))
def test_any_bytes_are_a_record_or_the_remote_error(data: bytes) -> None:
    """The same errors and no others come of records, and one that is accepted survives another trip."""
    try:
        record = decode_record(data, Sample)
    except RemoteProtocolError:
        return
    assert decode_record(encode_record(record), Sample) == record


@given(major=st.integers(0, 6), argument=st.integers(0, 2**64 - 1))
def test_heads_are_written_shortest_and_read_back(major: int, argument: int) -> None:
    """`write_head` gives what `read_head` takes, and what cbor2 writes for an integer."""
    head = write_head(major, argument)
    assert read_head(memoryview(head), 0) == (major, argument, len(head))
    assert write_head(0, argument) == cbor2.dumps(argument)


DEEP = b"\x81" * MAX_DEPTH + b"\x00"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x18\x17",  # 23 in two bytes
        b"\x19\x00\xff",  # 255 in three
        b"\x1b\x00\x00\x00\x00\xff\xff\xff\xff",
        b"\x9f\x00\xff",  # indefinite lengths
        b"\xbf\xff",
        b"\x5f\x41a\xff",
        b"\x1c",  # reserved heads
        b"\xa2\x61a\x00\x61a\x00",  # a key twice
        b"\xa2\x61b\x00\x61a\x00",  # keys out of order
        b"\xa1\x00\x00",  # a key that is no text
        b"\xa1\x61a",  # ends inside
        b"\x62a",
        b"\x61\xff",  # no UTF-8
        b"\xc2\x41\x01",  # bignum
        b"\xd8\x1d\x00",  # shared reference
        b"\xc0\x60",  # date
        b"\xf7",  # undefined
        b"\xf8\x20",  # other simple values
        b"\xfb\x3f\xf0\x00\x00\x00\x00\x00\x00",  # 1.0 in eight bytes
        b"\x00\x00",  # something after the item
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",  # lengths of all the world
        b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\xbb\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\x81" + DEEP,
        b"\x81" * 100_000,
    ],
    ids=range(26),
)
def test_everything_outside_the_subset_is_malformed(data: bytes) -> None:
    """Forms that a general decoder takes and that would give one value several encodings, or cost memory."""
    with pytest.raises(Malformed):
        decode(data)


def test_depth_and_size_are_bounded() -> None:
    """Sixteen levels pass, and the caller's byte limit holds."""
    assert decode(DEEP[1:]) is not None
    with pytest.raises(TooLarge):
        decode(encode(b"x" * 100), max_bytes=100)
    assert decode(encode(b"x" * 90), max_bytes=100) == b"x" * 90


@pytest.mark.parametrize(
    "value",
    [
        {"name": "n", "count": 1},
        {"name": "n", "count": 1.0, "key": b"k", "tags": []},
        {"name": "n", "count": "1", "key": b"k", "tags": []},
        {"name": "n", "count": 1, "key": "k", "tags": []},
        {"name": "n", "count": 1, "key": b"k", "tags": [], "more": 1},
        [],
        None,
    ],
    ids=range(7),
)
def test_records_take_their_own_fields_and_types_alone(value: Any) -> None:
    """No field without a default is missing, none is unknown, and nothing is converted between types."""
    with pytest.raises(Malformed):
        decode_record(encode(value), Sample)


def test_threads_decode_beside_each_other() -> None:
    """Blocks are parsed in worker threads while the event loop parses votes: what is remembered is shared by them."""

    def walk_many(thread: int) -> None:
        for number in range(6_000):
            item = memoryview(encode(bytes([thread]) + number.to_bytes(2, "big") + bytes(7 * number % 199)))
            assert check_again(item) == len(item)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(walk_many, range(4)))
    finally:
        sys.setswitchinterval(before)
