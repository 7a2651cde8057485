"""A small blocking client of the local API: HTTP over the Unix socket with the standard library alone."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from .errors import DaemonRefused, DaemonUnreachable
from .http_reply import BadReply, HttpReply
from .places import MAX_SOCKET_PATH_BYTES

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 64 << 20
OK = 200
START_REMEDY = "start one with: moed run --home DIR, or name another with --home or --socket"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a stream: its name, its number where it has one, and its data."""

    name: str
    number: int | None
    data: Any


class Client:
    """Asks one daemon; a connection for each request.

    Every method raises `DaemonUnreachable` where no daemon answers, and `DaemonRefused` where it says no.
    """

    def __init__(
        self, socket_path: Path, *, timeout_s: float = ANSWER_TIMEOUT_S, start_remedy: str = START_REMEDY
    ) -> None:
        """``timeout_s`` bounds each wait for the daemon's next bytes, not for a stream's next event.

        ``start_remedy`` is what to do where no daemon answers.
        """
        self.socket_path = socket_path
        self.timeout_s = timeout_s
        self._start_remedy = start_remedy

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """The JSON at ``path``."""
        return self._json("GET", _with_query(path, query), None)

    def get_text(self, path: str) -> str:
        """The text at ``path``, for what is no JSON: metrics."""
        with self._request("GET", path, None, {}, self.timeout_s) as reply:
            return self._read(reply).decode()

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that answers ``body``."""
        return self._json("POST", path, body or {})

    def stream(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None
    ) -> Iterator[ServerEvent]:
        """The events at ``path`` as they come, until the daemon ends them. An event named error is raised."""
        headers = {"Accept": "text/event-stream"}
        with self._request(method, _with_query(path, query), body, headers, None) as reply:
            for event in self._events(reply):
                if event.name == "error":
                    raise _refused(event.data, 500)
                yield event

    def _json(self, method: str, target: str, body: Mapping[str, Any] | None) -> Any:
        with self._request(method, target, body, {}, self.timeout_s) as reply:
            data = self._read(reply)
        try:
            return json.loads(data)
        except ValueError as error:
            raise self._strange(f"what answers is no JSON: {error}") from error

    @contextmanager
    def _request(
        self, method: str, target: str, body: Mapping[str, Any] | None, headers: dict[str, str], timeout_s: float | None
    ) -> Iterator[HttpReply]:
        """An answer with a good status, whose body may be read inside."""
        if len(os.fsencode(self.socket_path)) > MAX_SOCKET_PATH_BYTES:
            raise self._unreachable(f"its path is longer than {MAX_SOCKET_PATH_BYTES} bytes")
        message = _encoded(method, target, headers, body)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.settimeout(CONNECT_TIMEOUT_S)
                connection.connect(os.fspath(self.socket_path))
                connection.settimeout(timeout_s)
                with suppress(
                    BrokenPipeError
                ):  # the daemon has refused before it read all; its answer is there to read
                    connection.sendall(message)
                reply = HttpReply(connection.makefile("rb"))
            except (OSError, BadReply) as error:
                raise self._unreachable(_reason(error)) from error
            try:
                if reply.status != OK:
                    raise self._refusal(self._read(reply), reply.status)
                yield reply
            finally:
                reply.close()

    def _read(self, reply: HttpReply) -> bytes:
        try:
            data = reply.read(MAX_ANSWER_BYTES)
        except (OSError, BadReply) as error:
            raise self._unreachable(f"it broke off its answer: {_reason(error)}") from error
        if data is None:
            raise self._strange(f"the answer is over {MAX_ANSWER_BYTES} bytes")
        return data

    def _events(self, reply: HttpReply) -> Iterator[ServerEvent]:
        """Server-sent events as the daemon writes them: each field once, data on one line."""
        fields: dict[str, str] = {}
        lines = reply.lines()
        while True:
            try:
                line = next(lines, None)
            except (OSError, BadReply) as error:
                raise self._unreachable(f"it broke off its answer: {_reason(error)}") from error
            if line is None:
                return
            text = line.decode()
            if text:
                name, _, value = text.partition(":")
                fields[name] = value.removeprefix(" ")
            elif fields:
                number = fields.get("id", "")
                yield ServerEvent(
                    fields.get("event", "message"),
                    int(number) if number.isdigit() else None,
                    json.loads(fields.get("data", "null")),
                )
                fields = {}

    def _refusal(self, data: bytes, status: int) -> Exception:
        try:
            return _refused(json.loads(data), status)
        except (ValueError, TypeError, KeyError):
            return self._strange(f"what answers is no moed daemon: HTTP status {status}")

    def _unreachable(self, reason: str) -> DaemonUnreachable:
        return DaemonUnreachable(f"no daemon answers on {self.socket_path}: {reason}", self._start_remedy)

    def _strange(self, reason: str) -> DaemonUnreachable:
        return DaemonUnreachable(f"{self.socket_path}: {reason}", "check what listens there")


def _encoded(method: str, target: str, headers: Mapping[str, str], body: Mapping[str, Any] | None) -> bytes:
    """A request whose answer ends the connection."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = {"Host": "localhost", "Connection": "close", **headers}
    if body is not None:
        lines |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + data


def _refused(value: Any, status: int) -> DaemonRefused:
    return DaemonRefused(str(value["message"]), str(value["remedy"]), code=str(value["code"]), status=status)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _with_query(path: str, query: Mapping[str, Any] | None) -> str:
    given = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in (query or {}).items()
        if value is not None
    }
    # What is no text goes as the bytes that it is; the daemon says what it thinks of them.
    return f"{path}?{urlencode(given, errors='surrogateescape')}" if given else path
