"""One file for a bug report, made of what the daemon says of itself, with addresses and users' names taken out.

Only the local API is asked, so neither the key nor the models nor any text that was completed can be in it.
"""

from __future__ import annotations

import getpass
import io
import json
import os
import platform
import re
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from moed import __version__

from .client import Client
from .errors import ConfigError, DaemonRefused

LOG_LINES = 1000
LEFT_OUT = "left out: keys, models, texts; addresses are numbered (host-1, …), the user's name is USER"

_IPV4 = r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])"
_IPV6 = r"(?<![\w:])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![\w:])"
_NAME = r"(?<![\w.-])(?:[a-z0-9-]+\.)+[a-z]{2,}(?=:\d{1,5}\b)"
_IPV4_IN_IPV6 = r"(?<![\w:])(?:[0-9a-fA-F]{0,4}:){2,6}(?:\d{1,3}\.){3}\d{1,3}(?![\d.])"
_ADDRESS = f"{_IPV4_IN_IPV6}|{_IPV4}|{_IPV6}|{_NAME}"
_HOME = re.compile(r"(?<=/home/)[^/\"\s:]+")
_NOBODYS = frozenset({"127.0.0.1", "0.0.0.0", "::", "::1", "localhost"})  # noqa: S104 - compared


class Redaction:
    """Replaces every address by a number that stays the same in one report, and users' names in paths by USER."""

    def __init__(self, user: str, hosts: Iterable[str] = ()) -> None:
        """``hosts`` are names that the configuration gives, which may look like any other word."""
        self._hosts: dict[str, str] = {}
        # With a port behind it or as a whole value only, for a host may be called "node" or "log".
        known = "|".join(re.escape(host) for host in sorted(hosts, key=len, reverse=True))
        named = rf'|(?<![\w.-])(?:{known})(?=:\d{{1,5}}\b|")' if known else ""
        self._address = re.compile(_ADDRESS + named, re.IGNORECASE)
        self._user = re.compile(rf"(?<=/)({re.escape(user)})(?=/|\"|$)") if user not in ("", "root") else None

    def apply(self, text: str) -> str:
        """``text`` without what could name a person or a place."""
        hidden = _HOME.sub("USER", self._address.sub(self._number, text))
        return hidden if self._user is None else self._user.sub("USER", hidden)

    def _number(self, found: re.Match[str]) -> str:
        address = found[0].lower()
        # Times and versions look like addresses: 12:30:05 has only digits in pairs, ::1 and 127.0.0.1 name nobody.
        if address in _NOBODYS or re.fullmatch(r"\d{1,2}:\d{2}:\d{2}", address):
            return address
        return self._hosts.setdefault(address, f"host-{len(self._hosts) + 1}")


def make_report(client: Client, file: Path | None) -> dict[str, Any]:
    """Ask the daemon and write the bundle: {file, contents, left_out}. Raises `ConfigError` if it cannot be written."""
    redaction = Redaction(_user(), own_hosts(_or_refusal(lambda: client.get("/v1/config"))))
    path = file or Path(time.strftime("moed-bugreport-%Y%m%d-%H%M%S.tar.gz"))
    # All of it before the file is made: a daemon that goes away leaves no half of one.
    parts = [(name, what, redaction.apply(text).encode()) for name, what, text in _parts(client)]
    try:
        _write(path, parts)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", "name another file with --file") from error
    contents = [{"name": name, "bytes": len(data), "what": what} for name, what, data in parts]
    return {"file": str(path), "contents": contents, "left_out": LEFT_OUT}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name
        return ""


def own_hosts(config: Any) -> set[str]:
    """The hosts that an answer to /v1/config names: this node's own, and those that it joins first."""
    found = {one["key"]: one["value"] for one in config.get("settings", ())}
    hosts = {address.rpartition(":")[0].strip("[]") for address in found.get("node.bootstrap") or ()}
    return (hosts | {found.get("node.advertise") or ""}) - {""}


def _write(path: Path, parts: Iterable[tuple[str, str, bytes]]) -> None:
    """The bundle at ``path``, where nothing may be yet; for its owner's eyes alone, as the daemon's answers were."""
    made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(made, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as bundle:
            for name, _, data in parts:
                entry = tarfile.TarInfo(f"moed-bugreport/{name}")
                entry.size, entry.mtime = len(data), int(time.time())
                bundle.addfile(entry, io.BytesIO(data))
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _parts(client: Client) -> Iterator[tuple[str, str, str]]:
    """(name, what it is, text) of each part; what the daemon refuses is in it as that refusal."""
    asked: tuple[tuple[str, str, Callable[[], Any]], ...] = (
        ("status.json", "who the node is and where its chain stands", lambda: client.get("/v1/status")),
        ("resources.json", "memory, disk, files, traffic", lambda: client.get("/v1/resources")),
        ("config.json", "settings and their sources", lambda: client.get("/v1/config")),
        ("peers.json", "sessions", lambda: client.get("/v1/peers")),
        ("chain.json", "the newest blocks", lambda: client.get("/v1/chain")),
        ("experts.json", "experts that the network offers", lambda: client.get("/v1/experts")),
    )
    for name, what, ask in asked:
        yield name, what, json.dumps(_or_refusal(ask), indent=2, ensure_ascii=False) + "\n"
    for name, what, path, field in (
        ("log.jsonl", "the last log lines", "/v1/logs", "lines"),
        ("events.jsonl", "the last events", "/v1/events", "events"),
    ):
        lines = client.get(path, {"tail": LOG_LINES})[field]
        yield name, what, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    yield "metrics.txt", "metrics", client.get_text("/v1/metrics")
    yield "versions.txt", "this machine's Python and its packages", _versions()


def _or_refusal(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except DaemonRefused as refusal:
        return {"refused": refusal.code, "message": refusal.message}


def _versions() -> str:
    packages = sorted({f"{one.metadata['Name']}=={one.version}" for one in distributions()}, key=str.lower)
    head = (f"moed {__version__}", f"Python {sys.version}", platform.platform())
    return "\n".join((*head, *packages)) + "\n"
