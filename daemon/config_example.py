"""The commented configuration that `moed init` writes: every key, what it means, what it may be, its default."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from .config_check import describe_field
from .config_sections import DEFAULT_PORT, LISTED_SECTIONS, LIVE_KEYS, PLAIN_SECTIONS, ExpertSection, LayerSection
from .errors import ConfigError

_EXAMPLE_EXPERT = ExpertSection(name="prose", domain="prose")
_EXAMPLES: Mapping[str, ExpertSection | LayerSection] = {
    "experts": _EXAMPLE_EXPERT,
    "layers": LayerSection(name="ffn.[0-3].[0-7]", width=32),
}
_HEADER = """\
# Configuration of one moed node. "# " starts an explanation; "#" at once before a key shows its default.
# moed refuses a key that it does not know, and names the nearest one. Keys marked "live" are taken over by a running
# daemon on `systemctl reload moed` or `moectl config reload`; the others at its next start.
"""


def write_default(
    path: Path,
    *,
    role: str = "follower",
    port: int = DEFAULT_PORT,
    domain: str | None = None,
    experts: Sequence[ExpertSection] = (),
    **values: Any,
) -> None:
    """Write the commented configuration to ``path``, which must not exist yet.

    ``values`` are other keys that differ from their defaults, by name where it is the only one of that name
    (``listen="127.0.0.1"``, ``torch_threads=2``). A miner without ``experts`` gets one that learns ``domain``, or
    English prose. Raises `ConfigError`.
    """
    if role == "miner" and not experts:
        domain = domain or _EXAMPLE_EXPERT.domain
        experts = (msgspec.convert({"name": domain, "domain": domain}, ExpertSection),)
    text = render_default({"role": role, "port": port, **values}, experts=experts)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise ConfigError(f"{path} exists already", "edit it, or choose another --home") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", "check the folder's owner and mode") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def render_default(values: Mapping[str, Any], *, experts: Sequence[ExpertSection] = ()) -> str:
    """The text of `write_default`; ``values`` None count as not given. Raises `ConfigError` for an unknown key."""
    known = [field for _, section in PLAIN_SECTIONS for field in section.__struct_fields__]
    for key in values:
        if known.count(key) != 1:
            raise ConfigError(f"there is no key {key}", f"keys are {', '.join(known)}")
    parts = [_HEADER]
    for name, section in PLAIN_SECTIONS:
        given = {key: values[key] for key in section.__struct_fields__ if values.get(key) is not None}
        parts.append("\n".join((f"[{name}]", f"# {section.__doc__}", *_lines(section, given, name))) + "\n")
    parts.extend(_entry_text("experts", expert, "") for expert in experts)
    for name, _ in LISTED_SECTIONS:
        if name != "experts" or not experts:
            parts.append(_entry_text(name, _EXAMPLES[name], "#"))
    return "\n".join(parts)


def _entry_text(name: str, entry: ExpertSection | LayerSection, prefix: str) -> str:
    """One of the sections of which there may be several."""
    kind = type(entry)
    given = {
        field: getattr(entry, field) for field, default in defaults_of(kind).items() if getattr(entry, field) != default
    }
    lines = (f"[[{name}]]", f"# {kind.__doc__}", *_lines(kind, given, name))
    return "\n".join(line if line.startswith("#") else prefix + line for line in lines) + "\n"


def _lines(section: type[msgspec.Struct], given: Mapping[str, Any], name: str) -> Iterator[str]:
    for field, default in defaults_of(section).items():
        description, allowed = describe_field(section, field)
        live = "; live" if f"{name}.{field}" in LIVE_KEYS else ""
        yield from textwrap.wrap(f"{description} ({allowed}{live})", 110, initial_indent="# ", subsequent_indent="#   ")
        if field in given:
            yield f"{field} = {toml_value(given[field])}"
        elif default is None or default is msgspec.NODEFAULT:
            yield f"#{field} ="
        else:
            yield f"#{field} = {toml_value(default)}"


def defaults_of(section: type[msgspec.Struct]) -> dict[str, Any]:
    """Every field of ``section`` with its default, or NODEFAULT."""
    found: dict[str, Any] = {}
    for entry in msgspec.structs.fields(section):
        has_factory = entry.default_factory is not msgspec.NODEFAULT
        found[entry.name] = entry.default_factory() if has_factory else entry.default
    return found


def toml_value(value: Any) -> str:
    """``value`` as TOML on one line: strings, numbers, booleans, lists and inline tables of them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which TOML wants escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        if not value:
            return "{}"
        return "{ " + ", ".join(f"{toml_value(str(k))} = {toml_value(v)}" for k, v in value.items()) + " }"
    return "[" + ", ".join(toml_value(entry) for entry in value) + "]"
