"""Receipts: only what both sides saw is signed by both, once."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moed.protocol.codec import decode_record, encode_record
from moed.protocol.errors import BadSignature, Malformed, Unexpected
from moed.protocol.identity import Identity
from moed.protocol.receipts import (
    MAX_CALLS,
    MAX_REMEMBERED,
    AnsweredCalls,
    CallReceipt,
    ServedCalls,
    SignedSheet,
    claim_sheet,
    message_hash,
)

SERVER, CALLER = Identity(b"s" * 32), Identity(b"c" * 32)
NETWORK_ID, SESSION = b"n" * 32, b"h" * 32
WHO = (SERVER.public_key, CALLER.public_key, SESSION)


def call(sequence: int, **changes: Any) -> CallReceipt:
    fields = {"method": "expert.forward", "request_bytes": 4200, "answer_bytes": 4300, "served_us": 150}
    return CallReceipt(**{"sequence": sequence, **fields, **changes})


def both(*sequences: int) -> tuple[ServedCalls, AnsweredCalls]:
    """Two sides that saw the same calls; the caller waited longer than the server worked."""
    served, answered = ServedCalls(*WHO), AnsweredCalls(*WHO)
    for sequence in sequences:
        served.add(call(sequence))
        answered.add(call(sequence, served_us=400))
    return served, answered


def test_a_sheet_signed_by_both_sides_stands() -> None:
    """It survives the disk, and one changed digit spoils it."""
    served, answered = both(1, 3, 5)
    sheet = served.next_sheet(1000)
    assert sheet is not None
    answered.approve(sheet)
    signed = claim_sheet(SERVER, NETWORK_ID, sheet).sign(CALLER, NETWORK_ID)
    assert decode_record(encode_record(signed), SignedSheet).check(NETWORK_ID) == sheet
    with pytest.raises(BadSignature):
        signed.check(b"m" * 32)
    raised = msgspec.structs.replace(sheet, calls=(call(1, request_bytes=4201), *sheet.calls[1:]))
    with pytest.raises(BadSignature):
        msgspec.structs.replace(signed, sheet=encode_record(raised)).check(NETWORK_ID)
    with pytest.raises(Malformed):
        msgspec.structs.replace(signed, sheet=signed.sheet + b"\x00").check(NETWORK_ID)


def test_the_longest_sheet_fits() -> None:
    """As many calls as one may hold, each with all that an entry may say."""
    served = ServedCalls(*WHO)
    for number in range(MAX_CALLS):
        hashes = {"request_hash": b"r" * 32, "answer_hash": b"a" * 32}
        served.add(call((1 << 62) - number, method="m" * 64, request_bytes=1 << 62, answer_bytes=1 << 62, **hashes))
    sheet = served.next_sheet(1 << 62)
    assert sheet is not None
    assert claim_sheet(SERVER, NETWORK_ID, sheet).check(NETWORK_ID) == sheet
    assert served.next_sheet(0) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "mixture.complete"},
        {"request_bytes": 1},
        {"answer_bytes": 10**9},
        {"served_us": 401},
        {"request_hash": b"x" * 32},
    ],
)
def test_the_caller_signs_nothing_that_it_did_not_see(changes: dict[str, Any]) -> None:
    """Another method, another size, more time than it waited in all, or a hash that it did not ask for."""
    _, answered = both(1, 3)
    false = ServedCalls(*WHO)
    false.add(call(1))
    false.add(call(3, **changes))
    sheet = false.next_sheet(0)
    assert sheet is not None
    with pytest.raises(Unexpected, match="call 3"):
        answered.approve(sheet)


def test_no_call_gets_two_receipts() -> None:
    """Neither on one sheet nor on two; a refused sheet uses nothing up."""
    served, answered = both(1)
    sheet = served.next_sheet(0)
    assert sheet is not None
    with pytest.raises(Malformed):
        answered.approve(msgspec.structs.replace(sheet, calls=sheet.calls * 2))
    answered.approve(sheet)
    with pytest.raises(Unexpected):
        answered.approve(msgspec.structs.replace(sheet, number=2))


def test_a_sheet_of_another_session_is_refused() -> None:
    """Stream numbers begin anew in each session."""
    served, answered = both(1)
    sheet = served.next_sheet(0)
    assert sheet is not None
    with pytest.raises(Unexpected):
        answered.approve(msgspec.structs.replace(sheet, session=b"i" * 32))


@given(count=st.integers(0, 3 * MAX_CALLS))
def test_every_call_stands_on_one_sheet(count: int) -> None:
    """In order, at most so many to a sheet."""
    served, _ = both(*range(count))
    sequences: list[int] = []
    while (sheet := served.next_sheet(0)) is not None:
        assert len(sheet.calls) <= MAX_CALLS
        sequences += [one.sequence for one in sheet.calls]
    assert sequences == list(range(count))


def test_what_is_remembered_is_bounded() -> None:
    """The oldest calls go; a late sheet about them is refused, not believed."""
    _, answered = both(*range(MAX_REMEMBERED + 1))
    late = ServedCalls(*WHO)
    late.add(call(0))
    sheet = late.next_sheet(0)
    assert sheet is not None
    with pytest.raises(Unexpected):
        answered.approve(sheet)


@given(parts=st.lists(st.binary(max_size=40), max_size=4))
def test_a_message_has_one_hash_however_it_is_cut(parts: list[bytes]) -> None:
    """The sender holds buffers, the receiver one piece."""
    assert message_hash(parts) == message_hash([b"".join(parts)])
