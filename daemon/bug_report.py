"""One file for a bug report, made of what the daemon says of itself, with addresses and users' names taken out.

Only the local API is asked, so neither the key nor the models nor any text that was completed can be in it.
"""

from __future__ import annotations

import getpass
import io
import json
import platform
import re
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
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
_ADDRESS = re.compile(f"{_IPV4}|{_IPV6}|{_NAME}")


class Redaction:
    """Replaces every address by a number that stays the same in one report, and this user's name by USER."""

    def __init__(self, user: str) -> None:
        self._hosts: dict[str, str] = {}
        self._user = re.compile(rf"(?<=/)({re.escape(user)})(?=/|\"|$)") if user not in ("", "root") else None

    def apply(self, text: str) -> str:
        """``text`` without what could name a person or a place."""
        hidden = _ADDRESS.sub(self._number, text)
        return hidden if self._user is None else self._user.sub("USER", hidden)

    def _number(self, found: re.Match[str]) -> str:
        address = found[0]
        # Times and versions look like addresses: 12:30:05 has only digits in pairs, ::1 and 127.0.0.1 name nobody.
        if address in ("127.0.0.1", "0.0.0.0", "::", "::1") or re.fullmatch(r"\d{1,2}:\d{2}:\d{2}", address):  # noqa: S104 - compared
            return address
        return self._hosts.setdefault(address, f"host-{len(self._hosts) + 1}")


def make_report(client: Client, file: Path | None) -> dict[str, Any]:
    """Ask the daemon and write the bundle: {file, contents, left_out}. Raises `ConfigError` if it cannot be written."""
    redaction = Redaction(getpass.getuser())
    path = file or Path(time.strftime("moed-bugreport-%Y%m%d-%H%M%S.tar.gz"))
    contents = []
    try:
        with tarfile.open(path, "x:gz") as bundle:
            for name, what, text in _parts(client):
                data = redaction.apply(text).encode()
                entry = tarfile.TarInfo(f"moed-bugreport/{name}")
                entry.size, entry.mtime = len(data), int(time.time())
                bundle.addfile(entry, io.BytesIO(data))
                contents.append({"name": name, "bytes": len(data), "what": what})
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", "name another file with --file") from error
    return {"file": str(path), "contents": contents, "left_out": LEFT_OUT}


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
        yield name, what, json.dumps(_or_refusal(ask), indent=2) + "\n"
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
