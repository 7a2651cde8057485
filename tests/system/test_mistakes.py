"""What an operator gets wrong gives one line that names the thing and the remedy, and the documented exit code."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from moed.daemon.errors import ConfigError
from moed.daemon.home import Home, initialise
from moed.daemon.ports import free_ports
from moed.daemon.store import Store
from support.daemons import make_network, run_moed

NOBODY = 65534


def break_value(home: Home) -> None:
    home.config.write_text(home.config.read_text().replace("port = ", "port = 99", 1))


def break_key_name(home: Home) -> None:
    home.config.write_text(home.config.read_text().replace("[node]", "[node]\nbootstraps = []", 1))


def break_syntax(home: Home) -> None:
    home.config.write_text("[node\n")


def remove_key(home: Home) -> None:
    home.key.unlink()


def expose_key(home: Home) -> None:
    home.key.chmod(0o644)


def swap_genesis(home: Home) -> None:
    other = home.folder.parent / "other"
    make_network(other, (5,))
    shutil.copy(other / "node-0" / "genesis.json", home.genesis)


def break_genesis(home: Home) -> None:
    home.genesis.write_text("{}")


def remove_genesis(home: Home) -> None:
    home.genesis.unlink()


def remove_config(home: Home) -> None:
    home.config.unlink()


CASES: dict[str, tuple[Callable[[Home], None], int, tuple[str, ...]]] = {
    "a bad value": (break_value, 3, ("node.port", "1 to 65535")),
    "an unknown key": (break_key_name, 3, ("bootstraps", "bootstrap")),
    "no TOML": (break_syntax, 3, ("config.toml", "line 1")),
    "no configuration": (remove_config, 3, ("config.toml", "moed init")),
    "no key": (remove_key, 1, ("work.key", "moed init")),
    "a key that others can read": (expose_key, 1, ("work.key", "0644", "chmod 600")),
    "another network's genesis": (swap_genesis, 1, ("belongs to network", "genesis")),
    "no genesis in the file": (break_genesis, 1, ("genesis.json", "copy")),
    "no genesis": (remove_genesis, 1, ("genesis.json", "copy")),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_mistake_is_named_with_its_remedy(name: str, tmp_path: Path) -> None:
    """One line on standard error, no traceback, the exit code of its kind."""
    mistake, code, words = CASES[name]
    (daemon,) = make_network(tmp_path / "network", (1,))
    home = daemon.home
    Store(home.database, home.load_genesis()).close()  # the database of the right network
    mistake(home)
    done = run_moed("run", "--home", str(home.folder))
    complaint = [line for line in done.stderr.splitlines() if line.startswith("moed: ")]
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(complaint) == 1
    for word in words:
        assert word in complaint[0]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_a_taken_port_is_named(kind: socket.SocketKind, tmp_path: Path) -> None:
    """Either half of the port number may be the taken one."""
    (daemon,) = make_network(tmp_path, (1,))
    with socket.socket(socket.AF_INET, kind) as holder:
        holder.bind(("127.0.0.1", daemon.port))
        if kind == socket.SOCK_STREAM:
            holder.listen()
        done = run_moed("run", "--home", str(daemon.home.folder))
    assert done.returncode == 1
    assert f"{daemon.port}" in done.stderr
    assert "taken" in done.stderr
    assert "Traceback" not in done.stderr


def test_verifying_nothing_says_so(tmp_path: Path) -> None:
    """A home whose node never ran has no chain, and looking for it makes none."""
    (daemon,) = make_network(tmp_path, (1,))
    done = run_moed("chain", "verify", "--home", str(daemon.home.folder))
    assert done.returncode == 1
    assert "no chain" in done.stderr
    assert not daemon.home.database.exists()


def test_joining_needs_the_genesis(tmp_path: Path) -> None:
    """A bootstrap address without the network's genesis is wrong usage."""
    done = run_moed("init", "--home", str(tmp_path / "home"), "--bootstrap", "127.0.0.1:4700")
    assert done.returncode == 3
    assert "--genesis" in done.stderr


def test_a_home_is_never_made_twice(tmp_path: Path) -> None:
    """A second `moed init` changes nothing, least of all the key."""
    home = tmp_path / "home"
    port = str(free_ports(1)[0])
    assert run_moed("init", "--home", str(home), "--port", port).returncode == 0
    key = Home(home).key.read_bytes()
    again = run_moed("init", "--home", str(home))
    assert again.returncode == 3
    assert "exists already" in again.stderr
    assert Home(home).key.read_bytes() == key


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_a_home_where_one_may_not_look_is_named(tmp_path: Path) -> None:
    """As by a user who has forgotten sudo; it was a traceback."""
    tmp_path.chmod(0o700)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(ConfigError, match="Permission denied") as caught:
            initialise(tmp_path / "home", role="miner")
    finally:
        os.seteuid(0)
    assert (caught.value.exit_code, str(tmp_path / "home") in str(caught.value)) == (3, True)


@pytest.mark.parametrize("arguments", [["init"], ["run", "--home"], ["frobnicate"], ["run", "--home", "x", "--nope"]])
def test_wrong_usage_is_exit_code_3(arguments: list[str]) -> None:
    """Click's complaints come with the code that scripts expect."""
    assert run_moed(*arguments).returncode == 3
