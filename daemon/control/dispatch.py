"""From a request's head and body to an answer: who asks, what for, and every way in which it can be refused."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import structlog
import trio

from .api import (
    EVENT_STREAM,
    HEAVY_FOR_ADMIN,
    MAX_HEAVY_REQUESTS,
    Answer,
    Ask,
    Body,
    ControlRefused,
    Events,
    Route,
    Services,
    event,
    refusal_body,
)
from .credentials import Access, Caller
from .questions import NoQuestion
from .routes import ROUTES

logger = structlog.get_logger()

# Names that a client of this socket may put into Host; a browser can be brought here only under another one.
LOCAL_HOSTS = frozenset({"", "localhost", "moed", "moed.sock", "127.0.0.1", "[::1]"})
MAX_QUERY_FIELDS = 32
# msgspec's words for bounds, which people would have to know Python for
_HEX_PATTERN = re.compile(r"str matching regex '\^\[0-9a-f\]\{(\d+)\}\$'")
_STR_LENGTH = re.compile(r"str of length (>=|<=) (\d+)")
_BOUND_WORDS = {">=": "at least", "<=": "at most"}
_BROWSER_HEADERS = ("origin", "referer", "sec-fetch-site")


@dataclass(frozen=True, slots=True)
class Head:
    """The first part of a request; header names are lower-case."""

    method: str
    target: str
    headers: Mapping[str, str]

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


class Dispatcher:
    """Answers requests of every connection; what it raises is cancellation only, never a bug of a handler."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._heavy = 0

    def admit(self, head: Head, caller: Caller, access: Access) -> Route:
        """The route of a request that may go on, judged by its head alone. Raises `ControlRefused`."""
        if access is Access.NOBODY:
            raise ControlRefused(
                403,
                "forbidden",
                f"uid {caller.uid} may not use this daemon",
                "become root, or let an administrator add you to the group moed, then log in anew",
            )
        _refuse_browsers(head.headers)
        route = _find(head)
        if access < route.access:
            raise ControlRefused(
                403, "forbidden", f"{route.path} is for administrators", "use root or the daemon's own user"
            )
        return route

    @asynccontextmanager
    async def answering(self, route: Route, head: Head, body: bytes, access: Access) -> AsyncIterator[Answer]:
        """The answer, to be written out while inside. Leaving closes its stream and frees its place.

        A refusal becomes its answer; a bug becomes a 500 with an id, and is logged under it.
        """
        started = trio.current_time()
        async with AsyncExitStack() as held:
            try:
                answer = await self._ask(route, head, body, access, held)
            except ControlRefused as refusal:
                answer = refusal_body(refusal)
            except Exception as error:  # one bug in a handler must not stop the node: it is logged, counted and told
                answer = refusal_body(_bug(route, error))
            yield answer
            status = answer.status if isinstance(answer, Body) else HTTPStatus.OK
            self._services.metrics.count_request(route.name, status, trio.current_time() - started)

    async def _ask(self, route: Route, head: Head, body: bytes, access: Access, held: AsyncExitStack) -> Answer:
        ask = Ask(
            _question(route, head, body),
            EVENT_STREAM in head.headers.get("accept", ""),
            _last_event(head),
            body if route.is_cbor else b"",
        )
        if route.is_heavy:
            held.enter_context(self._place(access))
        answer = await route.handler(self._services, ask)
        if isinstance(answer, Body):
            return answer
        await held.enter_async_context(aclosing(answer.events))
        # The first event is awaited before the head goes out, so that a refusal has an HTTP status of its own.
        first = None if answer.is_endless else await anext(answer.events, None)
        return Events(_guarded(route, first, answer.events), answer.is_endless)

    @contextmanager
    def _place(self, access: Access) -> Iterator[None]:
        """One of the places for heavy requests, or `ControlRefused`."""
        if self._heavy >= MAX_HEAVY_REQUESTS - (0 if access is Access.ADMIN else HEAVY_FOR_ADMIN):
            raise ControlRefused(
                503, "busy", f"{self._heavy} such requests are running already", "try again in a moment"
            )
        self._heavy += 1
        try:
            yield
        finally:
            self._heavy -= 1


