"""The words of the local API: what the daemon offers (`ControlPlane`), what a route is, how answers are made.

`routes` is the one table of routes. A handler is a plain coroutine from a question to an answer. It knows no HTTP:
`connection` reads requests and writes answers, `server` owns the socket.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from moed.daemon.logs import Logs

from . import questions
from .answers import StatusAnswer
from .credentials import Access
from .metrics import ControlMetrics

API_VERSION = 1
EVENT_STREAM = "text/event-stream"
MAX_HEAVY_REQUESTS = 8
# The last of them, so that readers who let theirs run never keep an administrator from `doctor` or `sql`.
HEAVY_FOR_ADMIN = 2


class ControlRefused(Exception):
    """The daemon says no, or not now: HTTP ``status``, a short stable ``code``, and words with a remedy."""

    def __init__(self, status: int, code: str, message: str, remedy: str) -> None:
        super().__init__(status, code, message, remedy)
        self.status = status
        self.code = code
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})"


class Ledger(Protocol):
    """What a node says of accounts, and sends for them; each may raise `ControlRefused`."""

    def account(self, key: str | None) -> dict[str, Any]: ...

    async def send(self, kind: str, fields: Mapping[str, Any]) -> dict[str, Any]: ...

    async def submit(self, encoded: str) -> dict[str, Any]: ...


class ControlPlane(Protocol):
    """What a node must be able to say and do; each may raise `ControlRefused`. Shapes: `answers`."""

    async def status(self) -> dict[str, Any]: ...

    async def peers(self) -> list[dict[str, Any]]: ...

    async def experts(self) -> list[dict[str, Any]]: ...

    async def capacity(self, owner: str | None = None) -> dict[str, Any]: ...

    async def rankings(self) -> dict[str, Any]: ...

    async def why_reward(self, *, uid: int, epoch: int | None) -> dict[str, Any]: ...

    async def chain(self, *, start: int | None, limit: int) -> dict[str, Any]: ...

    async def dht_get(self, key: str) -> dict[str, Any]: ...

    async def dht_table(self) -> dict[str, Any]: ...

    async def dht_lookup(self, target: str) -> dict[str, Any]: ...

    async def doctor(self) -> dict[str, Any]: ...

    async def forward(self, inputs: NDArray[np.uint8]) -> tuple[NDArray[np.float32], list[dict[str, float]]]:
        """Log-probabilities [B, 256] of the byte after each row of ``inputs`` [B, T], and {uid: share} of each row."""
        ...

    def complete(
        self, prompt: bytes, *, max_bytes: int, temperature: float, seed: int | None
    ) -> AsyncIterator[dict[str, Any]]:
        """Pieces of the continuation as they come: {text, experts: {uid: share}}."""
        ...

    async def losses(self) -> dict[str, Any]: ...

    async def route(self, text: bytes) -> dict[str, Any]: ...

    async def teach(self, texts: Sequence[bytes], *, steps: int) -> dict[str, Any]: ...

    @property
    def ledger(self) -> Ledger:
        """Accounts and transactions."""
        ...

    def request_stop(self) -> None:
        """Begin an orderly shutdown; returns at once."""
        ...


class Desk(Protocol):
    """What a daemon lets its operator see and change; each may raise `ControlRefused`."""

    def config(self) -> dict[str, Any]: ...

    def change(self, key: str, value: Any) -> dict[str, Any]: ...

    def reload(self) -> dict[str, Any]: ...

    def resources(self) -> dict[str, Any]: ...

    def judge(
        self, health: dict[str, Any], status: dict[str, Any], dropped: Mapping[str, int]
    ) -> list[dict[str, str]]: ...

    async def sql(self, query: str, registry: CollectorRegistry) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers may use."""

    plane: ControlPlane
    desk: Desk
    logs: Logs
    metrics: ControlMetrics

    async def refresh_metrics(self) -> None:
        """Take the node's standing into the metrics, as it is now."""
        status = msgspec.convert(await self.plane.status(), StatusAnswer)
        self.metrics.take(status, self.desk.resources(), self.logs.limiter.left_out)
        experts = await self.plane.experts()
        self.metrics.take_experts(row for row in experts if row["node_id"] == status.node_id)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, checked: ``question`` has the type that the route names."""

    question: Any
    wants_events: bool = False
    last_event: int | None = None
    """The number that a client of events gives to go on after it (``Last-Event-ID``)."""
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Body:
    """An answer that is there in full."""

    data: bytes
    content_type: str = "application/json"
    status: int = 200


@dataclass(frozen=True, slots=True)
class Events:
    """An answer in server-sent events; one that ``is_endless`` ends when the daemon stops."""

    events: AsyncGenerator[bytes]
    is_endless: bool = False


Answer = Body | Events
Handler = Callable[[Services, Ask], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Route:
    """One thing that the API does. ``answer`` is the shape of its JSON; ``is_heavy`` bounds how many run at once."""

    method: str
    path: str
    summary: str
    handler: Handler
    answer: Any
    question: type[msgspec.Struct] = questions.NoQuestion
    access: Access = Access.READER
    is_heavy: bool = False
    has_events: bool = False
    content_type: str = "application/json"
    is_cbor: bool = False
    """Whether the request's body is CBOR, which the handler reads by itself."""

    @property
    def name(self) -> str:
        """``/v1/why/reward`` → why_reward."""
        return self.path.removeprefix("/v1/").replace("/", "_").replace(".", "_")


def json_body(value: Any, status: int = 200) -> Body:
    """``value`` as an answer in JSON."""
    return Body(msgspec.json.encode(value) + b"\n", status=status)


def refusal_body(refusal: ControlRefused) -> Body:
    """The answer that tells a refusal."""
    value = {"code": refusal.code, "message": refusal.message, "remedy": refusal.remedy}
    return json_body(value, refusal.status)


def event(data: Any, *, name: str | None = None, number: int | None = None) -> bytes:
    """One server-sent event; ``data`` is JSON already when it is bytes."""
    encoded = data if isinstance(data, bytes) else msgspec.json.encode(data)
    head = (b"" if number is None else b"id: %d\n" % number) + (b"" if name is None else b"event: %s\n" % name.encode())
    return head + b"data: " + encoded + b"\n\n"


@asynccontextmanager
async def closing(pieces: AsyncIterator[Any]) -> AsyncIterator[None]:
    """Close a generator in the task that read it; a plain iterator has nothing to close."""
    try:
        yield
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()
