"""The datagram envelope: only what its sender signed, for us, now, in this network, and once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moed.protocol.envelope import (
    HEADER_BYTES,
    MAX_AMPLIFICATION,
    MAX_DATAGRAM_BYTES,
    PADDED_REQUEST_BYTES,
    WINDOW_S,
    Opener,
    seal,
)
from moed.protocol.errors import (
    BadSignature,
    Expired,
    LocalProtocolError,
    Malformed,
    RemoteProtocolError,
    TooLarge,
    Unexpected,
)
from moed.protocol.identity import Identity

NETWORK = b"n" * 32
NOW_S = 1_800_000_000.0
ALICE, BOB, CAROL = Identity(b"a" * 32), Identity(b"b" * 32), Identity(b"c" * 32)


def opener(node: Identity = BOB, network: bytes = NETWORK, max_remembered: int = 16_384) -> Opener:
    return Opener(node.node_id, network, max_remembered=max_remembered)


def sealed(body: bytes = b"body", *, recipient: Identity | None = BOB, nonce: int = 0, now_s: float = NOW_S) -> bytes:
    node_id = recipient.node_id if recipient else None
    return seal(ALICE, NETWORK, node_id, body, now_s=now_s, nonce=nonce.to_bytes(8, "big"))


@given(st.binary(max_size=MAX_DATAGRAM_BYTES - HEADER_BYTES), st.integers(0, MAX_DATAGRAM_BYTES))
def test_a_sealed_body_opens_for_its_recipient(body: bytes, at_least_bytes: int) -> None:
    """Body and proven sender come out; padding is honoured and gone."""
    data = seal(ALICE, NETWORK, BOB.node_id, body, now_s=NOW_S, nonce=bytes(8), at_least_bytes=at_least_bytes)
    assert max(HEADER_BYTES + len(body), at_least_bytes) == len(data) <= MAX_DATAGRAM_BYTES
    opened = opener().open(data, NOW_S + 1)
    assert (opened.body, opened.sender_id, opened.sender_key) == (body, ALICE.node_id, ALICE.public_key)
    assert opened.is_addressed


@given(st.binary(max_size=1300))
def test_any_bytes_give_only_typed_errors(data: bytes) -> None:
    """Random datagrams, short and long, are refused with a typed error and remembered nowhere."""
    with pytest.raises(RemoteProtocolError):
        opener().open(data, NOW_S)


@given(st.data())
def test_no_byte_can_be_changed(data: st.DataObject) -> None:
    """The signature binds every byte: whichever is changed, the datagram is refused."""
    datagram = bytearray(
        seal(ALICE, NETWORK, BOB.node_id, b"body" * 9, now_s=NOW_S, nonce=bytes(8), at_least_bytes=250)
    )
    at = data.draw(st.integers(0, len(datagram) - 1))
    datagram[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RemoteProtocolError):
        opener().open(bytes(datagram), NOW_S)


def test_each_fault_has_its_name() -> None:
    """Foreign network, other recipient, stale, from the future, replayed, short, long, forged."""
    with pytest.raises(Unexpected, match="network"):
        opener(network=b"m" * 32).open(sealed(), NOW_S)
    with pytest.raises(BadSignature):  # same first bytes, another network all the same
        opener(network=NETWORK[:8] + b"m" * 24).open(sealed(), NOW_S)
    with pytest.raises(Unexpected, match="another node"):
        opener(CAROL).open(sealed(), NOW_S)
    for off_s in (-WINDOW_S - 1, WINDOW_S + 1):
        with pytest.raises(Expired, match="sent"):
            opener().open(sealed(), NOW_S + off_s)
    with pytest.raises(Malformed):
        opener().open(sealed()[: HEADER_BYTES - 1], NOW_S)
    with pytest.raises(TooLarge):
        opener().open(bytes(MAX_DATAGRAM_BYTES + 1), NOW_S)
    with pytest.raises(LocalProtocolError):
        sealed(bytes(MAX_DATAGRAM_BYTES))
    assert not opener().open(sealed(recipient=None), NOW_S).is_addressed


def test_a_replay_is_refused_for_as_long_as_its_time_would_pass() -> None:
    """A copy never opens again, neither at once nor at any later second of its window."""
    receiver = opener()
    early = sealed(now_s=NOW_S + WINDOW_S)  # a sender whose clock is ahead: good for two windows
    receiver.open(early, NOW_S)
    for after_s in range(int(2 * WINDOW_S) + 5):
        receiver.open(sealed(nonce=after_s + 1, now_s=NOW_S + after_s), NOW_S + after_s)
        with pytest.raises(Expired):
            receiver.open(early, NOW_S + after_s)


def test_memory_of_replays_is_bounded() -> None:
    """However many datagrams come, no more than two generations are remembered."""
    receiver = opener(max_remembered=50)
    for nonce in range(500):
        receiver.open(sealed(nonce=nonce), NOW_S)
        assert len(receiver._newer) + len(receiver._older) <= 100
    with pytest.raises(Expired):
        receiver.open(sealed(nonce=499), NOW_S)


@given(st.integers(0, MAX_DATAGRAM_BYTES))
def test_an_answer_never_exceeds_three_times_the_question(at_least_bytes: int) -> None:
    """The budget keeps the amplification bound, and a padded question buys a whole datagram."""
    data = seal(ALICE, NETWORK, BOB.node_id, b"?", now_s=NOW_S, nonce=bytes(8), at_least_bytes=at_least_bytes)
    budget = opener().open(data, NOW_S).reply_budget_bytes + HEADER_BYTES
    assert budget <= MAX_AMPLIFICATION * len(data)
    assert budget <= MAX_DATAGRAM_BYTES
    if len(data) >= PADDED_REQUEST_BYTES:
        assert budget == MAX_DATAGRAM_BYTES
