"""Logs: structlog events to standard error for the journal or a person, and to a ring that followers read.

An event is named ``noun.verb`` and carries fields. Where it goes:

    structlog ── too often? left out ── secrets out, sizes bounded ──┬── events (`/v1/events`, whatever the level)
                                                                     └── at the level or above: ring (the last 4096,
                                                                         numbered) and standard error

On a terminal a line is coloured text; elsewhere it is JSON behind a syslog priority (``<6>``), which journald
takes off. ``format = "json"`` leaves the priority out unless standard error is the journal, so a file stays JSON.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TextIO

import structlog

from .log_limiter import LogLimiter
from .log_ring import LogRing

__all__ = ["LEVELS", "LogRing", "Logs", "bound_and_redact", "configure_logging"]

LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_SYSLOG_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # sd-daemon(3)

# A peer's words reach the log; they may fill neither the disk nor the ring.
MAX_VALUE_CHARS = 2048
MAX_TRACEBACK_CHARS = 16384
MAX_DEPTH = 4
MAX_ITEMS = 64

_SECRET_NAMES = ("secret", "seed", "private", "password", "passphrase", "token", "signing_key", "cookie")

Event = MutableMapping[str, Any]


# How one finished event, with its JSON, becomes a line.
_Write = Callable[[Event, bytes], str]


PUBLIC_BELOW_INFO = frozenset({"chain.block_final"})
"""Events that `/v1/events` carries although the log seldom does. From info on, all are carried."""
MAX_EVENTS = 2048


class Logs:
    """The daemon's log: its ring, the events beside it, and the level that can be changed while it runs."""

    def __init__(self, level: str) -> None:
        # Numbers go on rising over a restart: there are fewer than a million lines and a thousand events in a second.
        self.ring = LogRing(before_first=time.time_ns() // 1_000)
        self.events = LogRing(MAX_EVENTS, before_first=time.time_ns() // 1_000_000)
        self.limiter = LogLimiter()
        self._level = level

    @property
    def level(self) -> str:
        """The least severe level that is kept."""
        return self._level

    def set_level(self, level: str) -> None:
        """Keep ``level`` and above from now on. Raises `KeyError` for a name that is no level."""
        LEVELS[level]
        self._level = level

    def is_kept(self, level: str) -> bool:
        """Whether the log keeps events of ``level``."""
        return LEVELS.get(level, logging.ERROR) >= LEVELS[self._level]

    def screen(self, _logger: object, method: str, event: Event) -> Event:
        """The first processor: what nobody gets costs nothing more, and what comes too often is left out."""
        is_public = LEVELS.get(method, logging.ERROR) >= logging.INFO or event.get("event") in PUBLIC_BELOW_INFO
        if not is_public and not self.is_kept(method):
            raise structlog.DropEvent
        # What an operator turned debug on for comes in full.
        if LEVELS.get(method, logging.ERROR) >= logging.INFO:
            left_out = self.limiter.admit(event)
            if left_out is None:
                raise structlog.DropEvent
            if left_out:
                event["left_out"] = left_out
        return event


def configure_logging(
    level: str = "info", form: str = "auto", *, stream: TextIO | None = None, environ: Mapping[str, str] = os.environ
) -> Logs:
    """Make every structlog logger of this process, and the libraries' loggers, write here; returns the handle.

    ``form`` is auto, json or console. Calling it again replaces what was configured before.
    """
    stream = sys.stderr if stream is None else stream
    logs = Logs(level)
    structlog.configure(
        processors=[
            logs.screen,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            bound_and_redact,
            _Fork(logs, _line_writer(form, stream, environ)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=lambda *_: _StreamLogger(stream),
        # The level and the stream can change, and tests capture events.
        cache_logger_on_first_use=False,
    )
    _take_over_library_loggers()
    return logs


def bound_and_redact(_logger: object, _method: str, event: Event) -> Event:
    """Make every value JSON of bounded size, and put ``[secret]`` where a name says that it is one."""
    return {name: _bounded(name, value, MAX_DEPTH) for name, value in event.items()}


def _bounded(name: str, value: Any, depth: int) -> Any:
    if any(word in name.lower() for word in _SECRET_NAMES) and value is not None:
        return "[secret]"
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else hex(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _cut(bytes(value[: MAX_VALUE_CHARS // 2]).hex(), MAX_VALUE_CHARS)
    if depth and isinstance(value, Mapping):
        items = list(value.items())[:MAX_ITEMS]
        return {_cut(str(key), MAX_VALUE_CHARS): _bounded(str(key), inner, depth - 1) for key, inner in items}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_bounded("", inner, depth - 1) for inner in list(value)[:MAX_ITEMS]]
    limit = MAX_TRACEBACK_CHARS if name == "exception" else MAX_VALUE_CHARS
    return _cut(value if isinstance(value, str) else _described(value), limit)


def _described(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # a broken __str__ must not turn a log line into a crash
        return f"<{type(value).__name__} without words: {type(error).__name__}>"


def _cut(text: str, limit: int) -> str:
    # Surrogates (a file name that is not UTF-8) are no JSON; the end of a traceback says more than its start.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= limit else f"…{text[-limit:]}" if "\n" in text else f"{text[:limit]}…"


class _Fork:
    """The last processor: number the event where it goes, and hand the stream its line."""

    def __init__(self, logs: Logs, write: _Write) -> None:
        self._logs = logs
        self._write = write

    def __call__(self, _logger: object, method: str, event: Event) -> str:
        level = LEVELS.get(method, logging.ERROR)
        if level >= logging.INFO or event.get("event") in PUBLIC_BELOW_INFO:
            self._logs.events.append(level, event)
        if not self._logs.is_kept(method):
            raise structlog.DropEvent
        line = self._logs.ring.append(level, event)
        return self._write(event, line)


def _line_writer(form: str, stream: TextIO, environ: Mapping[str, str]) -> _Write:
    is_terminal = stream.isatty()
    if form == "console" or (form == "auto" and is_terminal):
        return _console_writer(colors=is_terminal)
    if form == "auto" or _is_journal(stream, environ):
        return lambda event, line: f"<{_SYSLOG_PRIORITIES.get(str(event.get('level')), 3)}>{line.decode()}"
    return lambda _event, line: line.decode()


def _console_writer(*, colors: bool) -> _Write:
    render = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)

    def write(event: Event, _line: bytes) -> str:
        # What peers said must not move the operator's cursor: escapes are shown, never sent.
        shown = {name: value if name == "exception" else _printable(value) for name, value in event.items()}
        return str(render(None, "", shown))

    return write


def _printable(value: Any) -> Any:
    return value.encode("unicode_escape").decode() if isinstance(value, str) and not value.isprintable() else value


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether ``stream`` is the journal's socket: systemd puts its device and inode into $JOURNAL_STREAM."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class _StreamLogger:
    """Writes finished lines; a closed or full standard error never stops the daemon."""

    _lock = threading.Lock()  # lines come from worker threads too

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def _write(self, line: str) -> None:
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                pass  # nobody is left to tell; the ring has the line

    debug = info = warning = error = critical = msg = _write


class _LibraryHandler(logging.Handler):
    """Hands what libraries log by the standard way to structlog, under one event name."""

    def emit(self, record: logging.LogRecord) -> None:
        level = {v: k for k, v in LEVELS.items()}.get(record.levelno, "warning")
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        log = getattr(structlog.get_logger(), level)
        log("library.logged", library=record.name, message=message, exc_info=record.exc_info or None)


def _take_over_library_loggers() -> None:
    root = logging.getLogger()
    if not any(isinstance(handler, _LibraryHandler) for handler in root.handlers):
        root.addHandler(_LibraryHandler(level=logging.WARNING))
