"""What is wrong with a node and what to do about it: findings with a stable code, for `doctor` of either command.

`check_home` looks at a home whether its daemon runs or not; `judge_running` at what a running daemon says of itself.
docs/faults.md lists the codes.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .config import Config, load_config
from .errors import NodeError, StoreCorrupt
from .home import Home
from .limits_watch import LEAST_FREE_BYTES, MIB

LEAST_FILES = 128
"""Descriptors without which a node cannot start: sockets, the chain's files, and some sessions."""
MANY_STALE_DATAGRAMS = 5
CLOCK_WARN_SHARE = 0.5
"""Of the drift that blocks may have: more, and a little worse network makes it too much."""
CLOCK_REMEDY = "set the clock: timedatectl set-ntp true"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. An ``error`` keeps the node from its work, a ``warning`` does not yet."""

    code: str
    severity: Literal["error", "warning"]
    cause: str
    remedy: str

    def plain(self) -> dict[str, str]:
        """As JSON has it."""
        return {"code": self.code, "severity": self.severity, "cause": self.cause, "remedy": self.remedy}


def of_error(error: NodeError) -> Finding:
    """The finding that a refusal to start is."""
    return Finding(error.code, "error", error.message, error.remedy)


def check_home(folder: Path, *, is_running: bool) -> Iterator[Finding]:
    """Everything that would keep the daemon of a home from starting, or soon stop it; nothing is changed.

    While the daemon ``is_running`` it holds its port and its socket, so these are not tried.
    """
    try:
        config = load_config(folder)
    except NodeError as error:
        yield of_error(error)
        return
    home = Home(config.home)
    yield from _check_key(home)
    yield from _check_chain(home)
    yield from _check_disk(home)
    yield from check_files()
    if not is_running:
        yield from _check_port(config)
        yield from _check_socket(config)


def _check_key(home: Home) -> Iterator[Finding]:
    from .keystore import load_identity

    try:
        load_identity(home.key)
    except NodeError as error:
        yield of_error(error)


def _check_chain(home: Home) -> Iterator[Finding]:
    """Genesis and database, which is only read: a daemon may be writing it."""
    damaged = "restore it from a backup, or sync a new home"
    is_writable = os.access(home.folder, os.W_OK) and not _is_read_only(home.folder)
    try:
        genesis = home.load_genesis()
        if not home.database.exists():
            return
        # Where nothing can be written a file can only be read as one that nobody writes. One whose last blocks are in
        # its write-ahead log would look damaged so: it is read with the log, which lies beside it.
        has_log = home.database.with_name(f"{home.database.name}-wal").exists()
        mode = "mode=ro" if is_writable or has_log else "immutable=1"
        with closing(sqlite3.connect(f"{home.database.absolute().as_uri()}?{mode}", uri=True)) as db:
            problems = [str(row[0]) for row in db.execute("PRAGMA quick_check(1)")]
            stored = db.execute("SELECT value FROM meta WHERE name = 'network_id'").fetchone()
        if problems != ["ok"]:
            raise StoreCorrupt(f"{home.database} is damaged ({problems[0]})", damaged)
        if stored is None or bytes(stored[0]) != genesis.network_id:
            raise StoreCorrupt(
                f"{home.database} belongs to another network than {home.genesis}",
                "use the genesis file that this home was made with, or a new home",
            )
    except NodeError as error:
        yield of_error(error)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and not is_writable:
            return  # it cannot be opened here, which says nothing of what is in it; `_check_disk` names the folder
        yield of_error(StoreCorrupt(f"{home.database} is damaged ({error})", damaged))


def _is_read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _check_disk(home: Home) -> Iterator[Finding]:
    free = shutil.disk_usage(home.folder).free
    if free < LEAST_FREE_BYTES:
        yield Finding(
            "limit_reached", "error", f"the disk of {home.folder} has {free // MIB} MiB left", "free some space"
        )
    if not os.access(home.folder, os.W_OK) or _is_read_only(home.folder):
        remedy = "mount it writable, or give the folder to the daemon's user"
        yield Finding("store_failed", "error", f"{home.folder} cannot be written", remedy)


def check_files() -> Iterator[Finding]:
    """Whether this process may open enough files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < LEAST_FILES:
        yield Finding(
            "too_few_files", "error", f"only {hard} files may be open", f"raise the limit: ulimit -n {LEAST_FILES * 8}"
        )


