"""The local API: what the daemon offers (`ControlPlane`), and the one table of routes that asks it.

A handler is a plain coroutine from a question to an answer. It knows no HTTP: `connection` reads requests and
writes answers, `server` owns the socket.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from moed import __version__
from moed.daemon.log_ring import LogRing
from moed.daemon.logs import LEVELS

from . import answers
from .credentials import Access
from .metrics import CONTENT_TYPE, ControlMetrics
from .openapi import describe

API_VERSION = 1
EVENT_STREAM = "text/event-stream"
MAX_HEAVY_REQUESTS = 8


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


class ControlPlane(Protocol):
    """What a node must be able to say and do; each may raise `ControlRefused`. Shapes: `answers`."""

    async def status(self) -> dict[str, Any]: ...

    async def peers(self) -> list[dict[str, Any]]: ...

    async def experts(self) -> list[dict[str, Any]]: ...

    async def capacity(self) -> dict[str, Any]: ...

    async def rankings(self) -> dict[str, Any]: ...

    async def why_reward(self, *, uid: int, epoch: int | None) -> dict[str, Any]: ...

    async def chain(self, *, start: int | None, limit: int) -> dict[str, Any]: ...

    async def dht_get(self, key: str) -> dict[str, Any]: ...

    async def dht_table(self) -> dict[str, Any]: ...

    async def dht_lookup(self, target: str) -> dict[str, Any]: ...

    async def doctor(self) -> dict[str, Any]: ...

    def complete(
        self, prompt: bytes, *, max_bytes: int, temperature: float, seed: int | None
    ) -> AsyncIterator[dict[str, Any]]:
        """Pieces of the continuation as they come: {text, experts: {uid: share}}."""
        ...

    async def losses(self) -> dict[str, Any]: ...

    def request_stop(self) -> None:
        """Begin an orderly shutdown; returns at once."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers may use."""

    plane: ControlPlane
    ring: LogRing
    metrics: ControlMetrics


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, checked: ``question`` has the type that the route names."""

    question: Any
    wants_events: bool = False


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
    question: type[msgspec.Struct] = answers.NoQuestion
    access: Access = Access.READER
    is_heavy: bool = False
    has_events: bool = False
    content_type: str = "application/json"

    @property
    def name(self) -> str:
        """``/v1/status`` → status."""
        return self.path.rpartition("/")[2]


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


# handlers


async def _status(services: Services, _ask: Ask) -> Answer:
    return json_body(await services.plane.status())


async def _peers(services: Services, _ask: Ask) -> Answer:
    return json_body(await services.plane.peers())


async def _experts(services: Services, _ask: Ask) -> Answer:
    return json_body(await services.plane.experts())


async def _capacity(services: Services, _ask: Ask) -> Answer:
    return json_body(await services.plane.capacity())


async def _rankings(services: Services, _ask: Ask) -> Answer:
    return json_body(await services.plane.rankings())


async def _why_reward(services: Services, ask: Ask) -> Answer:
    question: answers.RewardQuestion = ask.question
    return json_body(await services.plane.why_reward(uid=question.uid, epoch=question.epoch))


async def _chain(services: Services, ask: Ask) -> Answer:
    question: answers.ChainQuestion = ask.question
    return json_body(await services.plane.chain(start=question.start, limit=question.limit))


async def _dht_get(services: Services, ask: Ask) -> Answer:
    question: answers.DhtGetQuestion = ask.question
    return json_body(await services.plane.dht_get(question.key))


async def _dht_table(services: Services, _ask: Ask) -> Answer:
    return json_body(await services.plane.dht_table())


async def _dht_lookup(services: Services, ask: Ask) -> Answer:
    question: answers.DhtLookupQuestion = ask.question
    return json_body(await services.plane.dht_lookup(question.id))


async def _doctor(services: Services, _ask: Ask) -> Answer:
    return json_body(await services.plane.doctor())


async def _losses(services: Services, _ask: Ask) -> Answer:
    return json_body(await services.plane.losses())


async def _stop(services: Services, _ask: Ask) -> Answer:
    services.plane.request_stop()
    return json_body({"stopping": True})


async def _metrics(services: Services, _ask: Ask) -> Answer:
    status = msgspec.convert(await services.plane.status(), answers.StatusAnswer)
    return Body(services.metrics.render(status), CONTENT_TYPE)


async def _openapi(_services: Services, _ask: Ask) -> Answer:
    return json_body(describe(ROUTES.values(), __version__))


async def _complete(services: Services, ask: Ask) -> Answer:
    question: answers.CompleteQuestion = ask.question
    pieces = services.plane.complete(
        question.prompt.encode(),
        max_bytes=question.max_bytes,
        temperature=question.temperature,
        seed=question.seed,
    )
    if question.stream or ask.wants_events:
        return Events(_piece_events(pieces))
    text, shares = "", _MeanShares()
    async with _closing(pieces):
        async for piece in pieces:
            text += piece["text"]
            shares.add(piece)
    return json_body({"text": text, "experts": shares.means()})


async def _piece_events(pieces: AsyncIterator[dict[str, Any]]) -> AsyncGenerator[bytes]:
    shares = _MeanShares()
    async with _closing(pieces):
        async for piece in pieces:
            shares.add(piece)
            yield event(piece, name="piece")
    yield event({"experts": shares.means()}, name="done")


class _MeanShares:
    """The mean share of each expert over a completion, weighted by how much text each piece brought."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weight = 0

    def add(self, piece: Mapping[str, Any]) -> None:
        weight = max(len(piece["text"].encode()), 1)  # a piece may hold half a character, and so no text yet
        self._weight += weight
        for uid, share in piece["experts"].items():
            self._sums[str(uid)] = self._sums.get(str(uid), 0.0) + share * weight

    def means(self) -> dict[str, float]:
        return {uid: total / self._weight for uid, total in sorted(self._sums.items())}


