"""The peer's calls on one session: decoded, bounded, handed to their handler, answered or refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import trio

from moed.protocol.errors import RemoteProtocolError, Unexpected
from moed.protocol.frames import NO_DEADLINE_MS, Priority, ResetCode, Role
from moed.protocol.messages import (
    MAX_REFUSAL_CHARACTERS,
    NoticeHead,
    RefusalHead,
    ReplyHead,
    RequestHead,
    decode_message,
    encode_message,
)
from moed.protocol.receipts import CallReceipt, message_hash
from moed.protocol.tensor_codecs import decode_tensor
from moed.protocol.tensors import check_decoded_size

from .calls import Call, Method, Receipts, Refused, Reply
from .errors import CallError

if TYPE_CHECKING:
    from moed.protocol.aead import Buffer
    from moed.protocol.messages import Message
    from moed.protocol.session_events import NoticeReceived, RequestCancelled, RequestReceived

    from .connection import Connection
    from .limits import NetworkCounters, NetworkLimits

logger = structlog.get_logger()

MAX_BAD_NOTICES = 64
"""Notices that their handler refused before the session counts as hostile and ends."""


@dataclass(frozen=True, slots=True)
class _Notice:
    message: Message
    size: int


class Serving:
    """Runs the handlers for one connection, inside that connection's own tasks.

    Requests run side by side, at most as many as the session has streams. Notices of one priority run one after
    the other, in order; those that wait are bounded, and when they are too many the newest is dropped and counted.
    """

    def __init__(
        self,
        connection: Connection,
        methods: Mapping[str, Method],
        limits: NetworkLimits,
        counters: NetworkCounters,
        receipts: Receipts | None = None,
    ) -> None:
        self._receipts = receipts
        self._connection = connection
        self._session = connection.session
        self._methods = methods
        self._limits = limits
        self._counters = counters
        self._running: dict[int, trio.CancelScope] = {}
        self._has_ended = trio.Event()
        self._lanes: dict[Priority, trio.MemorySendChannel[_Notice]] = {}
        self._queued_bytes = 0
        self._bad_notices = 0

    async def has_room(self) -> None:
        """Wait while handlers that were cancelled but still run hold every place; reading stops meanwhile.

        The session's own limit counts a stream as over once it is cancelled; a handler may take longer.
        """
        while len(self._running) >= 2 * self._session.limits.max_streams:
            self._has_ended = trio.Event()
            await self._has_ended.wait()

    def take_request(self, event: RequestReceived) -> None:
        """Start the handler of a request. Raises `RemoteProtocolError` for a message that is no request."""
        message = decode_message(event.message)
        if not isinstance(message.head, RequestHead):
            raise Unexpected("a request stream carries another kind of message")
        deadline = math.inf
        if event.remaining_ms != NO_DEADLINE_MS:
            deadline = trio.current_time() + event.remaining_ms / 1000
        if self._serve_at_once(event, message, deadline):
            return
        self._running[event.stream] = trio.CancelScope(deadline=deadline)
        self._connection.start(self._serve, event.stream, message, deadline, event.message)

    def take_notice(self, event: NoticeReceived) -> None:
        """Queue a notice for its lane. Raises `RemoteProtocolError` for a message that is no notice."""
        message = decode_message(event.message)
        if not isinstance(message.head, NoticeHead):
            raise Unexpected("a notice stream carries another kind of message")
        size = len(event.message)
        if self._queued_bytes + size > self._limits.max_queued_notice_bytes:
            self._drop(message.head)
            return
        try:
            self._lane(event.priority).send_nowait(_Notice(message, size))
        except trio.WouldBlock:
            self._drop(message.head)
        else:
            self._queued_bytes += size

    def cancel(self, event: RequestCancelled) -> None:
        """Nobody waits for this answer any more."""
        scope = self._running.get(event.stream)
        if scope is not None:
            scope.cancel()

    # -- requests --------------------------------------------------------------------------------------------------

    def _serve_at_once(self, event: RequestReceived, message: Message, deadline: float) -> bool:
        """Answer without a task of its own what the method can answer without waiting; the reader sends it."""
        method = self._methods.get(message.head.method)  # type: ignore[union-attr]  # `take_request` checked the head
        if method is None or method.at_once is None:
            return False
        began_s = trio.current_time()
        try:
            reply = method.at_once(self._call_of(message, deadline))
        except (Refused, RemoteProtocolError) as error:
            self._session.send_response(event.stream, self._refuse_for(error))
            return True
        if reply is None:
            return False
        buffers, is_reply = self._encode(reply)
        is_sent = self._session.send_response(event.stream, buffers)
        if is_sent and is_reply and self._receipts is not None:
            took_s = trio.current_time() - began_s
            self._note_served(self._receipts, event.stream, message, event.message, buffers, took_s)
        return True

    async def _serve(self, stream: int, message: Message, deadline: float, received: memoryview) -> None:
        scope = self._running[stream]
        began_s = trio.current_time()
        try:
            with scope:
                buffers, is_reply = await self._answer(message, deadline)
                is_sent = self._session.send_response(stream, buffers)
                if is_sent and is_reply and self._receipts is not None:
                    self._note_served(self._receipts, stream, message, received, buffers, trio.current_time() - began_s)
            if scope.cancelled_caught:
                # a no-op where the peer itself cancelled; else the caller's time is over and the stream ends
                self._session.reset(stream, ResetCode.DEADLINE)
        finally:
            del self._running[stream]
            self._has_ended.set()
            if self._running:
                self._connection.wake()  # more answers are coming: the writer sends them together
            else:
                self._connection.send_now()

    def _note_served(
        self,
        receipts: Receipts,
        stream: int,
        message: Message,
        received: memoryview,
        answer: list[Buffer],
        took_s: float,
    ) -> None:
        assert isinstance(message.head, RequestHead)
        assert self._connection.peer is not None
        method = self._methods.get(message.head.method)
        if method is None or not method.is_receipted:
            return
        call = CallReceipt(
            sequence=stream,
            method=message.head.method,
            request_bytes=len(received),
            answer_bytes=sum(len(buffer) for buffer in answer),
            served_us=int(took_s * 1e6),
            request_hash=message_hash([received]) if message.head.hashed else None,
            answer_hash=message_hash(answer) if message.head.hashed else None,
        )
        receipts.served(self._connection.peer, call)

    async def _answer(self, message: Message, deadline: float) -> tuple[list[Buffer], bool]:
        """The handler's reply, or a refusal, as buffers that the peer takes, and whether it is the reply."""
        try:
            reply = await self._handle(message, deadline) or Reply()
        except (Refused, RemoteProtocolError, CallError) as error:
            return self._refuse_for(error), False
        except BaseExceptionGroup as group:  # from a nursery of the handler's own
            refusal = _only_refusal(group)
            if refusal is None:
                raise
            return self._refuse_for(refusal), False
        return self._encode(reply)

    def _encode(self, reply: Reply) -> tuple[list[Buffer], bool]:
        buffers = encode_message(ReplyHead(body=reply.body), reply.tensors, codec=reply.codec)
        size, limit = sum(len(buffer) for buffer in buffers), self._session.longest(Role.RESPONSE)
        if size > limit:
            return self._refuse("too_large", f"the answer is {size} bytes; the caller takes {limit}"), False
        self._counters.calls_served += 1
        return buffers, True

    def _refuse_for(self, error: Refused | RemoteProtocolError | CallError) -> list[Buffer]:
        if isinstance(error, Refused):
            return self._refuse(error.code, error.message)
        if isinstance(error, RemoteProtocolError):  # the handler could not read the body
            return self._refuse(error.code, str(error))
        return self._refuse("upstream_failed", str(error))  # the handler asked another node, in vain

    def _refuse(self, code: str, message: str) -> list[Buffer]:
        self._counters.calls_refused += 1
        return encode_message(RefusalHead(code=code, message=message[:MAX_REFUSAL_CHARACTERS]))

    async def _handle(self, message: Message, deadline: float) -> Reply | None:
        assert isinstance(message.head, RequestHead | NoticeHead)
        method = self._methods.get(message.head.method)
        if method is None:
            raise Refused("unknown_method", f"this node does not serve {message.head.method!r}")
        return await method.handler(self._call_of(message, deadline))

    def _call_of(self, message: Message, deadline: float) -> Call:
        """The message as a call, decoded. Raises `TooLarge` for tensors that would grow over the limit."""
        assert isinstance(message.head, RequestHead | NoticeHead)
        peer = self._connection.peer
        assert peer is not None  # messages come only after the session was registered
        check_decoded_size(message.tensors, self._session.limits.max_message_bytes)
        tensors = tuple(decode_tensor(tensor) for tensor in message.tensors)
        return Call(peer, message.head.method, message.head.body, tensors, message.tensors, deadline)

    # -- notices ---------------------------------------------------------------------------------------------------

    def _lane(self, priority: Priority) -> trio.MemorySendChannel[_Notice]:
        """The queue of this priority, with its task; both start with the first notice.

        The session's reader writes it, `_run_lane` reads it; full, `take_notice` drops the newest.
        """
        if priority not in self._lanes:
            self._lanes[priority], receive = trio.open_memory_channel[_Notice](self._limits.max_queued_notices)
            self._connection.start(self._run_lane, receive)
        return self._lanes[priority]

    async def _run_lane(self, receive: trio.MemoryReceiveChannel[_Notice]) -> None:
        async for notice in receive:
            self._queued_bytes -= notice.size
            try:
                await self._handle(notice.message, math.inf)
            except Refused as refusal:
                self._count_bad_notice(notice, refusal.code)
            except RemoteProtocolError as error:
                self._count_bad_notice(notice, error.code)
            except CallError as error:  # another node failed its handler; this peer is not to blame
                logger.debug("notice.unanswered", reason=str(error))

    def _count_bad_notice(self, notice: _Notice, code: str) -> None:
        assert isinstance(notice.message.head, NoticeHead)
        self._counters.notices_refused += 1
        self._bad_notices += 1
        logger.debug("notice.refused", method=notice.message.head.method, code=code)
        if self._bad_notices > MAX_BAD_NOTICES:
            raise Unexpected(f"more than {MAX_BAD_NOTICES} notices were refused")

    def _drop(self, head: NoticeHead) -> None:
        self._counters.notices_dropped += 1
        logger.debug("notice.dropped", method=head.method)


def _only_refusal(group: BaseExceptionGroup[BaseException]) -> Refused | RemoteProtocolError | CallError | None:
    """The first reason to refuse in ``group``; None if anything else is in it."""
    first: Refused | RemoteProtocolError | CallError | None = None
    for one in group.exceptions:
        found = _only_refusal(one) if isinstance(one, BaseExceptionGroup) else one
        if not isinstance(found, Refused | RemoteProtocolError | CallError):
            return None
        first = first or found
    return first
