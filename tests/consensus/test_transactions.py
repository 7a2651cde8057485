"""Transactions as bytes and under their signatures: every kind comes back as it went, and no part can be changed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moed.consensus.evidence import double_vote
from moed.consensus.transactions import (
    AddStake,
    Body,
    CommitWeights,
    Delegate,
    Register,
    ReportEvidence,
    RevealWeights,
    RotateKey,
    SetOwner,
    SetTake,
    SetWeights,
    SignedTransaction,
    Sponsor,
    Transfer,
    Undelegate,
    Withdraw,
    decode_transaction,
    sign_consent,
    sign_transaction,
    weights_commitment,
)
from moed.consensus.votes import VoteKind, sign_vote
from moed.protocol.codec import decode, encode, encode_record
from moed.protocol.errors import BadSignature, RemoteProtocolError
from support.chains import key

NETWORK = b"\5" * 32
ROW = ((0, 3), (7, 65_535))
A, B = key(1).public_key, key(2).public_key
VOTES = [sign_vote(key(3), NETWORK, VoteKind.PREVOTE, 9, 1, bytes([n]) * 32) for n in (1, 2)]
BODIES: list[Body] = [
    Transfer(to=B, amount=1),
    Transfer(to=B, amount=2**63 - 1, memo=b"rent"),
    AddStake(amount=5),
    Delegate(to=B, amount=5),
    Undelegate(pool=B),
    Undelegate(pool=B, amount=5),
    Withdraw(pool=B),
    SetTake(uid=3, take_ppm=10_000),
    Register(),
    Register(owner=B),
    Sponsor(key=B, consent=sign_consent(key(2), NETWORK, A), expires=9),
    RotateKey(uid=1, key=B, consent=sign_consent(key(2), NETWORK, A)),
    SetOwner(uid=1, owner=B),
    SetWeights(weights=ROW),
    CommitWeights(commitment=weights_commitment(A, bytes(32), ROW)),
    RevealWeights(weights=ROW, salt=bytes(32)),
    ReportEvidence(evidence=double_vote(*VOTES)),
]
NAMES = [f"{number} {type(body).__name__}" for number, body in enumerate(BODIES)]


def test_every_kind_is_tried_here() -> None:
    """A new kind of body cannot be forgotten."""
    assert {type(body) for body in BODIES} == set(Body.__args__)


@pytest.mark.parametrize("body", BODIES, ids=NAMES)
def test_a_transaction_survives_its_bytes(body: Body) -> None:
    """It decodes to the same with the same id, and its signatures hold on its network alone."""
    sent = sign_transaction(key(1), NETWORK, 7, body)
    again = decode_transaction(encode_record(sent))
    assert (again, again.id) == (sent, sent.id)
    again.check_signature(NETWORK)
    with pytest.raises(BadSignature):
        again.check_signature(b"\6" * 32)


@pytest.mark.parametrize("body", BODIES, ids=NAMES)
def test_no_byte_of_a_transaction_can_be_changed(body: Body) -> None:
    """A flipped bit anywhere is malformed, or breaks a signature."""
    data = encode_record(sign_transaction(key(1), NETWORK, 7, body))
    for at in range(0, len(data), 3):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises(RemoteProtocolError):
            decode_transaction(bytes(changed)).check_signature(NETWORK)


@pytest.mark.parametrize(
    "number", [index for index, body in enumerate(BODIES) if isinstance(body, Sponsor | RotateKey)]
)
def test_a_consent_is_for_one_owner_and_one_network(number: int) -> None:
    """The sender's own signature does not make up for the key's word, given to somebody else or elsewhere."""
    for consent in (
        sign_consent(key(2), NETWORK, B),
        sign_consent(key(2), b"\6" * 32, A),
        sign_consent(key(3), NETWORK, A),
    ):
        body = msgspec.structs.replace(BODIES[number], consent=consent)
        with pytest.raises(BadSignature):
            sign_transaction(key(1), NETWORK, 7, body).check_signature(NETWORK)


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_foreign_bytes_end_in_a_typed_error(data: bytes) -> None:
    """Whatever arrives is a transaction or is refused by type."""
    try:
        decode_transaction(data)
    except RemoteProtocolError:
        return


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.binary(max_size=40), st.text(max_size=12)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=200)
@given(st.sampled_from(range(len(BODIES))), st.data())
def test_wrong_fields_end_in_a_typed_error(number: int, data: st.DataObject) -> None:
    """A well-formed message with one field replaced by anything is refused, or is another transaction in full."""
    plain = decode(encode_record(sign_transaction(key(1), NETWORK, 7, BODIES[number])))
    place = plain if data.draw(st.booleans()) else plain["body"]
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(PLAIN)
    try:
        again = decode_transaction(encode(plain))
    except RemoteProtocolError:
        return
    assert decode_transaction(encode_record(again)) == again
    assert isinstance(again, SignedTransaction)
