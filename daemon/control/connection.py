"""One HTTP connection on the control socket: h11 between the trio stream and the dispatcher.

Every wait has a limit and none is shielded, so a client that stalls, floods or leaves costs a bounded time and
memory, and a stop of the daemon never waits for one. A client that leaves cancels its own request.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress

import h11
import trio

from moed import __version__

from .api import API_VERSION, EVENT_STREAM, Body, ControlRefused, Events, Route, refusal_body
from .credentials import Access, Caller
from .dispatch import Dispatcher, Head

MAX_HEAD_BYTES = 16384
MAX_BODY_BYTES = 1 << 20
PIECE_BYTES = 65536  # of what is read or written at once
IDLE_TIMEOUT_S = 30.0  # for the next request's head on a kept-open connection
BODY_TIMEOUT_S = 30.0
SEND_TIMEOUT_S = 10.0  # for a piece to be taken: a stopped `moectl logs -f` is let go after that
LINGER_S = 1.0


class ClientGone(Exception):
    """The other end left, or stopped reading; nothing more can be told to it."""


class DrainGate:
    """What may be broken off at once when the daemon stops: idle waits and endless streams, not requests."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self.is_draining = False

    def drain(self) -> None:
        """Break off what waits inside `until_draining`, now and later."""
        self.is_draining = True
        for scope in self._scopes:
            scope.cancel()

    @contextmanager
    def until_draining(self, timeout_s: float = math.inf) -> Iterator[trio.CancelScope]:
        """A scope that ends when draining begins, or after ``timeout_s``."""
        with trio.move_on_after(timeout_s) as scope:
            self._scopes.add(scope)
            if self.is_draining:
                scope.cancel()
            try:
                yield scope
            finally:
                self._scopes.discard(scope)


