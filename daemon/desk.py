"""What an operator may ask of a running daemon besides its work: settings, SQL, resources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import trio
from prometheus_client import CollectorRegistry

from .config_sources import settings_answer
from .control.api import ControlRefused
from .errors import ConfigError
from .findings import judge_running
from .settings import Settings
from .sql_view import SqlRefused, run_sql

MAX_QUESTIONS = 2
"""SQL questions that run at the same time: each takes a thread, and perhaps a core, for up to its time limit."""


class OperatorDesk:
    """The operator's side of the control plane of one node."""

    def __init__(self, settings: Settings, database: Path, resources: Callable[[], dict[str, Any]]) -> None:
        self._settings = settings
        self._database = database
        self._resources = resources
        self._threads = trio.CapacityLimiter(MAX_QUESTIONS)

    def config(self) -> dict[str, Any]:
        """Every setting with its value and source."""
        return settings_answer(self._settings.show())

    def change(self, key: str, value: Any) -> dict[str, Any]:
        """Change a live key until the next reload or start. Raises `ControlRefused`."""
        try:
            self._settings.change(key, value)
        except ConfigError as error:
            raise ControlRefused(400, "bad_setting", error.message, error.remedy) from error
        return self.config()

    def reload(self) -> dict[str, Any]:
        """Read the file again. Raises `ControlRefused` and changes nothing if it is wrong."""
        try:
            done = self._settings.reload()
        except ConfigError as error:
            raise ControlRefused(409, "bad_config", error.message, error.remedy) from error
        return {"changed": list(done.changed), "waiting_for_restart": list(done.waiting)}

    def resources(self) -> dict[str, Any]:
        """What the daemon takes of its machine, beside its limits."""
        return self._resources()

    def judge(self, health: dict[str, Any], status: dict[str, Any], dropped: Mapping[str, int]) -> list[dict[str, str]]:
        """What is wrong with the running node, by what it and its peers say."""
        bootstraps = len(self._settings.config.node.bootstrap)
        found = judge_running(health, status, self._resources(), dropped, bootstraps)
        return [finding.plain() for finding in found]

    @property
    def questions(self) -> int:
        """SQL questions that threads are at now, also those for which nobody waits any more."""
        return self._threads.borrowed_tokens

    async def sql(self, query: str, registry: CollectorRegistry) -> dict[str, Any]:
        """Answer one SELECT. Raises `ControlRefused`. Who stops waiting leaves the thread to its own time limit."""
        try:
            return await trio.to_thread.run_sync(
                run_sql, self._database, registry, query, limiter=self._threads, abandon_on_cancel=True
            )
        except SqlRefused as error:
            remedy = "see `moectl sql --tables` for what there is"
            raise ControlRefused(400, "bad_sql", str(error), remedy) from error
