"""Log lines and events: as they are now, or as they come, for clients that resume where they were."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from fnmatch import translate

import msgspec

from moed.daemon.log_ring import LogRing
from moed.daemon.logs import LEVELS

from . import questions
from .api import Answer, Ask, ControlRefused, Events, Services, event, json_body

MAX_PATTERNS = 16


async def logs(services: Services, ask: Ask) -> Answer:
    """GET /v1/logs."""
    question: questions.LogsQuestion = ask.question
    ring, level = services.logs.ring, LEVELS[question.level]
    after = _start(ring, ask, level, _any_name)
    if question.follow or ask.wants_events:
        return Events(_follow(ring, after, level, _any_name, "log"), is_endless=True)
    batch = ring.read(after, level=level, limit=questions.MAX_LOG_LINES)
    lines = [msgspec.Raw(line.json) for line in batch.lines]
    return json_body({"lines": lines, "dropped": batch.dropped, "last": batch.last})


async def events(services: Services, ask: Ask) -> Answer:
    """GET /v1/events."""
    question: questions.EventsQuestion = ask.question
    ring, level = services.logs.events, LEVELS[question.level]
    is_wanted = _matcher(question.names)
    after = _start(ring, ask, level, is_wanted)
    if question.follow or ask.wants_events:
        return Events(_follow(ring, after, level, is_wanted, None), is_endless=True)
    batch = ring.read(after, level=level, limit=questions.MAX_LOG_LINES, is_wanted=is_wanted)
    found = [msgspec.Raw(line.json) for line in batch.lines]
    return json_body({"events": found, "dropped": batch.dropped, "last": batch.last})


def _any_name(_name: str) -> bool:
    return True


def _start(ring: LogRing, ask: Ask, level: int, is_wanted: Callable[[str], bool]) -> int:
    """The number to read after. One who lost its connection asks again for what it asked at first, ``tail`` too, and
    misses nothing: what it saw last goes before that.
    """
    question: questions.LogsQuestion | questions.EventsQuestion = ask.question
    if ask.last_event is not None:
        return ask.last_event
    if question.tail is None:
        return question.since
    return max(question.since, ring.before_last(question.tail, level=level, is_wanted=is_wanted))


def _matcher(names: str) -> Callable[[str], bool]:
    """Whether a name fits one of the patterns. Raises `ControlRefused` for too many: the whole ring is read with them
    on the event loop, while everybody else waits.
    """
    patterns = {pattern.strip() for pattern in names.split(",")}
    if len(patterns) > MAX_PATTERNS:
        raise ControlRefused(
            400, "bad_request", f"names takes up to {MAX_PATTERNS} patterns", "use fewer, or * and filter what comes"
        )
    fits = re.compile("|".join(map(translate, patterns))).match
    return lambda name: fits(name) is not None


async def _follow(
    ring: LogRing, after: int, level: int, is_wanted: Callable[[str], bool], name: str | None
) -> AsyncGenerator[bytes]:
    """Every line above ``after``, for ever, under ``name`` or its own. Who fell behind is told what it missed."""
    while True:
        batch = ring.read(after, level=level, is_wanted=is_wanted)
        if batch.dropped:
            yield event({"dropped": batch.dropped}, name="dropped")
        for line in batch.lines:
            yield event(line.json, name=name or line.name, number=line.sequence)
        after = batch.last
        await ring.wait_beyond(after)