def _refuse_browsers(headers: Mapping[str, str]) -> None:
    """No web page drives the daemon: neither by its own origin nor by a name that it made point here."""
    for name in _BROWSER_HEADERS:
        if name in headers:
            raise ControlRefused(
                403, "foreign_origin", f"requests with a header {name.title()} are refused", "call from a program"
            )
    host, _, port = headers.get("host", "").rpartition(":")
    name = host if host and port.isdigit() else headers.get("host", "")
    if name.lower() not in LOCAL_HOSTS:
        raise ControlRefused(403, "foreign_host", f"the host {name!r} is not this daemon", "use http://localhost/")


def _find(head: Head) -> Route:
    route = ROUTES.get((head.method, head.path))
    if route is not None:
        return route
    methods = sorted(method for method, path in ROUTES if path == head.path)
    if methods:
        raise ControlRefused(
            405, "wrong_method", f"{head.path} does not take {head.method}", f"use {' or '.join(methods)}"
        )
    raise ControlRefused(404, "not_found", f"there is no {head.path[:200]}", "GET /v1/openapi.json lists what there is")


def _question(route: Route, head: Head, body: bytes) -> msgspec.Struct:
    """The typed question of a request. Raises `ControlRefused` naming the field that is wrong."""
    if route.method == "GET":
        # `?follow` alone means yes.
        try:
            pairs = parse_qsl(head.target.partition("?")[2], keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
        except ValueError:
            raise ControlRefused(
                400, "bad_request", f"the query has over {MAX_QUERY_FIELDS} fields", "ask for less"
            ) from None
        raw: Any = {name: value or "true" for name, value in pairs}
    elif route.question is NoQuestion:
        return NoQuestion()
    else:
        try:
            raw = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ControlRefused(400, "bad_request", f"the body is no JSON: {error}", "send one JSON object") from None
    try:
        return msgspec.convert(raw, route.question, strict=route.method != "GET")
    except msgspec.ValidationError as error:
        fields = ", ".join(route.question.__struct_fields__) or "no parameters"
        raise ControlRefused(400, "bad_request", _field_words(str(error)), f"{route.path} takes {fields}") from None


def _field_words(problem: str) -> str:
    """What is wrong with a question, the field first."""
    what, _, place = problem.replace("`", "").partition(" - at ")
    what = _HEX_PATTERN.sub(r"\1 hexadecimal digits", what)
    what = _STR_LENGTH.sub(lambda found: f"{_BOUND_WORDS[found[1]]} {found[2]} characters", what)
    return f"{place.removeprefix('$.')}: {what[:1].lower()}{what[1:]}" if place else what


def _last_event(head: Head) -> int | None:
    """Where a client of events that lost its connection goes on."""
    text = head.headers.get("last-event-id", "")
    return int(text[:20]) if text.isascii() and text.isdigit() else None


def _bug(route: Route, error: Exception) -> ControlRefused:
    bug_id = secrets.token_hex(6)
    logger.error("request.crashed", route=route.path, bug_id=bug_id, exc_info=error)
    return ControlRefused(
        500, "bug", f"an unexpected error, logged under {bug_id}", f"please report it: moectl logs | grep {bug_id}"
    )


async def _guarded(route: Route, first: bytes | None, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The events; a refusal or bug on the way becomes a last event, as the HTTP status has gone out."""
    if first is not None:
        yield first
    try:
        async for item in events:
            yield item
    except ControlRefused as refusal:
        yield event(refusal_body(refusal).data.rstrip(), name="error")
    except Exception as error:  # as in `Dispatcher.answering`
        yield event(refusal_body(_bug(route, error)).data.rstrip(), name="error")
