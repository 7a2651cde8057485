"""Our calls on one session: sent, waited for, answered or failed, each exactly once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from moed.protocol.errors import LocalProtocolError, Unexpected
from moed.protocol.frames import Priority, ResetCode, Role
from moed.protocol.messages import NoticeHead, RefusalHead, ReplyHead, RequestHead, decode_message, encode_message
from moed.protocol.receipts import CallReceipt, message_hash
from moed.protocol.tensor_codecs import decode_tensor
from moed.protocol.tensors import Codec, check_decoded_size

from .calls import Reply
from .errors import (
    AnswerTooLarge,
    CallError,
    DeadlineExceeded,
    Overloaded,
    PeerLeaving,
    PeerLost,
    RemoteRefusal,
    RequestTooLarge,
)

if TYPE_CHECKING:
    from moed.protocol.messages import Message
    from moed.protocol.session import Session
    from moed.protocol.session_events import RequestEnded, ResponseReceived
    from moed.protocol.tensors import Array, WireTensor


@dataclass(slots=True)
class _Pending:
    """A call that waits: ``outcome`` is set before ``done``."""

    method: str
    request_bytes: int
    request_hash: bytes | None
    began_s: float
    done: trio.Event = field(default_factory=trio.Event)
    outcome: Message | CallError | None = None

    def settle(self, outcome: Message | CallError) -> None:
        self.outcome = outcome
        self.done.set()


class OutboundCalls:
    """The calls and notices that this node makes on one session. ``wake`` tells the writer, ``send_now`` does not wait
    for it."""

    def __init__(
        self,
        session: Session,
        wake: Callable[[], None],
        send_now: Callable[[], None],
        note_answered: Callable[[CallReceipt], None] | None = None,
    ) -> None:
        self._note_answered = note_answered
        self._session = session
        self._wake = wake
        self._send_now = send_now
        self._pending: dict[int, _Pending] = {}

    async def call(
        self,
        head: RequestHead,
        tensors: Sequence[Array | WireTensor],
        *,
        deadline: float,
        priority: Priority,
        codec: Codec,
        max_answer_bytes: int | None = None,
    ) -> Reply:
        """Send a request and wait for its reply until ``deadline`` (trio time). Raises the subclasses of `CallError`.

        Cancelled or out of time, it tells the peer to stop.
        """
        stream, pending = self._send(head, tensors, deadline, priority, codec, max_answer_bytes)
        try:
            with trio.CancelScope(deadline=deadline):
                await pending.done.wait()
        finally:
            del self._pending[stream]
            if pending.outcome is None:
                is_late = trio.current_time() >= deadline
                self._session.reset(stream, ResetCode.DEADLINE if is_late else ResetCode.CANCELLED)
                self._wake()
        if pending.outcome is None:
            raise DeadlineExceeded(f"{head.method}: no answer in time")
        if isinstance(pending.outcome, CallError):
            raise pending.outcome
        return self._reply(pending.outcome)

    def notify(self, head: NoticeHead, *, priority: Priority) -> int:
        """Queue a one-way message; returns how many older ones of its priority were dropped for it.

        It never waits: over the session's bound the oldest waiting notice of the same priority goes, because what is
        late is stale, and a slow peer must not hold up whoever tells everybody.
        """
        buffers = encode_message(head)
        self._require_open()
        self._require_size(sum(len(buffer) for buffer in buffers), Role.NOTICE)
        dropped = self._session.send_notice(buffers, priority=priority)
        self._wake()
        return dropped

    def answer(self, event: ResponseReceived) -> None:
        """The peer's response. Raises `RemoteProtocolError` for one that is none."""
        message = decode_message(event.message)
        pending = self._pending.get(event.stream)
        if isinstance(message.head, RefusalHead):
            outcome: Message | CallError = RemoteRefusal(message.head.code, message.head.message)
        elif isinstance(message.head, ReplyHead):
            check_decoded_size(message.tensors, self._session.limits.max_message_bytes)
            outcome = message
            if pending is not None and self._note_answered is not None:
                self._note_answered(self._receipt_of(event, pending))
        else:
            raise Unexpected("a response that is neither a reply nor a refusal")
        if pending is not None:
            pending.settle(outcome)

    def fail(self, event: RequestEnded) -> None:
        """A request that gets no response."""
        pending = self._pending.get(event.stream)
        if pending is not None:
            pending.settle(_error_of(event, pending.method))

    def lose_all(self) -> None:
        """The session is over: every waiting call raises `PeerLost`."""
        for pending in self._pending.values():
            if pending.outcome is None:
                pending.settle(PeerLost("the session ended before the answer"))

    def _send(
        self,
        head: RequestHead,
        tensors: Sequence[Array | WireTensor],
        deadline: float,
        priority: Priority,
        codec: Codec,
        max_answer_bytes: int | None,
    ) -> tuple[int, _Pending]:
        buffers = encode_message(head, tensors, codec=codec)
        self._require_open()
        size = sum(len(buffer) for buffer in buffers)
        self._require_size(size, Role.REQUEST)
        request_hash = message_hash(buffers) if head.hashed else None
        stream = self._session.send_request(
            buffers, priority=priority, deadline_s=deadline, max_answer_bytes=max_answer_bytes
        )
        pending = self._pending[stream] = _Pending(head.method, size, request_hash, trio.current_time())
        # several at once are better sent together, by the writer
        if len(self._pending) == 1:
            self._send_now()
        else:
            self._wake()
        return stream, pending

    @staticmethod
    def _receipt_of(event: ResponseReceived, pending: _Pending) -> CallReceipt:
        return CallReceipt(
            sequence=event.stream,
            method=pending.method,
            request_bytes=pending.request_bytes,
            answer_bytes=len(event.message),
            served_us=int((trio.current_time() - pending.began_s) * 1e6),
            request_hash=pending.request_hash,
            answer_hash=message_hash([event.message]) if pending.request_hash is not None else None,
        )

    def _require_open(self) -> None:
        if not self._session.can_open:
            raise PeerLeaving("the session is over or leaving")

    def _require_size(self, size: int, role: Role) -> None:
        limit = self._session.longest(role)
        if size > limit:
            raise RequestTooLarge(f"a {role.name.lower()} of {size} bytes; the peer takes {limit}")

    @staticmethod
    def _reply(message: Message) -> Reply:
        if not isinstance(message.head, ReplyHead):
            raise LocalProtocolError("only a reply settles a call")
        return Reply(message.head.body, tuple(decode_tensor(tensor) for tensor in message.tensors))


def _error_of(event: RequestEnded, method: str) -> CallError:
    if event.code is ResetCode.DEADLINE:
        return DeadlineExceeded("the time was over before the answer")
    if event.code is ResetCode.GOING_AWAY:
        return PeerLeaving("the peer is leaving and starts nothing new")
    if event.code is ResetCode.UNFIT:
        return RemoteRefusal("unfit", "the method takes no such tensors")
    if event.is_local and event.code is ResetCode.TOO_LARGE:
        return AnswerTooLarge(f"{method}: the peer began an answer longer than this call takes; it was not read")
    if event.is_local:
        return Overloaded("no room for the answer among the messages that this node receives")
    return RemoteRefusal(event.code.name.lower(), "the peer ended the call without an answer")
