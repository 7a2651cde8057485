"""The shapes of questions to the local API, with their bounds; `openapi` publishes them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MAX_COMPLETION_BYTES = 4096
MAX_CHAIN_ROWS = 200
MAX_LOG_LINES = 1000


class _Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what callers send: nothing unknown."""


class NoQuestion(_Question, frozen=True, kw_only=True):
    """No parameters."""


class CapacityQuestion(_Question, frozen=True, kw_only=True):
    """Whose hardware: of the nodes that ``owner`` has registered, or of all."""

    owner: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None


class RewardQuestion(_Question, frozen=True, kw_only=True):
    """Whose reward to take apart, and of which epoch; by default of the last one."""

    uid: Annotated[int, Meta(ge=0, lt=1 << 16)]
    epoch: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)] | None = None


class ChainQuestion(_Question, frozen=True, kw_only=True):
    """Which blocks to list: ``limit`` from height ``start`` on, or the newest ``limit``."""

    start: Annotated[int, Meta(ge=0)] | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_CHAIN_ROWS)] = 20


class LogsQuestion(_Question, frozen=True, kw_only=True):
    """Which log lines: those numbered above ``since``, or the last ``tail``, at least as severe as ``level``.

    With ``follow`` the answer is a stream of server-sent events that goes on with every new line.
    """

    follow: bool = False
    since: Annotated[int, Meta(ge=0)] = 0
    tail: Annotated[int, Meta(ge=0, le=MAX_LOG_LINES)] | None = None
    level: Literal["debug", "info", "warning", "error", "critical"] = "debug"


class EventsQuestion(_Question, frozen=True, kw_only=True):
    """Which events: those numbered above ``since``, or the last ``tail``, whose names match one of ``names``.

    ``names`` are patterns with commas between them: ``chain.*,node.ready``. With ``follow`` the answer is a stream of
    server-sent events, each with its number as id, so that a client goes on after the last one that it saw.
    """

    follow: bool = False
    since: Annotated[int, Meta(ge=0)] = 0
    tail: Annotated[int, Meta(ge=0, le=MAX_LOG_LINES)] | None = None
    names: Annotated[str, Meta(min_length=1, max_length=1024)] = "*"
    level: Literal["debug", "info", "warning", "error", "critical"] = "debug"


class SqlQuestion(_Question, frozen=True, kw_only=True):
    """One SELECT over the tables of the node; `daemon.sql_view.TABLES` has them, and so has ``moectl sql --tables``."""

    query: Annotated[str, Meta(min_length=1, max_length=8192)]


class SettingQuestion(_Question, frozen=True, kw_only=True):
    """A live key and its new value, until the next reload or start."""

    key: Annotated[str, Meta(min_length=1, max_length=128)]
    value: int | float | str | bool | None


class CompleteQuestion(_Question, frozen=True, kw_only=True):
    """A text to continue. ``temperature`` 0 takes the likeliest byte each time; ``seed`` makes a draw repeatable.

    With ``stream``, or ``Accept: text/event-stream``, pieces come as server-sent events.
    """

    prompt: Annotated[str, Meta(min_length=1, max_length=65536)]
    max_bytes: Annotated[int, Meta(ge=1, le=MAX_COMPLETION_BYTES)] = 128
    temperature: Annotated[float, Meta(ge=0, le=10)] = 0.0
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    stream: bool = False


class RouteQuestion(_Question, frozen=True, kw_only=True):
    """The text to look at; of a long one its end."""

    text: Annotated[str, Meta(min_length=2, max_length=65536)]


class TeachQuestion(_Question, frozen=True, kw_only=True):
    """Texts of an application, and how many steps each batch of their rows is learned for."""

    texts: Annotated[list[Annotated[str, Meta(max_length=65536)]], Meta(min_length=1, max_length=64)]
    steps: Annotated[int, Meta(ge=1, le=32)] = 4


class DhtGetQuestion(_Question, frozen=True, kw_only=True):
    """Which records: ``peer:NODE_ID``, ``topic:NAME``, or 40 hexadecimal digits of the key itself."""

    key: Annotated[str, Meta(min_length=1, max_length=80)]


class DhtLookupQuestion(_Question, frozen=True, kw_only=True):
    """Which id to find the nearest nodes of: 40 hexadecimal digits."""

    id: Annotated[str, Meta(min_length=40, max_length=40)]
