"""moed under a real systemd, from install to uninstall; run by `make test-service`, where a machine can be booted."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.booted import Booted, booted, why_not
from support.daemons import ROOT

PYTHON = Path("/usr/bin/python3")
MOED = ("env", "PYTHONPATH=/opt/copy/src", str(Path(sys.prefix).resolve() / "bin" / "python"), "-m", "moed.daemon.cli")
"""The copy's `moed`, run by this environment's interpreter."""
VERSION = ".".join(map(str, sys.version_info[:2]))
WATCHDOG = "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n"

pytestmark = pytest.mark.skipif(
    os.environ.get("MOED_TEST_SERVICE") != "1", reason="boots a machine: run it with `make test-service`"
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """A machine with moed installed and started as a service."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    copy = tmp_path_factory.mktemp("copy")
    for name in ("daemon", "protocol", "models", "consensus", "systemd", "src"):
        shutil.copytree(
            ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy / name)
    with booted(tmp_path_factory.mktemp("machine"), copy) as machine:
        if machine.run(
            str(PYTHON), "-c", f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
        ).returncode:
            pytest.skip(f"{PYTHON} is no Python {VERSION}, whose packages are here")
        told = machine.check(*install(), timeout_s=300)
        assert "enabled and started" in told
        yield machine


def install(*options: str) -> tuple[str, ...]:
    """The command that installs the copy, with the packages of this environment."""
    return (
        *MOED, "service", "install", "--python", str(PYTHON),
        "--package", "/opt/copy", "--borrow", str(Path(sysconfig.get_paths()["purelib"]).resolve()), *options,
    )  # fmt: skip


def status(machine: Booted) -> dict[str, Any]:
    """What the service says of itself."""
    found: dict[str, Any] = json.loads(machine.check("moed", "service", "status", "--json"))
    return found


def journal(machine: Booted, *options: str) -> list[dict[str, Any]]:
    """The journal's entries of the service."""
    text = machine.check("journalctl", "-u", "moed", "-o", "json", "--no-pager", *options)
    return [json.loads(line) for line in text.splitlines()]


def test_it_is_ready_and_says_so(machine: Booted) -> None:
    """READY came, the status line is the daemon's own, and it starts at boot."""
    found = status(machine)
    assert (found["active"], found["state"], found["starts_at_boot"]) == ("active", "running", True)
    assert "height" in found["says"]
    assert json.loads(machine.check("moectl", "status", "--json"))["ready"] is True


def test_the_socket_knows_who_calls(machine: Booted) -> None:
    """Root may do all, a member of the group reads, a stranger is refused with words."""
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534")
    member = machine.check("getent", "group", "moed").split(":")[2]
    refused = machine.run(*as_nobody, "--clear-groups", "moectl", "status")
    assert (refused.returncode, "group moed" in refused.stderr) == (1, True)
    reader = machine.run(*as_nobody, f"--groups={member}", "moectl", "status", "--json")
    assert json.loads(reader.stdout)["ready"] is True
    assert machine.run(*as_nobody, f"--groups={member}", "moectl", "stop").returncode == 1


def test_the_journal_has_priorities_and_events(machine: Booted) -> None:
    """Lines are JSON, with the syslog priority that their level has."""
    ready = [entry for entry in journal(machine) if '"node.ready"' in entry["MESSAGE"]]
    assert ready[0]["PRIORITY"] == "6"
    assert json.loads(ready[0]["MESSAGE"])["level"] == "info"
    assert all(int(entry["PRIORITY"]) <= 4 for entry in journal(machine, "-p", "warning"))


def test_manual_and_completion_are_there(machine: Booted) -> None:
    """Made from the installed commands."""
    assert "moectl wait" in machine.check("cat", "/usr/local/share/man/man1/moectl.1").replace("\\-", "-")
    assert "_MOECTL_COMPLETE" in machine.check("cat", "/usr/share/bash-completion/completions/moectl")