class Connection:
    """Serves requests one after another until either side has had enough."""

    def __init__(
        self, stream: trio.SocketStream, caller: Caller, access: Access, dispatcher: Dispatcher, gate: DrainGate
    ) -> None:
        self._stream = stream
        self._caller = caller
        self._access = access
        self._dispatcher = dispatcher
        self._gate = gate
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._wants_no_body = False

    async def run(self) -> None:
        """Returns when the connection is over; the caller closes the stream. Raises `ClientGone`."""
        try:
            while await self._serve_one():
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                status = error.error_status_hint
                await self._send_body(
                    refusal_body(ControlRefused(status, "bad_request", f"no HTTP: {error}", "send HTTP/1.1"))
                )
        await self._linger()

    async def refuse(self, refusal: ControlRefused, *, lingers: bool) -> None:
        """Answer whatever was asked with ``refusal``, without reading it. Raises `ClientGone`."""
        with trio.move_on_after(LINGER_S):
            await self._send_body(refusal_body(refusal))
        if lingers:
            await self._linger()

    async def _serve_one(self) -> bool:
        """Read and answer one request; False when there is no next one."""
        head: Head | None = None
        with self._gate.until_draining(IDLE_TIMEOUT_S):
            head = await self._read_head()
        if head is None:
            return False
        try:
            route = self._dispatcher.admit(head, self._caller, self._access)
            body = await self._read_body()
        except ControlRefused as refusal:
            await self._send_body(refusal_body(refusal))
        else:
            # What is answered at once is answered also to one who closed his sending side (`nc -N`).
            takes_long = route.is_heavy or route.has_events
            await (self._answer_while_present if takes_long else self._answer)(route, head, body)
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _answer(self, route: Route, head: Head, body: bytes) -> None:
        async with self._dispatcher.answering(route, head, body, self._access) as answer:
            if isinstance(answer, Body):
                await self._send_body(answer)
            else:
                await self._send_events(answer)

    async def _answer_while_present(self, route: Route, head: Head, body: bytes) -> None:
        """Answer, and raise `ClientGone` as soon as the client has left: nobody would read it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._notice_departure)
            await self._answer(route, head, body)
            nursery.cancel_scope.cancel()

    async def _notice_departure(self) -> None:
        # A pipelined request may come first; it waits in h11, and who sends more than a head has left as well.
        waiting_bytes = 0
        while waiting_bytes <= MAX_HEAD_BYTES and (data := await self._receive()):
            waiting_bytes += len(data)
        raise ClientGone

    # reading

    async def _read_head(self) -> Head | None:
        event = await self._next_event()
        if not isinstance(event, h11.Request):
            return None
        self._wants_no_body = event.method == b"HEAD"
        headers: dict[str, str] = {}
        for name, value in event.headers:
            headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        return Head(event.method.decode("latin-1"), event.target.decode("latin-1"), headers)

    async def _read_body(self) -> bytes:
        """The whole body. Raises `ControlRefused` for one that is too large or too slow."""
        body = bytearray()
        with trio.move_on_after(BODY_TIMEOUT_S):
            while isinstance(event := await self._next_event(), h11.Data):
                body += event.data
                if len(body) > MAX_BODY_BYTES:
                    raise ControlRefused(413, "too_large", f"the body is over {MAX_BODY_BYTES} bytes", "send less")
                # One piece may hold ten thousand chunks of a byte, which h11 needs a second for: others come between.
                await trio.lowlevel.checkpoint()
            if isinstance(event, h11.EndOfMessage):
                return bytes(body)
            raise ClientGone
        raise ControlRefused(408, "too_slow", f"no whole body within {BODY_TIMEOUT_S:.0f} s", "send it at once")

    async def _next_event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                assert not isinstance(event, type) or event is h11.PAUSED
                return event
            if self._http.they_are_waiting_for_100_continue:
                await self._write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
            await self._receive()

    async def _receive(self) -> bytes:
        """Hand the next bytes to h11; b"" when the client has closed its side. Raises `ClientGone`."""
        try:
            data = bytes(await self._stream.receive_some(PIECE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ClientGone from None
        self._http.receive_data(data)
        return data

    # writing

    async def _send_body(self, body: Body) -> None:
        headers = [*_headers(body.content_type), ("content-length", str(len(body.data)))]
        # After a refusal bytes of the body may still be on their way, and while stopping no request may follow.
        if self._gate.is_draining or self._http.their_state is not h11.DONE:
            headers.append(("connection", "close"))
        data = b"" if self._wants_no_body else body.data
        parts = (h11.Response(status_code=body.status, headers=headers), h11.Data(data=data), h11.EndOfMessage())
        await self._write(b"".join(self._http.send(part) or b"" for part in parts))

    async def _send_events(self, answer: Events) -> None:
        await self._write(self._http.send(h11.Response(status_code=200, headers=_headers(EVENT_STREAM))))
        async with aclosing(answer.events):
            while True:
                item = None
                # Only the wait may be broken off: half an event would spoil the framing of what follows.
                with self._gate.until_draining() if answer.is_endless else trio.CancelScope():
                    item = await anext(answer.events, None)
                if item is None:
                    break
                await self._write(self._http.send(h11.Data(data=item)))
        await self._write(self._http.send(h11.EndOfMessage()))

    async def _write(self, data: bytes | None) -> None:
        whole = memoryview(data or b"")
        try:
            # The limit is for each piece: who reads a long answer slowly is served, and who has stopped is let go.
            for start in range(0, len(whole), PIECE_BYTES):
                with trio.fail_after(SEND_TIMEOUT_S):
                    await self._stream.send_all(whole[start : start + PIECE_BYTES])
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            raise ClientGone from None

    async def _linger(self) -> None:
        """Let the client read our last words before the close: unread bytes of its own would turn it into a reset."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError), trio.move_on_after(LINGER_S):
            await self._stream.send_eof()
            while await self._stream.receive_some(PIECE_BYTES):
                pass


def _headers(content_type: str) -> list[tuple[str, str]]:
    return [
        ("content-type", content_type),
        ("cache-control", "no-store"),
        ("moed-version", __version__),
        ("moed-api", str(API_VERSION)),
        ("moed-api-minimum", str(API_VERSION)),
    ]
