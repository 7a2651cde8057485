"""From a parsed TOML file to checked sections, or to one line that an operator can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from .errors import ConfigError

SectionT = TypeVar("SectionT", bound=msgspec.Struct)

_PATH_IN_MESSAGE = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_MAX_VALUE_CHARS = 80


def split_address(text: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` as (host, port). Raises `ValueError` for anything else."""
    host, colon, port_text = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not host or any(c.isspace() or not c.isprintable() for c in host):
        raise ValueError(f"{text!r} is not host:port")
    if not (port_text.isascii() and port_text.isdigit() and 1 <= int(port_text[:6]) <= 65535):
        raise ValueError(f"{text!r} has no port from 1 to 65535")
    return host, int(port_text)


class Complaints:
    """One configuration file, and the words to complain about a place in it."""

    def __init__(self, path: Path, text: str, raw: dict[str, Any], overridden: Mapping[str, str]) -> None:
        """``overridden`` says of each key that does not stand in the file as it counts where its value is from."""
        self._path = path
        self._text = text
        self._raw = raw
        self._overridden = overridden

    def convert(self, kind: type[SectionT]) -> SectionT:
        """The raw tables as one ``kind``. Raises `ConfigError` for the first key that is unknown or wrong."""
        self._refuse_unknown(self._raw, kind, "")
        try:
            return msgspec.convert(self._raw, kind, strict=True)
        except msgspec.ValidationError as error:
            self._translate(str(error), kind)

    def about(self, key: str, section: type[msgspec.Struct], *, value: Any = None) -> ConfigError:
        """A wrong value at ``key`` (``node.port``), with what its field allows."""
        shown = self._shown(self._value_at(key) if value is None else value)
        allowed = allowed_values(section, key.rpartition(".")[2])
        return self.wrong(key, f"{_bare(key)} = {shown} is not possible", f"use {allowed}")

    def wrong(self, key: str, message: str, remedy: str) -> ConfigError:
        """Any other complaint about the place of ``key``."""
        return ConfigError(f"{self._where(key)}: {message}", remedy)

    def _refuse_unknown(self, table: Any, kind: type[msgspec.Struct], prefix: str) -> None:
        if not isinstance(table, dict):
            return  # a value where a section belongs: the conversion says so
        for key, value in table.items():
            if key not in kind.__struct_fields__:
                raise self._unknown(f"{prefix}{key}", key, kind)
            inner = section_of(kind, key)
            if inner is None:
                continue
            if isinstance(value, list):
                for index, entry in enumerate(value):
                    self._refuse_unknown(entry, inner, f"{prefix}{key}[{index}].")
            else:
                self._refuse_unknown(value, inner, f"{prefix}{key}.")

    def _unknown(self, place: str, key: str, kind: type[msgspec.Struct]) -> ConfigError:
        near = difflib.get_close_matches(key, kind.__struct_fields__, n=1, cutoff=0.5)
        section = _bare(place.rpartition(".")[0]) or "the file"
        remedy = f"did you mean {near[0]}?" if near else f"{section} takes {', '.join(kind.__struct_fields__)}"
        return self.wrong(place, f"unknown key {_bare(place)}", remedy)

    def _translate(self, message: str, kind: type[msgspec.Struct]) -> NoReturn:
        """Turn msgspec's words and path into the operator's."""
        match = _PATH_IN_MESSAGE.match(message)
        path = (match["path"] if match else None) or "$"
        key = path.removeprefix("$").removeprefix(".")
        missing = re.search(r"missing required field `(\w+)`", message)
        if missing:
            raise self.wrong(f"{key}.{missing[1]}", f"{_bare(key)} has no {missing[1]}", f"add: {missing[1]} = …")
        section: type[msgspec.Struct] = kind
        # A path may end inside a value (bootstrap[0], options[...]): its key is the deepest field on the way.
        parts = re.findall(r"([A-Za-z_]\w*)((?:\[[^\]]*\])*)", key)
        known = ""
        for name, indexes in parts:
            inner = section_of(section, name)
            known += f".{name}" if known else name
            if inner is None:
                raise self.about(known, section) from None
            section = inner
            known += indexes
        header = f"[[{known}]]" if _is_list(kind, known) else f"[{_bare(known)}]"
        raise self.wrong(known, f"{_bare(known)} is not a section", f"write {header} above its keys")

    def _value_at(self, key: str) -> Any:
        value: Any = self._raw
        for name, index in re.findall(r"([A-Za-z_]\w*)(?:\[(\d+)\])?", key):
            value = value.get(name) if isinstance(value, dict) else None
            if index and isinstance(value, list) and int(index) < len(value):
                value = value[int(index)]
        return value

    @staticmethod
    def _shown(value: Any) -> str:
        try:
            text = repr(value) if not isinstance(value, bool) else str(value).lower()
        except ValueError:  # Python writes no numbers of thousands of digits
            text = hex(value) if isinstance(value, int) else "a number of thousands of digits"
        return text if len(text) <= _MAX_VALUE_CHARS else f"{text[:_MAX_VALUE_CHARS]}…"

    def _where(self, key: str) -> str:
        if _bare(key) in self._overridden:
            return self._overridden[_bare(key)]
        line = line_of(self._text, key)
        return f"{self._path}, line {line}" if line else str(self._path)


def _bare(key: str) -> str:
    """``experts[1].name`` as people write it: experts.name."""
    return re.sub(r"\[[^\]]*\]", "", key)


def section_of(kind: type[msgspec.Struct], field: str) -> type[msgspec.Struct] | None:
    """The section record that ``field`` of ``kind`` holds, or holds a list of; None for a plain key."""
    hint = get_type_hints(kind)[field]
    inner = get_args(hint)[0] if get_origin(hint) is tuple else hint
    return inner if isinstance(inner, type) and issubclass(inner, msgspec.Struct) else None


def _is_list(kind: type[msgspec.Struct], field: str) -> bool:
    return get_origin(get_type_hints(kind).get(field)) is tuple


def describe_field(section: type[msgspec.Struct], field: str) -> tuple[str, str]:
    """(description, allowed) of a key, from the annotation of its field."""
    meta = get_args(get_type_hints(section, include_extras=True)[field])[-1]
    assert isinstance(meta, msgspec.Meta), f"{section.__name__}.{field} carries no description"
    return str(meta.description), str((meta.extra or {})["allowed"])


def allowed_values(section: type[msgspec.Struct], field: str) -> str:
    """What ``field`` allows, in words."""
    return describe_field(section, field)[1]


def line_of(text: str, key: str) -> int | None:
    """The line (from 1) on which ``key`` stands, or its section's, or None where the file does not name it."""
    section, _, name = key.rpartition(".")
    bare, _, index = section.partition("[")
    ordinal = int(index.rstrip("]")) if index else 0
    here, seen, header_line = "", -1, None
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[{1,2}\s*([\w.-]+)\s*\]{1,2}", line)
        if header:
            here = header[1]
            seen += here == bare
        in_section = here == bare and (not index or seen == ordinal)
        if in_section and header_line is None and header:
            header_line = number
        assigned = re.match(r"\s*([\w.-]+)\s*=", line)
        if assigned and ((in_section and assigned[1] == name) or (not here and assigned[1] == _bare(key))):
            return number
        if header and not section and here == name:
            return number
    return header_line
