"""One connection: a byte stream driven through the session machine by a reader, a writer and a keep-alive.

This is one of the daemon's two supervision points. What the peer does wrong (`RemoteProtocolError`) and what breaks
on the way (stream errors) end the connection by name; any other exception is a bug here, which is logged with
its traceback, counted, and ends only this connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import structlog
import trio

from moed.protocol.errors import RemoteProtocolError
from moed.protocol.frames import GoodbyeCode
from moed.protocol.session_events import (
    NEED_DATA,
    Ended,
    Event,
    GoodbyeReceived,
    NoticeReceived,
    PongReceived,
    RequestCancelled,
    RequestEnded,
    RequestReceived,
    ResponseReceived,
    SessionOpened,
)

from .bandwidth import Bandwidth
from .errors import DialFailed
from .line import Line
from .outbound import OutboundCalls
from .serving import Serving
from .traffic import Moved

if TYPE_CHECKING:
    from moed.protocol.addresses import Address
    from moed.protocol.aead import Buffer
    from moed.protocol.identity import NodeId, PublicKey
    from moed.protocol.receipts import CallReceipt
    from moed.protocol.session import Session

    from .calls import Receipts
    from .limits import NetworkCounters, NetworkLimits
    from .peer import Peer

logger = structlog.get_logger()

_RECEIVE_BYTES = 64 << 10  # one read of a stream that is no socket
_TURNS = 8
"""Reads or batches sent in a row before other tasks of the node get their turn."""

EndReason = Literal[
    "peer_left", "peer_gone", "protocol_error", "broken", "silent", "handshake_timeout", "evicted", "unwanted",
    "duplicate", "shutdown", "bug",
]  # fmt: skip

_GOODBYE = {
    "bug": GoodbyeCode.FAULT,
    "silent": GoodbyeCode.UNWANTED,
    "unwanted": GoodbyeCode.UNWANTED,
    "duplicate": GoodbyeCode.DUPLICATE,
    "shutdown": GoodbyeCode.SHUTDOWN,
}
_RTT_GAIN = 1 / 8  # the smoothing of RFC 6298
_STREAM_ERRORS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class _StreamBroken(Exception):
    """The byte stream failed; kept apart from what handlers raise, which may be an OSError of their own."""


class Connection:
    """A stream and its session. `run` drives both until either ends, and closes the stream."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        session: Session,
        *,
        address: Address,
        is_outbound: bool,
        limits: NetworkLimits,
        counters: NetworkCounters,
        serving: Callable[[Connection], Serving],
        receipts: Receipts | None = None,
        bandwidth: Bandwidth | None = None,
    ) -> None:
        self.session = session
        self.address = address
        self.is_outbound = is_outbound
        self.peer: Peer | None = None  # set by whoever registers the opened session
        self.rtt_s: float | None = None
        self.opened_at: float | None = None
        self.is_leaving = False  # a goodbye was said or heard: nothing new is started here
        self.heard_goodbye: GoodbyeCode | None = None
        self.end_reason: EndReason | None = None
        self.failure: DialFailed | None = None
        self.calls = OutboundCalls(session, self.wake, self.send_now, self._note_answered if receipts else None)
        self._receipts = receipts
        self._stream = stream
        self._limits = limits
        self._counters = counters
        self._serving = serving(self)
        self.moved = Moved()
        """Bytes over the socket that nobody has booked yet."""
        socket = stream if isinstance(stream, trio.SocketStream) else None
        self._line = None if socket is None else Line(socket, bandwidth or Bandwidth(), self.moved)
        self._wake = trio.Event()
        self._is_writer_waiting = False
        self._may_be_readable = True  # False once a read has emptied the socket
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._unsent: deque[memoryview] = deque()
        self._is_cut = False  # a message may have been sent in part: nothing can follow it
        self._is_retiring = False
        self._ping_sent_at: dict[int, float] = {}  # at most the latest ping
        self._heard_at = 0.0

    @property
    def node_id(self) -> NodeId:
        """Who is on the other side; only once open."""
        return self.session.peer.node_id

    @property
    def public_key(self) -> PublicKey:
        """The other side's key; only once open."""
        return self.session.peer.public_key

    async def run(self, on_open: Callable[[Connection], None]) -> None:
        """Shake hands, call ``on_open``, then serve until either side ends it; closes the stream.

        Returns normally whatever the peer does; `end_reason` and `failure` say why. Cancellation says goodbye within
        the limit and then is passed on.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    self.start(self._converse, on_open)
        finally:
            self._nursery = None
            self.end("shutdown")
            self.is_leaving = True
            self.calls.lose_all()
            await self._leave()
            self.session.close()

    def start(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run ``task`` inside this connection, under its supervision. Ignored once the connection is over."""
        if self._nursery is not None:
            self._nursery.start_soon(self._supervise, task, args)

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    def send_now(self) -> None:
        """Send what is queued from where we are, as far as the socket takes it at once; the writer does the rest.

        Worth it for a message that is alone: it saves the turn of the loop in which the writer would wake up.
        """
        if self._line is None or not self._is_writer_waiting or self._wake.is_set() or self._unsent:
            self.wake()
            return
        for buffer in self.session.data_to_send(trio.current_time()):
            view = memoryview(buffer)
            try:
                sent = 0 if self._unsent else self._line.send_nowait(view)
            except OSError:
                sent = 0  # the writer meets the same error, and is the one to say so
            if sent < len(view):
                self._unsent.append(view[sent:])
        if self._unsent or self._is_retiring or self.session.wants_to_send:
            self.wake()

    def end(self, reason: EndReason, failure: DialFailed | None = None) -> None:
        """Close the connection for ``reason``; the first one stays."""
        if self.end_reason is None:
            self.end_reason = reason
            self.failure = failure or DialFailed(reason, "the connection ended before the peer proved itself")
        self._scope.cancel()

    def retire(self, code: GoodbyeCode) -> None:
        """Start nothing new here, let what is open end within the drain time, then close."""
        if not self.is_leaving:
            self.is_leaving = self._is_retiring = True
            self.session.goodbye(code)
            self.wake()
            self.start(self._drain)

    # -- tasks -----------------------------------------------------------------------------------------------------

    async def _supervise(self, task: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> None:
        try:
            await task(*args)
        except RemoteProtocolError as error:
            self._counters.protocol_errors += 1
            self.end("protocol_error", DialFailed(error.code, str(error)))
        except _StreamBroken as error:
            self.end("broken", DialFailed("broken", str(error)))
        except Exception:  # the supervision point: one message that finds a bug must not stop the node
            self._counters.bugs += 1
            logger.exception("session.bug", address=str(self.address))
            self.end("bug")

    async def _converse(self, on_open: Callable[[Connection], None]) -> None:
        with trio.move_on_after(self._limits.handshake_s) as patience:
            await self._shake_hands()
        if patience.cancelled_caught:
            self.end("handshake_timeout", DialFailed("timeout", "no handshake in time"))
            return
        self.opened_at = self._heard_at = trio.current_time()
        on_open(self)
        if self.end_reason is not None:  # it was one too many
            return
        self.start(self._write)
        self.start(self._keep_alive)
        await self._read()

    async def _shake_hands(self) -> None:
        while True:
            await self._send(self.session.data_to_send(trio.current_time()))
            event = self.session.next_event()
            if isinstance(event, SessionOpened):
                break
            if isinstance(event, Ended):
                raise _StreamBroken("the peer closed the connection during the handshake")
            if event is NEED_DATA:
                await self._receive()
        await self._send(self.session.data_to_send(trio.current_time()))

    async def _read(self) -> None:
        turns = 0
        while self._take_events():
            turns += 1
            if turns % _TURNS == 0:
                await trio.lowlevel.checkpoint()
            # Also when a window opened for what waits; a wake-up for nothing costs each small call a turn of the loop.
            if self._is_retiring or self.session.wants_to_send:
                self.send_now()
            await self._serving.has_room()
            await self._receive()

    async def _receive(self) -> None:
        """Read once into the session. The end of the stream becomes its `Ended` event."""
        try:
            if self._line is not None:
                await self._receive_line(self._line)
            else:
                self.session.receive_data(await self._stream.receive_some(_RECEIVE_BYTES))
        except _STREAM_ERRORS as error:
            raise _StreamBroken(str(error) or type(error).__name__) from error

    async def _receive_line(self, line: Line) -> None:
        """Straight into the machine's own buffer: one copy and one allocation less for every read."""
        if not self._may_be_readable:
            await line.wait_readable()
        space = self.session.receive_space()
        while (count := line.receive_nowait(space)) is None:
            await line.wait_readable()
        # a read that did not fill the space emptied the socket
        self._may_be_readable = count == len(space)
        if count:
            self.session.received(count)
        else:
            self.session.receive_data(b"")

    async def _send(self, buffers: Sequence[Buffer]) -> None:
        self._unsent.extend(memoryview(buffer) for buffer in buffers)
        await self._flush()

    async def _flush(self) -> None:
        """Send what `_unsent` holds. Cancelled on a socket, it knows what is left, so a goodbye can still follow."""
        try:
            while self._unsent:
                first = self._unsent[0]
                if self._line is not None:
                    sent = self._line.send_nowait(first)
                    if sent == 0:
                        await self._line.wait_writable()
                        continue
                else:
                    self._is_cut = True
                    await self._stream.send_all(first)
                    self._is_cut = False
                    sent = len(first)
                if sent == len(first):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = first[sent:]
        except _STREAM_ERRORS as error:
            self._is_cut = True
            raise _StreamBroken(str(error) or type(error).__name__) from error

    async def _write(self) -> None:
        turns = 0
        while True:
            self._wake = trio.Event()
            await self._flush()  # what `send_now` left
            while buffers := self.session.data_to_send(trio.current_time()):
                await self._send(buffers)
                turns += 1
                if turns % _TURNS == 0:
                    await trio.lowlevel.checkpoint()
            if not self._take_events():  # a request that expired in the queue is an event too
                return
            if self._is_retiring and self._is_drained:
                self.end("duplicate")
                return
            self._is_writer_waiting = True
            await self._wake.wait()
            self._is_writer_waiting = False

    @property
    def _is_drained(self) -> bool:
        """Whether nothing is open, and nothing that the peer sent before its own goodbye can still come.

        Ending earlier would lose requests that crossed our goodbye: each must hear that it was not begun.
        """
        is_open = self.session.open_streams or self.session.has_unsent
        return not is_open and self.heard_goodbye is not None

    async def _keep_alive(self) -> None:
        token = 0
        while True:
            now = trio.current_time()
            if now - self._heard_at > self._limits.silence_s:
                self.end("silent")
                return
            token += 1
            self._ping_sent_at = {token: now}
            self.session.ping(token)
            self.wake()
            if self.session.open_streams == 0:
                self.session.trim()
            await trio.sleep(self._limits.keepalive_s)

    async def _drain(self) -> None:
        """What `_write` has not seen to its end by then is cut."""
        await trio.sleep(self._limits.drain_s)
        self.end("duplicate")

    async def _leave(self) -> None:
        """Say goodbye if the stream still can and the peer may listen, then close the stream."""
        code = _GOODBYE.get(self.end_reason or "")
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._limits.goodbye_s):
            if code is not None and self.opened_at is not None and not self._is_cut:
                with suppress(_StreamBroken):  # the peer may be gone already
                    await self._say_goodbye(code)
        # With the scope's time used up `aclose` still closes, at once.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._limits.goodbye_s):
            if self._line is not None:
                self._line.release()
                self._line = None
            await self._stream.aclose()

    async def _say_goodbye(self, code: GoodbyeCode) -> None:
        await self._flush()
        self.session.goodbye(code)
        await self._send(self.session.data_to_send(trio.current_time()))
        if not isinstance(self._stream, trio.abc.HalfCloseableStream) or self.end_reason == "silent":
            return
        # Closing with bytes unread resets the connection, which may overtake the goodbye: read on to the peer's end.
        try:
            await self._stream.send_eof()
            while await self._stream.receive_some(_RECEIVE_BYTES):
                pass
        except _STREAM_ERRORS as error:
            raise _StreamBroken(str(error)) from error

    def _note_answered(self, call: CallReceipt) -> None:
        if self._receipts is not None and self.peer is not None:
            self._receipts.answered(self.peer, call)

    # -- events ----------------------------------------------------------------------------------------------------

    def _take_events(self) -> bool:
        """Hand every event on; False once the stream ended. Raises what the peer did wrong."""
        while (event := self.session.next_event()) is not NEED_DATA:
            if isinstance(event, Ended):
                self.end("peer_left" if event.is_clean else "peer_gone")
                return False
            self._take_event(event)
        return True

    def _take_event(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._serving.take_request(event)
            case NoticeReceived():
                self._serving.take_notice(event)
            case RequestCancelled():
                self._serving.cancel(event)
            case ResponseReceived():
                self.calls.answer(event)
            case RequestEnded():
                self.calls.fail(event)
            case PongReceived():
                self._take_pong(event.token)
            case GoodbyeReceived():
                self.heard_goodbye = event.code
                if event.code is GoodbyeCode.DUPLICATE:
                    self.retire(event.code)  # so that the peer knows when it has seen the last of our requests
                self.is_leaving = True
            case SessionOpened() | Ended():
                raise AssertionError("these are taken before the events of an open session")

    def _take_pong(self, token: int) -> None:
        sent_at = self._ping_sent_at.pop(token, None)
        if sent_at is None:
            return
        self._heard_at = trio.current_time()
        measured = self._heard_at - sent_at
        self.rtt_s = measured if self.rtt_s is None else self.rtt_s + _RTT_GAIN * (measured - self.rtt_s)
