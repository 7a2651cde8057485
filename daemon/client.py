"""A small blocking client of the local API: HTTP over the Unix socket with the standard library alone."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from .errors import DaemonRefused, DaemonUnreachable
from .places import MAX_SOCKET_PATH_BYTES

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a stream: its name, its number where it has one, and its data."""

    name: str
    number: int | None
    data: Any


class _UnixConnection(http.client.HTTPConnection):
    """`HTTPConnection` that dials a path."""

    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=CONNECT_TIMEOUT_S)
        self._path = path
        self._answer_timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_TIMEOUT_S)
        self.sock.connect(os.fspath(self._path))
        self.sock.settimeout(self._answer_timeout_s)


class Client:
    """Asks one daemon; a connection for each request.

    Every method raises `DaemonUnreachable` where no daemon answers, and `DaemonRefused` where it says no.
    """

    def __init__(self, socket_path: Path, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """``timeout_s`` bounds each wait for the daemon's next bytes, not for a stream's next event."""
        self.socket_path = socket_path
        self.timeout_s = timeout_s

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """The JSON at ``path``."""
        return self._json("GET", _with_query(path, query), None)

    def get_text(self, path: str) -> str:
        """The text at ``path``, for what is no JSON: metrics."""
        with self._request("GET", path, None, {}, self.timeout_s) as response:
            return self._read(response).decode()

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that answers ``body``."""
        return self._json("POST", path, body or {})

    def stream(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None
    ) -> Iterator[ServerEvent]:
        """The events at ``path`` as they come, until the daemon ends them. An event named error is raised."""
        headers = {"Accept": "text/event-stream"}
        with self._request(method, _with_query(path, query), body, headers, None) as response:
            for event in self._events(response):
                if event.name == "error":
                    raise _refused(event.data, 500)
                yield event

    def _json(self, method: str, target: str, body: Mapping[str, Any] | None) -> Any:
        with self._request(method, target, body, {}, self.timeout_s) as response:
            data = self._read(response)
        try:
            return json.loads(data)
        except ValueError as error:
            raise self._strange(f"what answers is no JSON: {error}") from error

    def _request(
        self, method: str, target: str, body: Mapping[str, Any] | None, headers: dict[str, str], timeout_s: float | None
    ) -> http.client.HTTPResponse:
        """A response with a good status, to be closed by the caller."""
        if len(os.fsencode(self.socket_path)) > MAX_SOCKET_PATH_BYTES:
            raise self._unreachable(f"its path is longer than {MAX_SOCKET_PATH_BYTES} bytes")
        connection = _UnixConnection(self.socket_path, timeout_s)
        headers = {**headers, "Connection": "close"}  # then the end of the answer closes the socket too
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers = {**headers, "Content-Type": "application/json"}
        try:
            response = _exchange(connection, method, target, data, headers)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(_reason(error)) from error
        if response.status != http.client.OK:
            with response:
                refusal = self._read(response)
            raise self._refusal(refusal, response.status)
        return response

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            data = response.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(f"it broke off its answer: {_reason(error)}") from error
        if len(data) > MAX_ANSWER_BYTES:
            raise self._strange(f"the answer is over {MAX_ANSWER_BYTES} bytes")
        return data

    def _events(self, response: http.client.HTTPResponse) -> Iterator[ServerEvent]:
        """Server-sent events as the daemon writes them: each field once, data on one line."""
        fields: dict[str, str] = {}
        while True:
            try:
                line = response.readline()
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(f"it broke off its answer: {_reason(error)}") from error
            if not line:
                return
            text = line.decode().rstrip("\r\n")
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
        return DaemonUnreachable(
            f"no daemon answers on {self.socket_path}: {reason}",
            "start one with: moed run, or name another with --home or --socket",
        )

    def _strange(self, reason: str) -> DaemonUnreachable:
        return DaemonUnreachable(f"{self.socket_path}: {reason}", "check what listens there")


def _exchange(
    connection: _UnixConnection, method: str, target: str, data: bytes | None, headers: Mapping[str, str]
) -> http.client.HTTPResponse:
    with suppress(BrokenPipeError):  # the daemon has refused before it read all; its answer is still there to read
        connection.request(method, target, data, dict(headers))
    return connection.getresponse()


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
    return f"{path}?{urlencode(given)}" if given else path
