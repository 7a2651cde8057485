"""Receipts of this node's calls: gathered from its sessions, signed by both sides, kept in the database.

The serving side writes a sheet for each session every few moments and asks the caller to sign it; the caller signs what
agrees with its own memory. A sheet that the caller does not sign stays in the database with one signature: a claim.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import structlog
import trio

from moed.protocol.codec import Record, convert_record
from moed.protocol.domains import Domain
from moed.protocol.errors import BadSignature, RemoteProtocolError
from moed.protocol.identity import Identity, PublicKey, verify
from moed.protocol.receipts import (
    MAX_CALLS,
    AnsweredCalls,
    CallReceipt,
    ServedCalls,
    SignedSheet,
    claim_sheet,
)

from .network.calls import SMALL_ANSWER_BYTES, Call, Handler, Refused, Reply
from .network.errors import CallError
from .network.peers import Peer

logger = structlog.get_logger()

SIGN = "receipts.sign"
SIGN_EVERY_S = 1.0
SIGN_DEADLINE_S = 5.0
MAX_SESSIONS = 1024
"""Sessions whose calls are remembered, those that ended last among them: their last sheet comes over the next one."""


class SignRequest(Record, frozen=True, kw_only=True):
    """The server's sheet with its signature."""

    signed: SignedSheet


class SignAnswer(Record, frozen=True, kw_only=True):
    """The caller's signature."""

    signature: bytes


@dataclass(slots=True)
class _Book:
    """One session's calls, in both directions."""

    peer: Peer
    served: ServedCalls
    answered: AnsweredCalls


class ReceiptBook:
    """Takes note of calls (it is what `Peers` calls receipts), and gets them signed. ``keep`` blocks until it is done.

    ``run_blocking`` runs ``keep``; ``now_ms`` is unix time.
    """

    def __init__(
        self,
        identity: Identity,
        network_id: bytes,
        keep: Callable[[Sequence[SignedSheet]], None],
        *,
        now_ms: Callable[[], int],
        run_blocking: Callable[..., Awaitable[Any]] = trio.to_thread.run_sync,
    ) -> None:
        self._identity = identity
        self._network_id = network_id
        self._keep = keep
        self._now_ms = now_ms
        self._run_blocking = run_blocking
        self._books: OrderedDict[bytes, _Book] = OrderedDict()  # by session, the longest unused first
        self._is_full = trio.Event()

    def handlers(self) -> Mapping[str, Handler]:
        """What peers ask of a node that called them."""
        return {SIGN: self._sign}

    def served(self, peer: Peer, call: CallReceipt) -> None:
        """A call that this node served."""
        served = self._book(peer).served
        served.add(call)
        if len(served) >= MAX_CALLS:
            self._is_full.set()

    def answered(self, peer: Peer, call: CallReceipt) -> None:
        """A call of this node that ``peer`` answered."""
        self._book(peer).answered.add(call)

    async def run(self) -> None:
        """Write, send and keep sheets until cancelled; then keep what is left, unsigned by the callers."""
        settled: dict[bytes, SignedSheet] = {}  # not in the database yet, by what stands on it
        try:
            while True:
                self._is_full = trio.Event()
                with trio.move_on_after(SIGN_EVERY_S):
                    await self._is_full.wait()
                async with trio.open_nursery() as nursery:
                    for book in list(self._books.values()):
                        nursery.start_soon(self._settle, book, settled)
                if settled:
                    await self._run_blocking(self._keep, list(settled.values()))
                    settled.clear()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + SIGN_EVERY_S):
                claims = [claim for book in self._books.values() for claim in self._claims(book)]
                if settled or claims:
                    await self._run_blocking(self._keep, [*settled.values(), *claims])

    def _book(self, peer: Peer) -> _Book:
        name = peer.session_name
        book = self._books.get(name)
        if book is None:
            if len(self._books) >= MAX_SESSIONS:
                self._books.popitem(last=False)
            ours, theirs = self._identity.public_key, peer.public_key
            book = self._books[name] = _Book(peer, ServedCalls(ours, theirs, name), AnsweredCalls(theirs, ours, name))
        self._books.move_to_end(name)
        return book

    async def _settle(self, book: _Book, settled: dict[bytes, SignedSheet]) -> None:
        """Have every waiting call of one session signed; the sheets are in ``settled``, as claims until they are."""
        # Only what is there now: calls that come while a sheet is signed wait for the next round, or each would get a
        # sheet, and a call of ours, of its own.
        claims = self._claims(book)
        settled.update((claim.sheet, claim) for claim in claims)
        for claim in claims:
            try:
                reply = await book.peer.call(
                    SIGN,
                    _body(SignRequest(signed=claim)),
                    deadline_s=SIGN_DEADLINE_S,
                    max_answer_bytes=SMALL_ANSWER_BYTES,
                )
                signature = convert_record(reply.body, SignAnswer).signature
                verify(book.peer.public_key, Domain.RECEIPT, self._network_id, claim.sheet, signature)
                settled[claim.sheet] = msgspec.structs.replace(claim, caller_signature=signature)
            except (CallError, RemoteProtocolError) as error:
                calls = len(claim.read().calls)
                logger.info("receipts.unsigned", peer=book.peer.node_id.hex(), calls=calls, reason=str(error))

    def _claims(self, book: _Book) -> list[SignedSheet]:
        """The calls of one session that are on no sheet yet, on sheets that we have signed."""
        sheets = iter(partial(book.served.next_sheet, self._now_ms()), None)
        return [claim_sheet(self._identity, self._network_id, sheet) for sheet in sheets]

    async def _sign(self, call: Call) -> Reply:
        """Compare a sheet with what we remember, sign and keep it. Refuses with the entry that differs."""
        signed = convert_record(call.body, SignRequest).signed
        sheet = signed.check(self._network_id)
        if PublicKey(sheet.server) != call.peer.public_key:
            raise BadSignature("a sheet of another server")
        book = self._books.get(sheet.session)
        if book is None:
            raise Refused("unknown_session", "no calls of that session are remembered here")
        book.answered.approve(sheet)
        both = signed.sign(self._identity, self._network_id)
        await self._run_blocking(self._keep, [both])
        assert both.caller_signature is not None
        return Reply(_body(SignAnswer(signature=both.caller_signature)))


def _body(record: Record) -> Any:
    return msgspec.to_builtins(record, builtin_types=(bytes,))