def test_the_home_is_closed_to_others(machine: Booted) -> None:
    """Home and key belong to the user moed, with the documented modes."""
    assert machine.check("stat", "-c", "%U %a", "/var/lib/moed").split() == ["moed", "700"]
    assert machine.check("stat", "-c", "%U %a", "/var/lib/moed/work.key").split() == ["moed", "600"]


def test_a_reload_reads_the_configuration_again(machine: Booted) -> None:
    """`systemctl reload` changes the level of the log without a restart."""
    pid = status(machine)["pid"]
    machine.check("sed", "-i", 's/^#level = .*/level = "debug"/', "/var/lib/moed/config.toml")
    machine.check("systemctl", "reload", "moed")
    machine.wait("the new level", "moectl", "config", "show", "--json", words='"value": "debug"')
    assert status(machine)["pid"] == pid


def test_a_killed_daemon_comes_back(machine: Booted) -> None:
    """After `kill -9` the service manager starts it again, with the same key and its whole chain."""
    before = json.loads(machine.check("moectl", "status", "--json"))
    machine.check("kill", "-9", str(status(machine)["pid"]))
    machine.wait("a new process", "moed", "service", "status", "--json", words=f'"restarts": {1}')
    machine.check("moectl", "wait", "--for", "synced", "--timeout", "60", timeout_s=90)
    after = json.loads(machine.check("moectl", "status", "--json"))
    assert after["node_id"] == before["node_id"]
    assert after["height"] >= before["height"]


def test_a_stuck_loop_is_killed_by_the_watchdog(machine: Booted) -> None:
    """A process that feeds the watchdog no more is ended and started again."""
    machine.check("mkdir", "-p", "/run/systemd/system/moed.service.d")
    machine.check("sh", "-c", f"printf '{WATCHDOG}' > /run/systemd/system/moed.service.d/watchdog.conf")
    machine.check("systemctl", "daemon-reload")
    machine.check("systemctl", "restart", "moed")
    restarts = status(machine)["restarts"]
    machine.check("kill", "-STOP", str(status(machine)["pid"]))
    machine.wait("the watchdog", "moed", "service", "status", "--json", words=f'"restarts": {restarts + 1}')
    machine.check("moectl", "wait", "--timeout", "60", timeout_s=90)
    machine.check("rm", "-r", "/run/systemd/system/moed.service.d")
    machine.check("systemctl", "daemon-reload")


def test_an_upgrade_keeps_key_and_chain(machine: Booted) -> None:
    """A second install restarts it in place."""
    before = json.loads(machine.check("moectl", "status", "--json"))
    assert "as it was" in machine.check(*install(), timeout_s=300)
    machine.check("moectl", "wait", "--timeout", "60", timeout_s=90)
    after = json.loads(machine.check("moectl", "status", "--json"))
    assert (after["node_id"], after["network"]) == (before["node_id"], before["network"])


def test_it_stops_in_time(machine: Booted) -> None:
    """Within five seconds, in order, and stays down."""
    began = time.monotonic()
    machine.check("systemctl", "stop", "moed")
    assert time.monotonic() - began < 5
    assert status(machine)["active"] == "inactive"
    assert any('"node.stopped"' in entry["MESSAGE"] for entry in journal(machine, "-n", "5"))


def test_uninstalling_leaves_nothing(machine: Booted) -> None:
    """First the home stays, then a purge takes that and the user too."""
    kept = machine.check(*MOED, "service", "uninstall")
    assert "kept /var/lib/moed" in kept
    machine.check("test", "-f", "/var/lib/moed/work.key")
    machine.check(*MOED, "service", "uninstall", "--purge")
    left = machine.run(
        "find", "/etc", "/opt", "/var/lib", "/usr/local", "/run", "-name", "*moed*", "-not", "-path", "/opt/copy/*",
    ).stdout.split()  # fmt: skip
    assert left == []
    assert machine.run("getent", "passwd", "moed").returncode != 0
