"""The configuration: DIR/config.toml, the environment and flags, read together into one frozen `Config`.

`config_sections` lists the keys, `config_check` refuses what is not one, `config_example` writes a new file,
`config_sources` says where each value is from.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from .config_check import Complaints, split_address
from .config_example import write_default
from .config_sections import (
    DEFAULT_PORT,
    ChainSection,
    ComputeSection,
    ExpertSection,
    GradientsSection,
    LayerSection,
    LimitsSection,
    LogSection,
    NodeSection,
    Sections,
    ValidatorSection,
)
from .config_sources import ON_COMMAND_LINE, SET_LIVE, from_environment
from .errors import ConfigError
from .places import CONFIG_FILE, DATABASE_FILE, GENESIS_FILE, KEY_FILE, expand, place_socket

__all__ = [
    "DEFAULT_PORT",
    "ChainSection",
    "ComputeSection",
    "Config",
    "ExpertSection",
    "LimitsSection",
    "LogSection",
    "NodeSection",
    "ValidatorSection",
    "load_config",
    "write_default",
]


MAX_LAYERS = 4096


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that a start of the daemon depends on; paths are absolute, ``home`` is where the rest lies."""

    home: Path
    socket_path: Path
    node: NodeSection
    chain: ChainSection
    log: LogSection
    compute: ComputeSection
    limits: LimitsSection
    experts: tuple[ExpertSection, ...]
    layers: tuple[LayerSection, ...]
    gradients: GradientsSection
    validator: ValidatorSection

    @property
    def key_path(self) -> Path:
        """The work key, mode 0600."""
        return self.home / KEY_FILE

    @property
    def genesis_path(self) -> Path:
        """The genesis of the network that this node belongs to."""
        return self.home / GENESIS_FILE

    @property
    def database_path(self) -> Path:
        """The chain database."""
        return self.home / DATABASE_FILE

    @property
    def bootstrap(self) -> tuple[tuple[str, int], ...]:
        """The nodes to join first as (host, port)."""
        return tuple(split_address(address) for address in self.node.bootstrap)

    def text_files(self, files: tuple[str, ...]) -> tuple[Path, ...]:
        """Paths of the configuration made absolute: those that are relative lie in the home."""
        return tuple(self.home / expand(name) for name in files)


def load_config(
    home: Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    text: str | None = None,
    set_live: Mapping[str, Any] | None = None,
) -> Config:
    """Read ``home``/config.toml; above it stand ``environ`` (``MOED_NODE_PORT=4701``), and above that ``overrides``
    (``{"node.port": 4701}``), as flags do, and on top ``set_live``. The file is not read where its ``text`` is given.

    Raises `ConfigError` with one line that names file, line, key, value, what is allowed, and the remedy.
    """
    home = expand(home).absolute()
    path = home / CONFIG_FILE
    text = read_text(path) if text is None else text
    raw = parse(path, text)
    set_outside = from_environment(environ)
    places = {key: f"in the environment, {name}" for key, (name, _) in set_outside.items()}
    places |= dict.fromkeys(overrides or (), ON_COMMAND_LINE) | dict.fromkeys(set_live or (), SET_LIVE)
    values = {key: value for key, (_, value) in set_outside.items()} | {**(overrides or {}), **(set_live or {})}
    complaints = Complaints(path, text, raw, places)
    for key, value in values.items():
        _override(raw, key, value)
    sections = complaints.convert(Sections)
    _check_sections(sections, complaints)
    return Config(
        home=home,
        socket_path=place_socket(home, sections.node.socket, environ),
        **{name: getattr(sections, name) for name in Sections.__struct_fields__},
    )


def parse(path: Path, text: str) -> dict[str, Any]:
    """The tables in a configuration file. Raises `ConfigError` for what is no TOML."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and brackets in brackets
        raise ConfigError(f"{path} is no TOML: {error}", "correct that place and start again") from error


def read_text(path: Path) -> str:
    """The text of a configuration file. Raises `ConfigError`."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}", f"make one with: moed init --home {path.parent}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "check its owner and mode") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason}", "save it as UTF-8") from error


def _override(raw: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    table = raw.setdefault(section, {})
    if isinstance(table, dict):  # a section that is no table is refused by the check that follows
        table[name] = value


def layer_names(pattern: str) -> list[str]:
    """The names that ``"ffn.[0-3].[0-7]"`` stands for, at most `MAX_LAYERS` of them; a plain name stands for itself."""
    names = [""]
    for part in re.split(r"(\[\d+-\d+\])", pattern):
        numbers = re.fullmatch(r"\[(\d+)-(\d+)\]", part)
        choices: Iterable[object] = range(int(numbers[1]), int(numbers[2]) + 1) if numbers else [part]
        names = list(islice((f"{name}{choice}" for name in names for choice in choices), MAX_LAYERS))
    return names


def _check_sections(sections: Sections, complaints: Complaints) -> None:
    """What one key's type cannot say. Raises `ConfigError`."""
    try:
        ipaddress.ip_address(sections.node.listen)
    except ValueError:
        raise complaints.about("node.listen", NodeSection) from None
    for address in sections.node.bootstrap:
        try:
            split_address(address)
        except ValueError:
            raise complaints.about("node.bootstrap", NodeSection, value=address) from None
    names: set[str] = set()
    for index, expert in enumerate(sections.experts):
        if (expert.domain is None) == (not expert.files):
            raise complaints.wrong(
                f"experts[{index}].domain",
                f"the expert {expert.name!r} needs a domain or files, and not both",
                'set domain = "prose" or files = ["my.txt"]',
            )
        if expert.name in names:
            raise complaints.wrong(
                f"experts[{index}].name", f"two experts are called {expert.name!r}", "give each its own name"
            )
        names.add(expert.name)
    for index, layer in enumerate(sections.layers):
        for name in layer_names(layer.name):
            if name in names:
                raise complaints.wrong(f"layers[{index}].name", f"two are called {name!r}", "give each its own name")
            names.add(name)
    if sections.node.role == "miner" and not names:
        raise complaints.wrong("node.role", "a miner needs an expert to serve", "add a section [[experts]]")
