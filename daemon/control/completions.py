"""Completions through the mixture, and what is told of where each came from: experts, shares, calls, cost."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from . import questions
from .api import Answer, Ask, ControlRefused, Events, Services, closing, event, json_body


class Provenance:
    """What a completion is made of, summed up piece by piece."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._calls: dict[str, int] = {}
        self._weight = 0

    def add(self, piece: Mapping[str, Any]) -> None:
        """Count one piece: {text, experts: {uid: share}}."""
        weight = max(len(piece["text"].encode()), 1)  # a piece may hold half a character, and so no text yet
        self._weight += weight
        for uid, share in piece["experts"].items():
            self._sums[str(uid)] = self._sums.get(str(uid), 0.0) + share * weight
            self._calls[str(uid)] = self._calls.get(str(uid), 0) + 1

    def shares(self) -> dict[str, float]:
        """The mean share of each expert by uid, weighted by how much text each piece brought."""
        return {uid: total / self._weight for uid, total in sorted(self._sums.items())}

    def calls(self) -> dict[str, int]:
        """How many forward rows each expert answered."""
        return dict(sorted(self._calls.items()))


async def cost_of(services: Services, calls: Mapping[str, int]) -> int | None:
    """What ``calls`` cost by the prices that their miners ask, in 10⁻⁹ credits; null where one is not known."""
    try:
        capacity = await services.plane.capacity()
    except ControlRefused:
        return None
    price_by_node = {row["node_id"]: row.get("price") for row in capacity["nodes"]}
    node_by_uid = {str(row["uid"]): row["node_id"] for row in await services.plane.experts()}
    prices = {uid: price_by_node.get(node_by_uid.get(uid)) for uid in calls}
    known = {uid: price for uid, price in prices.items() if price is not None}
    return sum(known[uid] * count for uid, count in calls.items()) if len(known) == len(calls) else None


async def complete(services: Services, ask: Ask) -> Answer:
    """POST /v1/complete."""
    question: questions.CompleteQuestion = ask.question
    pieces = services.plane.complete(
        question.prompt.encode(),
        max_bytes=question.max_bytes,
        temperature=question.temperature,
        seed=question.seed,
    )
    if question.stream or ask.wants_events:
        return Events(_piece_events(pieces))
    text, provenance = "", Provenance()
    async with closing(pieces):
        async for piece in pieces:
            text += piece["text"]
            provenance.add(piece)
    return json_body({"text": text, "experts": provenance.shares()})


async def _piece_events(pieces: AsyncIterator[dict[str, Any]]) -> AsyncGenerator[bytes]:
    provenance = Provenance()
    async with closing(pieces):
        async for piece in pieces:
            provenance.add(piece)
            yield event(piece, name="piece")
    yield event({"experts": provenance.shares()}, name="done")
