"""The configuration of a running daemon: what counts now and why, taken anew on a reload, changed key by key.

Only `LIVE_KEYS` change while it runs. A reload reads the file again: live keys are taken over, others are named as
waiting for the next start. A file that is wrong changes nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from .config import Config, load_config, parse, read_text
from .config_sections import LISTED_SECTIONS, LIVE_KEYS, PLAIN_SECTIONS
from .config_sources import ON_COMMAND_LINE, SET_LIVE, Setting, settings_of
from .errors import ConfigError
from .places import CONFIG_FILE

logger = structlog.get_logger()

_KEYS = frozenset(f"{name}.{field}" for name, kind in PLAIN_SECTIONS for field in kind.__struct_fields__)


@dataclass(frozen=True, slots=True)
class Reload:
    """What a reload did: keys that count from now on, and keys that wait for the next start."""

    changed: tuple[str, ...]
    waiting: tuple[str, ...]


class Settings:
    """Holds the `Config` that counts now; `on_change` is called with the new one whenever a live key has changed."""

    def __init__(
        self,
        config: Config,
        overrides: Mapping[str, Any] | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """``config`` was read with these ``overrides`` and this ``environ``."""
        self.config = config
        self.on_change: list[Callable[[Config], None]] = []
        self._flags = dict(overrides or {})
        self._set: dict[str, Any] = {}
        self._environ = environ
        self._at_start = self._as_latest = read_text(config.home / CONFIG_FILE)

    def reload(self) -> Reload:
        """Read the file again; what was set live gives way to it. Raises `ConfigError` and keeps what counts."""
        latest = read_text(self.config.home / CONFIG_FILE)
        fresh = load_config(self.config.home, self._flags, environ=self._environ, text=latest)
        changed, waiting = _differences(self.config, fresh)
        self._take(fresh, changed)
        self._as_latest, self._set = latest, {}
        logger.info("config.reloaded", changed=list(changed), waiting_for_restart=list(waiting))
        return Reload(changed, waiting)

    def change(self, key: str, value: Any) -> None:
        """Let ``key`` be ``value`` until the next reload or start. Raises `ConfigError`."""
        if key not in LIVE_KEYS and key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]}?" if near else "`moectl config show` lists them"
            raise ConfigError(f"unknown key {key}", remedy)
        if key not in LIVE_KEYS:
            raise ConfigError(
                f"{key} cannot change while the daemon runs", f"use one of {', '.join(sorted(LIVE_KEYS))}, or restart"
            )
        wanted = {**self._set, key: value}
        # Not the file as it is now: what stands there waits for a reload.
        fresh = load_config(self.config.home, self._flags, environ=self._environ, text=self._as_latest, set_live=wanted)
        self._take(fresh, (key,))
        self._set = wanted
        logger.info("config.changed", key=key, value=value)

    def show(self) -> list[Setting]:
        """Every key with the value that counts now and its source."""
        overrides = dict.fromkeys(self._flags, ON_COMMAND_LINE) | dict.fromkeys(self._set, SET_LIVE)
        # What waits for a start still stands as the file had it at the last one.
        at_start = explain(self.config, self._at_start, overrides, self._environ)
        latest = {one.key: one for one in explain(self.config, self._as_latest, overrides, self._environ)}
        return [latest[one.key] if one.is_live else one for one in at_start]

    def _take(self, fresh: Config, changed: tuple[str, ...]) -> None:
        """Let ``fresh``'s values of the ``changed`` keys count, which are live."""
        if not changed:
            return
        sections: dict[str, Any] = {}
        for key in changed:
            name, _, field = key.partition(".")
            now = sections.get(name, getattr(self.config, name))
            sections[name] = msgspec.structs.replace(now, **{field: getattr(getattr(fresh, name), field)})
        self.config = dataclasses.replace(self.config, **sections)
        for tell in self.on_change:
            tell(self.config)


def explain(
    config: Config, text: str, overrides: Mapping[str, str] | None = None, environ: Mapping[str, str] = os.environ
) -> list[Setting]:
    """The settings of ``config``, which was read from a file with this ``text``; ``overrides`` name other sources."""
    raw = parse(config.home / CONFIG_FILE, text)
    sections = {name: getattr(config, name) for name, _ in PLAIN_SECTIONS}
    lists = {name: getattr(config, name) for name, _ in LISTED_SECTIONS}
    return list(settings_of(sections, lists, text=text, raw=raw, environ=environ, overrides=overrides or {}))


def _differences(old: Config, new: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(live keys, other keys) whose values differ; all experts count as one key, and so do all layers."""
    keys = [
        f"{name}.{field}"
        for name, kind in PLAIN_SECTIONS
        for field in kind.__struct_fields__
        if getattr(getattr(old, name), field) != getattr(getattr(new, name), field)
    ]
    keys += [name for name, _ in LISTED_SECTIONS if getattr(old, name) != getattr(new, name)]
    return tuple(key for key in keys if key in LIVE_KEYS), tuple(key for key in keys if key not in LIVE_KEYS)
