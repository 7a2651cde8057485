"""Kademlia's questions and answers on the wire: they round-trip, and any bytes give only typed errors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec
import pytest
import umsgpack
from hypothesis import given
from hypothesis import strategies as st

from moed.protocol import queries
from moed.protocol.errors import Malformed, RemoteProtocolError, Unexpected
from moed.protocol.queries import FindNode, FindValue, Found, Ping, Query, Store, Stun

ids = st.binary(min_size=20, max_size=20)
any_query = st.one_of(
    st.builds(Ping, ids),
    st.builds(Store, ids, ids, st.binary(max_size=960)),
    st.builds(FindNode, ids, ids),
    st.builds(FindValue, ids, ids, st.integers(0, 1 << 16)),
    st.just(Stun()),
)
neighbors = st.lists(st.tuples(ids, st.ip_addresses().map(str), st.integers(1, 65535)), max_size=40)


@given(ids, any_query)
def test_a_question_round_trips(message_id: bytes, query: Query) -> None:
    """Each question decodes to itself, and is the msgpack list that the kademlia package reads."""
    message = queries.split_body(queries.encode_query(message_id, query))
    assert (message.is_answer, message.message_id) == (False, message_id)
    assert queries.decode_query(message.payload) == query
    name, arguments = umsgpack.unpackb(message.payload)
    assert name == {"findnode": "find_node", "findvalue": "find_value"}.get(
        type(query).__name__.lower(), type(query).__name__.lower()
    )
    assert isinstance(arguments, list)


decoders = pytest.mark.parametrize(
    "decode",
    [
        lambda data: queries.decode_query(queries.split_body(data).payload),
        queries.decode_query,
        queries.decode_pong,
        queries.decode_stored,
        queries.decode_neighbors,
        queries.decode_found,
        queries.decode_seen_from,
    ],
)


@decoders
@given(data=st.binary(max_size=1200))
def test_any_bytes_give_a_value_or_a_typed_error(decode: Callable[[bytes], object], data: bytes) -> None:
    """No decoder raises anything but `RemoteProtocolError`."""
    with contextlib.suppress(RemoteProtocolError):
        decode(data)


@decoders
@pytest.mark.parametrize("begin", [b"", b"\x92\xa4ping", b"\x81\xa1z"], ids=["bare", "question", "unknown field"])
def test_nesting_as_deep_as_a_datagram_holds_gives_a_typed_error(
    decode: Callable[[bytes], object], begin: bytes
) -> None:
    """An answer that a search reads in its own task must not end the node by a `RecursionError`."""
    with pytest.raises(RemoteProtocolError):
        decode(begin + b"\x91" * 1_200)


@pytest.mark.parametrize("bomb", [b"\x91" * 1190, b"\xdd\xff\xff\xff\xff", b"\x81\xa0" * 500])
def test_deep_and_huge_claims_are_refused(bomb: bytes) -> None:
    """Nesting and sizes that the bytes do not hold are malformed, at no cost in memory or stack."""
    for decode in (queries.decode_query, queries.decode_neighbors, queries.decode_found):
        with pytest.raises(Malformed):
            decode(bomb)


def test_an_unknown_question_is_named() -> None:
    """A question outside the five is `Unexpected`, whatever its arguments."""
    with pytest.raises(Unexpected, match="refresh_table"):
        queries.decode_query(msgspec.msgpack.encode(["refresh_table", []]))


@given(neighbors, st.integers(0, 1100))
def test_neighbours_are_cut_to_their_budget(found: list[tuple[bytes, str, int]], budget_bytes: int) -> None:
    """The nearest that fit are kept, in order, and their encoding is within the budget."""
    fitted = queries.fit_neighbors(found, budget_bytes)
    assert fitted == found[: len(fitted)]
    assert len(msgspec.msgpack.encode(fitted)) <= max(budget_bytes, 1)
    if len(fitted) < min(len(found), queries.MAX_NEIGHBORS):
        one_more = found[: len(fitted) + 1]
        # heads are reckoned at their longest: a byte too many for a short text, two for a small port, two for the array
        assert len(msgspec.msgpack.encode(one_more)) + 2 + 3 * len(one_more) > budget_bytes
    assert queries.decode_neighbors(msgspec.msgpack.encode(fitted)) == fitted


@pytest.mark.parametrize("host", ["example.org", "224.0.0.1", "0.0.0.0", "::", "ff02::1", "fe80::1%eth0", "1.2.3"])
def test_only_numeric_unicast_hosts_become_contacts(host: str) -> None:
    """A stranger's answer never causes a name look-up, a broadcast, or a scoped address."""
    with pytest.raises(Malformed):
        queries.contacts_of([(bytes(20), host, 9000)])


@given(st.lists(st.binary(max_size=300), max_size=3), st.one_of(st.none(), st.integers(0, 100)))
def test_a_found_answer_round_trips(value: list[bytes], after: int | None) -> None:
    """Records, the next offset and neighbours come back, also when there are none."""
    found = Found(value=value, next=after, nodes=[(bytes(20), "192.0.2.7", 9000)])
    message = queries.split_body(queries.encode_answer(bytes(20), found))
    assert message.is_answer
    assert queries.decode_found(message.payload) == found
    assert queries.decode_found(msgspec.msgpack.encode(Found())) == Found()
