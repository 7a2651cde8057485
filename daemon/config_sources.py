"""Where each value of the configuration is from: its default, a line of the file, the environment, a flag."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from .config_check import describe_field, line_of
from .config_sections import LISTED_SECTIONS, LIVE_KEYS, PLAIN_SECTIONS
from .errors import ConfigError

ON_COMMAND_LINE = "on the command line"
SET_LIVE = "set while it runs"
PREFIX = "MOED_"


@dataclass(frozen=True, slots=True)
class Setting:
    """One key: its value now, where that is from, whether a running daemon takes a change over, and what it means."""

    key: str
    value: Any
    source: str
    is_live: bool
    description: str


def from_environment(environ: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    """Values that the environment sets: {"node.port": ("MOED_NODE_PORT", 4701)}.

    A variable is MOED_SECTION_KEY; its text is the value where the key takes text, else it is read as TOML. Raises
    `ConfigError` for one that begins with a section and names no key of it.
    """
    found: dict[str, tuple[str, Any]] = {}
    for name, text in sorted(environ.items()):
        for section, kind in PLAIN_SECTIONS:
            prefix = f"{PREFIX}{section.upper()}_"
            if not name.startswith(prefix):
                continue
            keys = {prefix + field.upper(): field for field in kind.__struct_fields__}
            if name not in keys:
                near = difflib.get_close_matches(name, keys, n=1, cutoff=0.5)
                remedy = f"did you mean {near[0]}?" if near else f"use one of {', '.join(keys)}"
                raise ConfigError(f"in the environment: unknown variable {name}", remedy)
            found[f"{section}.{keys[name]}"] = (name, _value(kind, keys[name], text))
    return found


def _value(kind: type[msgspec.Struct], field: str, text: str) -> Any:
    hint = next(entry.type for entry in msgspec.structs.fields(kind) if entry.name == field)
    try:
        msgspec.convert(text, hint, strict=True)
    except msgspec.ValidationError:
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            return text  # the check of its section says what is wrong with it
    return text


def settings_of(
    sections: Mapping[str, msgspec.Struct],
    lists: Mapping[str, Sequence[msgspec.Struct]],
    *,
    text: str,
    raw: Mapping[str, Any],
    environ: Mapping[str, str],
    overrides: Mapping[str, str],
) -> Iterator[Setting]:
    """Every key with its value and source. ``lists`` are the sections of which there may be several, ``raw`` is the
    file's tables, ``overrides`` the sources above them all."""
    outside = from_environment(environ)
    for name, kind in PLAIN_SECTIONS:
        table = raw.get(name, {})
        for field in kind.__struct_fields__:
            key = f"{name}.{field}"
            source = "default"
            if key in overrides:
                source = overrides[key]
            elif key in outside:
                source = f"environment {outside[key][0]}"
            elif field in table:
                source = f"config.toml, line {line_of(text, key)}"
            yield Setting(key, getattr(sections[name], field), source, key in LIVE_KEYS, describe_field(kind, field)[0])
    for name, kind in LISTED_SECTIONS:
        for index, (one, table) in enumerate(zip(lists[name], raw.get(name, ()), strict=False)):
            for field in kind.__struct_fields__:
                key = f"{name}[{index}].{field}"
                source = f"config.toml, line {line_of(text, key)}" if field in table else "default"
                yield Setting(key, getattr(one, field), source, False, describe_field(kind, field)[0])


def settings_answer(settings: Iterable[Setting]) -> dict[str, Any]:
    """Settings as `GET /v1/config` answers them."""
    return {
        "settings": [
            {
                "key": one.key,
                "value": one.value,
                "source": one.source,
                "is_live": one.is_live,
                "description": one.description,
            }
            for one in settings
        ]
    }
