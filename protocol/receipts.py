"""Receipts of served calls: what both sides saw of each call, on sheets that both sign.

A call's entry is small and many calls go on one sheet, so a signature and its check (50 µs) are paid once for up to
`MAX_CALLS` calls and never while somebody waits for an answer. The server writes the sheet, the caller compares every
entry with its own memory of the call and signs the same bytes. Pure: times and keys are arguments.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from .codec import Record, decode_record, encode_record, require_length
from .domains import Domain, tagged_hash
from .errors import Malformed, Unexpected
from .identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, PublicKey, verify

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .aead import Buffer
    from .identity import Identity

MAX_CALLS = 256
MAX_REMEMBERED = 8192
"""Answered calls of one session that the caller remembers; of older ones it signs nothing."""
HASH_BYTES = 32
MAX_SHEET_BYTES = 48 << 10  # of calls with the longest names and both hashes

_Count = Annotated[int, Meta(ge=0, le=1 << 62)]


class CallReceipt(Record, frozen=True, kw_only=True, array_like=True):
    """One served call. ``sequence`` is its stream in the session, ``served_us`` the time from the request's last byte
    to the answer's first, and the hashes are of the whole messages, where the caller asked for them."""

    sequence: _Count
    method: Annotated[str, Meta(min_length=1, max_length=64)]
    request_bytes: _Count
    answer_bytes: _Count
    served_us: _Count
    request_hash: bytes | None = None
    answer_hash: bytes | None = None

    def __post_init__(self) -> None:
        for name in ("request_hash", "answer_hash"):
            value: bytes | None = getattr(self, name)
            if value is not None:
                require_length(name, value, HASH_BYTES)


class ReceiptSheet(Record, frozen=True, kw_only=True):
    """Calls of one session, each on one sheet only; ``number`` counts the server's sheets of that session."""

    server: bytes
    caller: bytes
    session: bytes
    number: _Count
    closed_ms: _Count
    calls: Annotated[tuple[CallReceipt, ...], Meta(min_length=1, max_length=MAX_CALLS)]

    def __post_init__(self) -> None:
        require_length("a server's key", self.server, PUBLIC_KEY_BYTES)
        require_length("a caller's key", self.caller, PUBLIC_KEY_BYTES)
        require_length("a session", self.session, HASH_BYTES)


class SignedSheet(Record, frozen=True, kw_only=True):
    """A sheet, as the bytes that were signed, with its signatures; without the caller's it is the server's claim alone.

    A sheet is encoded once, by the server: whoever passes it on or keeps it looks at it only to use what it says.
    """

    sheet: Annotated[bytes, Meta(max_length=MAX_SHEET_BYTES)]
    server_signature: bytes
    caller_signature: bytes | None = None

    def __post_init__(self) -> None:
        require_length("a server's signature", self.server_signature, SIGNATURE_BYTES)
        if self.caller_signature is not None:
            require_length("a caller's signature", self.caller_signature, SIGNATURE_BYTES)

    def read(self) -> ReceiptSheet:
        """What stands on it. Raises `Malformed`."""
        return decode_record(self.sheet, ReceiptSheet)

    def check(self, network_id: bytes) -> ReceiptSheet:
        """What stands on it, signed by the server and, where the caller's signature is there, by the caller.

        Raises `BadSignature` and `Malformed`.
        """
        sheet = self.read()
        verify(PublicKey(sheet.server), Domain.RECEIPT, network_id, self.sheet, self.server_signature)
        if self.caller_signature is not None:
            verify(PublicKey(sheet.caller), Domain.RECEIPT, network_id, self.sheet, self.caller_signature)
        return sheet

    def sign(self, identity: Identity, network_id: bytes) -> SignedSheet:
        """The same with the caller's signature."""
        signature = identity.sign(Domain.RECEIPT, network_id, self.sheet)
        return SignedSheet(sheet=self.sheet, server_signature=self.server_signature, caller_signature=signature)

    @property
    def hash(self) -> bytes:
        """What names the sheet, whoever has signed it."""
        return tagged_hash(Domain.RECEIPT, self.sheet)


def claim_sheet(identity: Identity, network_id: bytes, sheet: ReceiptSheet) -> SignedSheet:
    """A sheet with the server's signature."""
    encoded = encode_record(sheet)
    return SignedSheet(sheet=encoded, server_signature=identity.sign(Domain.RECEIPT, network_id, encoded))


@lru_cache(maxsize=1024)  # asked with every call, and it is the same for all calls of a session
def session_name(handshake_hash: bytes) -> bytes:
    """The name of a session that both sides know and nobody else chooses."""
    return tagged_hash(Domain.RECEIPT, b"session", handshake_hash)


def message_hash(buffers: Iterable[Buffer]) -> bytes:
    """The hash of a whole message behind its tag, from the buffers that it is sent or received in."""
    hasher = blake2b(Domain.MESSAGE.value, digest_size=HASH_BYTES)
    for buffer in buffers:
        hasher.update(buffer)
    return hasher.digest()


@dataclass(slots=True)
class ServedCalls:
    """The server's side of one session: calls that are on no sheet yet."""

    server: bytes
    caller: bytes
    session: bytes
    _waiting: list[CallReceipt] = field(default_factory=list)
    _number: int = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, call: CallReceipt) -> None:
        """Count a call whose answer is on its way."""
        self._waiting.append(call)

    def next_sheet(self, now_ms: int) -> ReceiptSheet | None:
        """Up to `MAX_CALLS` calls, the oldest first; None without any."""
        calls, self._waiting = self._waiting[:MAX_CALLS], self._waiting[MAX_CALLS:]
        if not calls:
            return None
        self._number += 1
        return ReceiptSheet(
            server=self.server,
            caller=self.caller,
            session=self.session,
            number=self._number,
            closed_ms=now_ms,
            calls=tuple(calls),
        )


class AnsweredCalls:
    """The caller's side of one session: what it saw of its answered calls, each good for one receipt."""

    def __init__(self, server: bytes, caller: bytes, session: bytes) -> None:
        self._who = (server, caller, session)
        self._calls: OrderedDict[int, CallReceipt] = OrderedDict()

    def add(self, call: CallReceipt) -> None:
        """Remember an answered call; ``served_us`` is here the whole time that the caller waited."""
        self._calls[call.sequence] = call
        if len(self._calls) > MAX_REMEMBERED:
            self._calls.popitem(last=False)

    def approve(self, sheet: ReceiptSheet) -> None:
        """Raise `Unexpected` or `Malformed` unless every entry is as we saw it; then those calls have their receipt."""
        if (sheet.server, sheet.caller, sheet.session) != self._who:
            raise Unexpected("a sheet of another session")
        if len({call.sequence for call in sheet.calls}) != len(sheet.calls):
            raise Malformed("a call stands twice on one sheet")
        for call in sheet.calls:
            self._compare(call)
        for call in sheet.calls:
            del self._calls[call.sequence]

    def _compare(self, call: CallReceipt) -> None:
        ours = self._calls.get(call.sequence)
        if ours is None:
            raise Unexpected(f"call {call.sequence} was not answered here, or has its receipt")
        for name in ("method", "request_bytes", "answer_bytes", "request_hash", "answer_hash"):
            if getattr(call, name) != getattr(ours, name):
                raise Unexpected(
                    f"call {call.sequence}: {name} is {getattr(call, name)!r}, not {getattr(ours, name)!r}"
                )
        if call.served_us > ours.served_us:
            raise Unexpected(f"call {call.sequence} took {ours.served_us} µs in all, not {call.served_us} to serve")