@asynccontextmanager
async def _closing(pieces: AsyncIterator[Any]) -> AsyncIterator[None]:
    """Close a generator in the task that read it; a plain iterator has nothing to close."""
    try:
        yield
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


async def _logs(services: Services, ask: Ask) -> Answer:
    question: answers.LogsQuestion = ask.question
    level = LEVELS[question.level]
    after = question.since
    if question.tail is not None:
        after = max(after, services.ring.before_last(question.tail, level=level))
    if question.follow or ask.wants_events:
        return Events(_follow(services.ring, after, level), is_endless=True)
    batch = services.ring.read(after, level=level, limit=answers.MAX_LOG_LINES)
    lines = [msgspec.Raw(line.json) for line in batch.lines]
    return json_body({"lines": lines, "dropped": batch.dropped, "last": batch.last})


async def _follow(ring: LogRing, after: int, level: int) -> AsyncGenerator[bytes]:
    """Every line above ``after``, for ever. A reader that fell behind the ring is told what it missed."""
    while True:
        batch = ring.read(after, level=level)
        if batch.dropped:
            yield event({"dropped": batch.dropped}, name="dropped")
        for line in batch.lines:
            yield event(line.json, name="log", number=line.sequence)
        after = batch.last
        await ring.wait_beyond(after)


_TABLE = (
    Route("GET", "/v1/status", "This node at a glance", _status, answers.StatusAnswer),
    Route("GET", "/v1/peers", "Nodes that this one has a session with", _peers, list[answers.PeerRow]),
    Route("GET", "/v1/experts", "Experts that the network offers", _experts, list[answers.ExpertRow]),
    Route("GET", "/v1/capacity", "Hardware of the network, measured", _capacity, answers.CapacityAnswer),
    Route("GET", "/v1/rankings", "Miners and validators as consensus ranks them", _rankings, answers.RankingsAnswer),
    Route(
        "GET", "/v1/why/reward", "One reward taken apart: weights, clip, rank, bonds, payment", _why_reward,
        answers.RewardAnswer, answers.RewardQuestion, is_heavy=True,
    ),
    Route("GET", "/v1/chain", "Head and blocks of the state chain", _chain, answers.ChainAnswer, answers.ChainQuestion),
    Route(
        "GET", "/v1/dht/get", "Records that the network keeps under a key", _dht_get,
        answers.DhtGetAnswer, answers.DhtGetQuestion, is_heavy=True,
    ),
    Route("GET", "/v1/dht/table", "The routing table, bucket by bucket", _dht_table, answers.DhtTableAnswer),
    Route(
        "GET", "/v1/dht/lookup", "The way to an id, question by question", _dht_lookup,
        answers.DhtLookupAnswer, answers.DhtLookupQuestion, is_heavy=True,
    ),
    Route(
        "POST", "/v1/doctor", "Ask peers where they see this node and to dial it back", _doctor,
        answers.DoctorAnswer, is_heavy=True,
    ),
    Route(
        "POST", "/v1/complete", "Continue a text through the mixture of experts", _complete,
        answers.CompleteAnswer, answers.CompleteQuestion, is_heavy=True, has_events=True,
    ),
    Route(
        "POST", "/v1/losses", "Measure the mixture on held-out text", _losses, answers.LossesAnswer, is_heavy=True
    ),
    Route(
        "GET", "/v1/logs", "The daemon's last log lines, or all as they come", _logs,
        answers.LogsAnswer, answers.LogsQuestion, has_events=True,
    ),
    Route("GET", "/v1/metrics", "Metrics for Prometheus", _metrics, str, content_type="text/plain"),
    Route("POST", "/v1/stop", "Stop the daemon in order", _stop, answers.StopAnswer, access=Access.ADMIN),
    Route("GET", "/v1/openapi.json", "This document", _openapi, dict[str, Any]),
)  # fmt: skip
ROUTES: Mapping[tuple[str, str], Route] = {(route.method, route.path): route for route in _TABLE}