def _check_port(config: Config) -> Iterator[Finding]:
    family = socket.AF_INET6 if ":" in config.node.listen else socket.AF_INET
    for kind, name in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")):
        with socket.socket(family, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((config.node.listen, config.node.port))
            except OSError as error:
                cause = f"{name} port {config.node.port} of {config.node.listen} cannot be taken: {error.strerror}"
                yield Finding("port_taken", "error", cause, "set another port under [node], or stop its owner")


def _check_socket(config: Config) -> Iterator[Finding]:
    folder = config.socket_path.parent
    place = folder if folder.exists() else folder.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        yield Finding("no_socket", "error", f"the control socket cannot be made in {folder}", "make that folder")


def _judge_clock(health: Mapping[str, Any]) -> Iterator[Finding]:
    """A clock further off than blocks may be dated ahead: of who signs, blocks or votes are lost by it."""
    ahead_s, limit_s = health["clocks_ahead_s"], health["max_clock_drift_s"]
    if ahead_s is None or abs(ahead_s) <= limit_s * CLOCK_WARN_SHARE:
        return
    side = "behind" if ahead_s > 0 else "ahead of"
    cause = (
        f"this clock is {abs(ahead_s):.1f} s {side} the middle one of {health['clocks']} contacts, and a block may be "
        f"dated {limit_s:g} s ahead of a validator's clock"
    )
    is_error = health["signs_blocks"] and abs(ahead_s) > limit_s
    yield Finding("clock_off", "error" if is_error else "warning", cause, CLOCK_REMEDY)


def judge_running(
    health: Mapping[str, Any],
    status: Mapping[str, Any],
    resources: Mapping[str, Any],
    dropped: Mapping[str, int],
    bootstraps: int,
) -> Iterator[Finding]:
    """What a running node says of itself, judged; ``dropped`` are datagrams by reason."""
    stale = dropped.get("expired", 0)
    if health["contacts"] == 0 and stale >= MANY_STALE_DATAGRAMS:
        cause = f"{stale} datagrams of others were too old or too new, so this clock is off, or theirs"
        yield Finding("clock_off", "error", cause, CLOCK_REMEDY)
    elif health["contacts"] == 0 and bootstraps:
        cause = f"none of {bootstraps} bootstraps answers, and no peer that was remembered"
        remedy = "check the route, the addresses under [node] bootstrap, the genesis and the clock"
        yield Finding("no_bootstrap", "error", cause, remedy)
    yield from _judge_clock(health)
    for name in ("udp", "tcp"):
        if health[name] is False:
            port = " and ".join(health["advertised"]) or "its port"
            yield Finding(
                f"unreachable_{name}", "error", f"peers cannot dial {port} over {name.upper()}", "open the port"
            )
    behind = status["best_known_height"] - status["height"]
    if behind > 0:
        yield Finding("behind", "warning", f"{behind} blocks of the network are not here yet", "wait, or see the log")
    if resources["disk"]["free_bytes"] < 4 * LEAST_FREE_BYTES:
        cause = f"the disk has {resources['disk']['free_bytes'] // MIB} MiB left"
        yield Finding("disk_nearly_full", "warning", cause, "free some space")
    files = resources["files"]
    if files["used"] > 0.8 * files["limit"]:
        yield Finding(
            "files_nearly_gone", "warning", f"{files['used']} of {files['limit']} files are open", "raise ulimit -n"
        )
