"""Where commands look for a socket."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moed.daemon import places
from moed.daemon.errors import ConfigError


def test_the_nearer_word_wins(tmp_path: Path) -> None:
    """--socket before --home before $MOED_SOCKET before the default places."""
    environ = {"MOED_SOCKET": "/env.sock", "HOME": str(tmp_path)}
    assert places.find_socket(tmp_path, Path("/flag.sock"), environ) == Path("/flag.sock")
    assert places.find_socket(tmp_path, None, environ) == tmp_path / "moed.sock"
    assert places.find_socket(None, None, environ) == Path("/env.sock")


def test_the_first_default_place_with_a_socket_is_taken(tmp_path: Path) -> None:
    """Service, then session, then home; the service's if there is none."""
    environ = {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "HOME": str(tmp_path / "home")}
    service, session, home = places.default_sockets(environ)
    assert (service, session) == (places.SERVICE_SOCKET, tmp_path / "run/moed/moed.sock")
    assert home == tmp_path / "home/.moed/moed.sock"
    if service.exists():
        pytest.skip(f"a daemon runs on this machine: {service}")
    assert places.find_socket(None, None, environ) == service
    home.parent.mkdir(parents=True)
    home.touch()
    assert places.find_socket(None, None, environ) == home
    session.parent.mkdir(parents=True)
    session.touch()
    assert places.find_socket(None, None, environ) == session


def test_a_configured_socket_is_found_by_home(tmp_path: Path) -> None:
    """The home's own configuration says where, even when the rest of it is wrong."""
    (tmp_path / "config.toml").write_text('[node]\nport = "broken"\nsocket = "other.sock"\n')
    assert places.socket_of_home(tmp_path) == tmp_path / "other.sock"
    (tmp_path / "config.toml").write_text("[node\n")
    assert places.socket_of_home(tmp_path) == tmp_path / "moed.sock"


def test_a_long_path_needs_a_runtime_folder_of_ones_own(tmp_path: Path) -> None:
    """Without one the remedy says what to set, unless this user has a system folder for it."""
    long = tmp_path / ("x" * 110)
    moved = places.place_socket(long, None, {"XDG_RUNTIME_DIR": "/run/me"})
    assert moved.parent == Path("/run/me/moed")
    has_own = any(
        folder.is_dir() and folder.stat().st_uid == os.geteuid()
        for folder in (Path(f"/run/user/{os.geteuid()}"), Path("/run"))
    )
    if has_own:
        assert places.place_socket(long, None, {}).parts[:2] == ("/", "run")
    else:
        with pytest.raises(ConfigError, match="XDG_RUNTIME_DIR is not set"):
            places.place_socket(long, None, {})
