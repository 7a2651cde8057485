"""An encrypted session of many streams with one peer: bytes in, events out, bytes to send on request.

The shape is that of a sans-I/O connection: feed what arrives to `Session.receive_data` (or read into
`Session.receive_space` and call `Session.received`), take `Session.next_event` until it is `NEED_DATA`, and send what
`Session.data_to_send` gives until it gives nothing. The machine has no clock, no socket and no randomness: times and
keys are arguments. After an error it is dead: every further `next_event` raises that error and nothing is sent.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .aead import TAG_BYTES
from .batch import Batch
from .buffer_pool import new_buffer
from .control_queue import ControlQueue
from .errors import LocalProtocolError, Malformed, RemoteProtocolError, Unexpected
from .frames import (
    Data,
    Goodbye,
    GoodbyeCode,
    Open,
    Ping,
    Pong,
    Priority,
    Reset,
    ResetCode,
    Role,
    Window,
    read_frames,
)
from .handshake import MAX_HANDSHAKE_BYTES, SecureHandshake, SessionLimits
from .incoming import ByteBudget, Inbox, IncomingMessage
from .noise import MAX_MESSAGE_BYTES
from .outgoing import Outbox
from .receive_buffer import ReceiveBuffer
from .session_events import (
    NEED_DATA,
    Ended,
    GoodbyeReceived,
    NoticeReceived,
    PongReceived,
    RequestCancelled,
    RequestEnded,
    RequestReceived,
    ResponseReceived,
    SessionOpened,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Set as AbstractSet

    from .aead import Buffer, Cipher
    from .frames import Frame
    from .handshake import Secured
    from .identity import Identity, NodeId
    from .session_events import Event, NeedData


@dataclass(slots=True)
class _Asked:
    """A request of ours without a whole response: the longest one that it takes, and whether it is wholly sent."""

    max_answer_bytes: int
    is_sent: bool = False


class Session:
    """One side of an encrypted, multiplexed session."""

    def __init__(
        self,
        identity: Identity,
        network_id: bytes,
        *,
        is_initiator: bool,
        ephemeral: bytes,
        limits: SessionLimits | None = None,
        expected: NodeId | None = None,
        budget: ByteBudget | None = None,
        ciphers: AbstractSet[Cipher] | None = None,
        allocate: Callable[[int], memoryview] = new_buffer,
        screen: Callable[[memoryview, int], bool] = lambda _first, _size: True,
    ) -> None:
        """``ephemeral``: 32 fresh secret bytes. ``expected``: the node id that the peer must prove.

        ``budget`` is shared by the sessions of a node; ``allocate`` gives the buffer of each incoming message.
        ``screen`` judges a large request by its first bytes and its size before it gets one (False: `UNFIT`).
        """
        self.limits = limits or SessionLimits()
        self.is_initiator = is_initiator
        self._handshake = SecureHandshake(
            identity,
            network_id,
            is_initiator=is_initiator,
            ephemeral=ephemeral,
            limits=self.limits,
            expected=expected,
            ciphers=ciphers,
        )
        self._handshake_out = self._handshake.start()
        self._peer: Secured | None = None
        self._inbox = Inbox(self.limits, budget or ByteBudget(1 << 62), allocate, screen)
        self._outbox: Outbox | None = None
        self._calls: dict[int, _Asked] = {}
        self._serving: dict[int, Priority] = {}  # the peer's whole requests without a whole response of ours
        self._next_stream = 1 if is_initiator else 2
        self._control = ControlQueue()
        self._has_said_goodbye = False
        self._has_heard_goodbye = False
        self._events: deque[Event] = deque()
        self._error: RemoteProtocolError | None = None
        self._has_ended = False
        self._buffer = ReceiveBuffer()
        self._raw: IncomingMessage | None = None  # where raw body goes; None throws it away
        self._raw_bytes = 0  # raw body still to come before the next block
        self._batch = Batch()

    # -- what the shell asks ---------------------------------------------------------------------------------------

    @property
    def peer(self) -> Secured:
        """Who is on the other side, once open. Raises `LocalProtocolError` before."""
        if self._peer is None:
            raise LocalProtocolError("the session is not open yet")
        return self._peer

    @property
    def can_open(self) -> bool:
        """Whether new requests and notices may be sent."""
        is_leaving = self._has_said_goodbye or self._has_heard_goodbye
        return self._peer is not None and self._error is None and not self._has_ended and not is_leaving

    @property
    def open_streams(self) -> int:
        """Requests of either side that are not over."""
        return len(self._calls) + self._inbox.open_requests

    # -- bytes in --------------------------------------------------------------------------------------------------

    def receive_space(self) -> memoryview:
        """Where the next bytes from the peer may be written, never empty; tell how many with `received`.

        Valid until the next `received` or `receive_data`; ask anew before each read.
        """
        return self._buffer.space()

    def received(self, count: int) -> None:
        """Take ``count`` bytes that were written into `receive_space`; events and errors come from `next_event`."""
        self._buffer.received(count)
        try:
            self._parse()
        except RemoteProtocolError as error:
            self._error = error
            self._control.clear()

    def receive_data(self, data: Buffer) -> None:
        """Take bytes from the peer, of any length; empty means that the peer closed its side."""
        if not data:
            self._events.append(Ended(is_clean=self._has_heard_goodbye))
            self._has_ended = True
            return
        view = memoryview(data)
        while len(view) and self._error is None:
            space = self.receive_space()
            count = min(len(space), len(view))
            space[:count] = view[:count]
            view = view[count:]
            self.received(count)

    def next_event(self) -> Event | Literal[NeedData.NEED_DATA]:
        """The next event, or `NEED_DATA`. Once everything before it was taken, the peer's fault is raised.

        Raises only `RemoteProtocolError` subclasses, whatever the peer sent; anything else is a bug here.
        """
        if self._events:
            return self._events.popleft()
        if self._error is not None:
            raise self._error
        return NEED_DATA

    # -- messages out ----------------------------------------------------------------------------------------------

    def send_request(
        self,
        buffers: Iterable[Buffer],
        *,
        priority: Priority = Priority.NORMAL,
        deadline_s: float | None = None,
        max_answer_bytes: int | None = None,
    ) -> int:
        """Queue a request; returns its stream, which the answering event names.

        ``deadline_s`` is on the clock of `data_to_send`; what is left of it travels. A response that announces more
        than ``max_answer_bytes`` is refused before there is memory for it: `RequestEnded` with `TOO_LARGE`. The buffers
        are read when their turn comes and must not change before the answer. Raises `LocalProtocolError` for a message
        over the peer's limit and for a session that opens nothing any more.
        """
        outbox = self._require_open()
        stream = self._take_stream()
        outbox.push(stream, Role.REQUEST, priority, buffers, deadline_s)
        self._calls[stream] = _Asked(self.limits.max_message_bytes if max_answer_bytes is None else max_answer_bytes)
        return stream

    def send_notice(self, buffers: Iterable[Buffer], *, priority: Priority = Priority.NORMAL) -> int:
        """Queue a one-way message; returns how many older waiting notices of that priority were dropped for it."""
        outbox = self._require_open()
        return outbox.push(self._take_stream(), Role.NOTICE, priority, buffers, None)

    def send_response(self, stream: int, buffers: Iterable[Buffer]) -> bool:
        """Queue the answer to the peer's request; False if nobody waits for it any more.

        Raises `LocalProtocolError` for an answer over the peer's limit: answer something shorter, or `reset`.
        """
        if self._outbox is None or self._error is not None:
            return False
        priority = self._serving.get(stream)
        if priority is None:
            return False
        self._outbox.push(stream, Role.RESPONSE, priority, buffers, None)
        del self._serving[stream]
        return True

    def longest(self, role: Role) -> int:
        """The longest message of this role that the peer takes; 0 before the session is open."""
        return self._outbox.limit_of(role) if self._outbox is not None else 0

    @property
    def has_unsent(self) -> bool:
        """Whether any message of ours is not wholly sent."""
        return self._outbox is not None and self._outbox.has_unsent

    @property
    def wants_to_send(self) -> bool:
        """Whether `data_to_send` may give something, or an event, now."""
        return bool(self._control or self._events or self._handshake_out or self.has_unsent)

    def reset(self, stream: int, code: ResetCode) -> None:
        """End a stream: our request that we no longer want answered, or the peer's that we do not answer."""
        if self._outbox is None or self._error is not None:
            return
        unsent = self._outbox.drop(stream)
        was_call = self._calls.pop(stream, None) is not None
        was_known = was_call or self._inbox.holds(stream)
        self._serving.pop(stream, None)
        self._inbox.release(stream)
        self._outbox.release(stream)
        never_opened = was_call and unsent is not None and not unsent.is_opened
        if was_known and not never_opened:
            self._control.put(Reset(stream, code))

    def ping(self, token: int) -> None:
        """Ask for a `PongReceived` with this 64-bit token."""
        self._control.put(Ping(token))

    def goodbye(self, code: GoodbyeCode) -> None:
        """Open nothing more from here on; streams that are open may still end."""
        if self._peer is not None and not self._has_said_goodbye:
            self._has_said_goodbye = True
            self._control.put(Goodbye(code))

    def data_to_send(self, now_s: float) -> list[Buffer]:
        """The next buffers to send, in order; empty when there is nothing to send now.

        They are valid until the next call. ``now_s`` is the clock of the deadlines.
        """
        if self._error is not None:
            return []
        out: list[Buffer] = []
        if self._handshake_out:
            out.append(self._handshake_out)
            self._handshake_out = b""
        if self._outbox is not None:
            block, chunks = self._next_block(self._outbox, now_s)
            if block:
                out.append(self._batch.seal(self.peer.send, [memoryview(block), *chunks]))
        return out

    def trim(self) -> None:
        """Give the large buffers back, the receive buffer before its next read; worth calling on an idle session."""
        self._batch.trim()
        if self._raw_bytes == 0:
            self._buffer.trim()

    def close(self) -> None:
        """The connection is over: gives back what incoming messages held of the node's budget."""
        self._has_ended = True
        self._inbox.release_all()

    # -- blocks ----------------------------------------------------------------------------------------------------

    def _next_block(self, outbox: Outbox, now_s: float) -> tuple[bytearray, list[memoryview]]:
        block = self._control.take_block()
        if self._control:  # a reset must not be overtaken by the request that uses its room
            return block, []
        filled = outbox.fill(block, now_s)
        for message in filled.sent:
            if message.role is Role.REQUEST and message.stream in self._calls:
                self._calls[message.stream].is_sent = True
            elif message.role is Role.RESPONSE:
                self._inbox.release(message.stream)
        for message in filled.expired:
            if self._calls.pop(message.stream, None) is not None:
                self._events.append(RequestEnded(message.stream, ResetCode.DEADLINE, is_local=True))
        return block, filled.chunks

    # -- parsing ---------------------------------------------------------------------------------------------------

    def _parse(self) -> None:
        try:
            while self._parse_one():
                pass
        finally:
            self._buffer.compact()

    def _parse_one(self) -> bool:
        """Take one hello or Noise message if it is whole. Raises `RemoteProtocolError` subclasses."""
        if not self._handshake.has_hello:
            hello = self._buffer.take_byte()
            if hello is not None:
                self._handshake.take_hello(hello)
            return hello is not None
        if self._peer is None:
            message = self._buffer.take_message(MAX_HANDSHAKE_BYTES)
            if message is not None:
                self._take_handshake(bytes(message))
            return message is not None
        message = self._buffer.take_message(MAX_MESSAGE_BYTES)
        if message is None:
            return False
        if self._raw_bytes:
            self._take_raw(self._peer, message)
        else:
            self._take_block(self._peer, message)
        return True

    def _take_handshake(self, message: bytes) -> None:
        self._handshake_out += self._handshake.take_message(message)
        self._peer = self._handshake.result
        if self._peer is not None:
            self._outbox = Outbox(self._peer.limits)
            self._events.append(SessionOpened(self._peer.node_id, self._peer.public_key, self._peer.cipher))

    def _take_raw(self, peer: Secured, message: memoryview) -> None:
        size = len(message) - TAG_BYTES
        if not 0 < size <= self._raw_bytes:
            raise Malformed(f"a raw message of {size} bytes where {self._raw_bytes} are to come")
        self._raw_bytes -= size
        incoming = self._raw
        if self._raw_bytes == 0:
            self._raw = None  # or it would hold the message's memory until the next one
        if incoming is None or self._inbox.get(incoming.stream) is not incoming:
            peer.receive.decrypt(message)  # the stream ended meanwhile; the cipher's count goes on
            return
        peer.receive.decrypt_into(incoming.buffer[incoming.received : incoming.received + size], message)
        credit = self._inbox.take(incoming, size)
        if credit:
            self._control.put(Window(incoming.stream, credit))
        if incoming.missing == 0:
            self._deliver(incoming)

    def _take_block(self, peer: Secured, message: memoryview) -> None:
        plaintext = peer.receive.decrypt(message)
        for frame in read_frames(memoryview(plaintext)):
            self._take_frame(frame)
        if self._control.is_overfull:
            raise Unexpected("the peer asks for more than it reads")

    def _take_frame(self, frame: Frame) -> None:
        match frame:
            case Open():
                self._take_open(frame)
            case Data():
                self._take_data(frame)
            case Window():
                self._check_known(frame.stream)
                self._require_outbox().grant(frame.stream, frame.credit)
            case Reset():
                self._take_reset(frame)
            case Ping():
                self._control.put(Pong(frame.token))
            case Pong():
                self._events.append(PongReceived(frame.token))
            case Goodbye():
                self._has_heard_goodbye = True
                self._events.append(GoodbyeReceived(frame.code))

    def _take_open(self, frame: Open) -> None:
        if frame.role is Role.RESPONSE:
            self._check_known(frame.stream)
            if not self._is_ours(frame.stream):
                raise Unexpected(f"a response on stream {frame.stream}, which the peer itself opened")
            asked = self._calls.get(frame.stream)
            if asked is None:
                return  # we ended it while the answer was on its way; its body is thrown away
            if not asked.is_sent:
                raise Unexpected("a response to a request that is not wholly sent")
            if asked.max_answer_bytes < frame.size <= self.limits.max_message_bytes:
                self._refuse_open(frame, ResetCode.TOO_LARGE)
                return
        elif self._is_ours(frame.stream):
            raise Unexpected(f"the peer opened stream {frame.stream}, which is not its to open")
        elif self._has_said_goodbye and frame.role is Role.REQUEST:
            self._control.put(Reset(frame.stream, ResetCode.GOING_AWAY))
            return
        incoming = self._inbox.open(frame)
        if isinstance(incoming, ResetCode):
            self._refuse_open(frame, incoming)
        elif incoming.missing == 0:
            self._deliver(incoming)

    def _refuse_open(self, frame: Open, code: ResetCode) -> None:
        self._control.put(Reset(frame.stream, code))
        if frame.role is Role.RESPONSE:
            self._end_call(frame.stream, code, is_local=True)

    def _take_data(self, frame: Data) -> None:
        self._check_known(frame.stream)
        # Of a stream that this side ended the body still comes until the peer reads our reset.
        incoming = self._inbox.get(frame.stream)
        if incoming is not None:
            self._inbox.expect(incoming, frame.length)
        self._raw, self._raw_bytes = incoming, frame.length

    def _take_reset(self, frame: Reset) -> None:
        self._check_known(frame.stream)
        if frame.stream in self._calls:
            self._end_call(frame.stream, frame.code, is_local=False)
            return
        was_served = self._serving.pop(frame.stream, None) is not None
        self._release(frame.stream)
        if was_served:
            self._events.append(RequestCancelled(frame.stream, frame.code))

    def _end_call(self, stream: int, code: ResetCode, *, is_local: bool) -> None:
        del self._calls[stream]
        self._release(stream)
        self._events.append(RequestEnded(stream, code, is_local))

    def _release(self, stream: int) -> None:
        """Neither send nor receive more of this stream, and give its room back on both counts."""
        outbox = self._require_outbox()
        outbox.drop(stream)
        outbox.release(stream)
        self._inbox.release(stream)

    def _deliver(self, incoming: IncomingMessage) -> None:
        self._inbox.complete(incoming)
        message = incoming.buffer
        if incoming.role is Role.REQUEST:
            self._serving[incoming.stream] = incoming.priority
            self._events.append(RequestReceived(incoming.stream, incoming.priority, incoming.remaining_ms, message))
        elif incoming.role is Role.NOTICE:
            self._events.append(NoticeReceived(incoming.priority, message))
        else:
            del self._calls[incoming.stream]
            self._require_outbox().release(incoming.stream)
            self._events.append(ResponseReceived(incoming.stream, message))

    # -- streams ---------------------------------------------------------------------------------------------------

    def _is_ours(self, stream: int) -> bool:
        """The initiator's streams are odd, the responder's even."""
        return (stream % 2 == 1) == self.is_initiator

    def _check_known(self, stream: int) -> None:
        """Refuse a frame about a stream of ours that never was; those of the past are simply over."""
        if self._is_ours(stream) and stream >= self._next_stream:
            raise Unexpected(f"stream {stream} was never opened")

    def _take_stream(self) -> int:
        stream = self._next_stream
        self._next_stream += 2
        return stream

    def _require_outbox(self) -> Outbox:
        assert self._outbox is not None  # frames come only after the handshake, which made it
        return self._outbox

    def _require_open(self) -> Outbox:
        if not self.can_open:
            raise LocalProtocolError("the session opens no new streams")
        return self._require_outbox()
