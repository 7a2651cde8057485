"""Where things lie: the files of a home, and the control socket for those who look for it.

Only the standard library is imported here, because `moectl` loads this before anything else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .errors import ConfigError

CONFIG_FILE = "config.toml"
KEY_FILE = "work.key"
GENESIS_FILE = "genesis.json"
DATABASE_FILE = "chain.db"
SOCKET_FILE = "moed.sock"

MAX_SOCKET_PATH_BYTES = 107  # sun_path of Linux's sockaddr_un holds 108 with the closing zero
SERVICE_SOCKET = Path("/run/moed/moed.sock")


def expand(path: str | Path) -> Path:
    """``path`` with ~ and ~user made the folder that they stand for. Raises `ConfigError` if nobody knows that."""
    if "\0" in str(path):
        raise ConfigError(f"{str(path)!r} holds a zero byte, which no path can", "write the path as it is")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"in the path {path}: there is no such user's home", "write the path in full") from error


def place_socket(home: Path, configured: str | None, environ: Mapping[str, str]) -> Path:
    """The control socket's path for a home; one that is too long for the kernel moves to the runtime folder.

    Daemon and `moectl` both call this, so they agree. Raises `ConfigError` where no short place exists.
    """
    wanted = home / (expand(configured) if configured else SOCKET_FILE)
    if len(os.fsencode(wanted)) <= MAX_SOCKET_PATH_BYTES:
        return wanted
    runtime = _runtime_folder(environ)
    if runtime is None:
        raise ConfigError(
            f"the socket path {wanted} is longer than {MAX_SOCKET_PATH_BYTES} bytes and XDG_RUNTIME_DIR is not set",
            "set a shorter socket under [node], or set XDG_RUNTIME_DIR",
        )
    from hashlib import blake2b  # most homes have short paths, and --help has none

    # The hash keeps the sockets of two homes apart that both moved here.
    return runtime / "moed" / f"{blake2b(os.fsencode(wanted), digest_size=8).hexdigest()}.sock"


def socket_of_home(home: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """The socket that the daemon of ``home`` uses, read leniently: only ``[node] socket`` matters here."""
    home = expand(home).absolute()
    return place_socket(home, _configured_socket(home / CONFIG_FILE), environ)


def _configured_socket(file: Path) -> str | None:
    try:
        text = file.read_text("utf-8")
        if not any("socket" in line and not line.lstrip().startswith("#") for line in text.splitlines()):
            return None  # most files leave it as it is, and the reader of TOML takes a while to load
        import tomllib

        node = tomllib.loads(text).get("node")
    except (OSError, ValueError, RecursionError):
        return None  # the daemon says what is wrong with its file; a client only looks for the socket
    configured = node.get("socket") if isinstance(node, dict) else None
    return configured if isinstance(configured, str) else None


def find_socket(home: Path | None, socket: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The socket that a command should dial: ``socket``, else ``home``'s, else `$MOED_SOCKET`, else the first
    default place where one lies: the service's, the session's, the home of this user.
    """
    if socket is not None:
        return socket
    if home is not None:
        return socket_of_home(home, environ)
    if environ.get("MOED_SOCKET"):
        return Path(environ["MOED_SOCKET"])
    places = default_sockets(environ)
    return next((place for place in places if place.exists()), places[0])


def default_sockets(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Where a daemon's socket lies if nobody said otherwise, in the order in which it is looked for."""
    places = [SERVICE_SOCKET]
    runtime = _runtime_folder(environ)
    if runtime is not None:
        places.append(runtime / "moed" / SOCKET_FILE)
    if environ.get("HOME"):
        places.append(socket_of_home(Path(environ["HOME"]) / ".moed", environ))
    return places


def _runtime_folder(environ: Mapping[str, str]) -> Path | None:
    """The folder of this user's sockets. Never /tmp: there anybody could sit on the name first."""
    if environ.get("XDG_RUNTIME_DIR"):
        return Path(environ["XDG_RUNTIME_DIR"])
    for folder in (Path(f"/run/user/{os.geteuid()}"), Path("/run")):
        if folder.is_dir() and folder.stat().st_uid == os.geteuid():
            return folder
    return None
