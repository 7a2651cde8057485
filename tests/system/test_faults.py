"""The fault matrix of docs/faults.md: each fault gives its code and remedy in the log, by `moed doctor`, on exit."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from moed.daemon.findings import Finding, judge_running
from moed.daemon.home import Home
from moed.daemon.store import Store
from support.daemons import ENVIRONMENT, ROOT, make_network, running, wait_until
from support.dht_nodes import loopback_nodes
from support.peering import until

needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="making a full or read-only disk takes root"
)
MOED = f"{sys.executable} -m moed.daemon.cli"
MOECTL = f"{sys.executable} -m moed.daemon.ctl"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with a chain database, ready to run."""
    (daemon,) = make_network(tmp_path, (1,))
    Store(daemon.home.database, daemon.home.load_genesis()).close()
    return daemon.home


@contextmanager
def port_taken(home: Home) -> Iterator[None]:
    port = int(re.findall(r"^port = (\d+)", home.config.read_text(), re.MULTILINE)[0])
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        yield


@contextmanager
def key_open(home: Home) -> Iterator[None]:
    home.key.chmod(0o644)
    yield


@contextmanager
def other_genesis(home: Home) -> Iterator[None]:
    make_network(home.folder.parent / "other", (5,))
    shutil.copy(home.folder.parent / "other" / "node-0" / "genesis.json", home.genesis)
    yield


@contextmanager
def damaged_page(home: Home) -> Iterator[None]:
    data = bytearray(home.database.read_bytes())
    data[4096 : len(data)] = b"\xff" * (len(data) - 4096)
    home.database.write_bytes(data)
    yield


@contextmanager
def no_socket_folder(home: Home) -> Iterator[None]:
    text = home.config.read_text()
    home.config.write_text(text.replace("#socket =", f'socket = "{home.folder}/not/there/moed.sock"'))
    yield


@contextmanager
def as_it_is(home: Home) -> Iterator[None]:
    yield


FAULTS: dict[str, tuple[Callable[[Home], AbstractContextManager[None]], str, str]] = {
    "port taken": (port_taken, "", "port_taken"),
    "bad key mode": (key_open, "", "bad_key"),
    "wrong genesis": (other_genesis, "", "store_corrupt"),
    "corrupt database page": (damaged_page, "", "store_corrupt"),
    "socket folder missing": (no_socket_folder, "", "no_socket"),
    "out of file descriptors": (as_it_is, "ulimit -n 40 && ", "too_few_files"),
}
MOUNTED_FAULTS = {
    "disk full": ("mount -t tmpfs -o size=8m tmpfs {mounted} && cp -a {home}/. {mounted}", "limit_reached"),
    "read-only data folder": ("mount --bind {home} {mounted} && mount -o remount,bind,ro {mounted}", "store_failed"),
}


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell to its end."""
    return subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=60, env=ENVIRONMENT, stdin=subprocess.DEVNULL
    )


def check(code: str, run: subprocess.CompletedProcess[str], doctor: subprocess.CompletedProcess[str]) -> None:
    """The run failed with ``code`` in log and words, the doctor found it too, and the page has it."""
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr
    (failed,) = [json.loads(line[3:]) for line in run.stderr.splitlines() if '"node.failed"' in line]
    assert (failed["code"], failed["level"]) == (code, "critical")
    (told,) = [line for line in run.stderr.splitlines() if line.startswith("moed: ")]
    assert f"({failed['remedy']})" in told
    assert doctor.returncode == 1, doctor.stdout + doctor.stderr
    findings = json.loads(doctor.stdout)["findings"]
    assert code in [finding["code"] for finding in findings]
    assert all(finding["cause"] and finding["remedy"] for finding in findings)
    assert f"`{code}`" in (ROOT / "docs" / "faults.md").read_text()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_its_code_everywhere(name: str, home: Home) -> None:
    """In the log, in the line for the operator, in what the doctor finds, in the exit status, and in the page."""
    make, before, code = FAULTS[name]
    with make(home):
        run = shell(f"{before}{MOED} run --home {home.folder}")
        doctor = shell(f"{before}{MOED} doctor --json --home {home.folder}")
    check(code, run, doctor)


@needs_mounts
@pytest.mark.parametrize("name", MOUNTED_FAULTS)
def test_a_fault_of_the_disk_has_its_code_everywhere(name: str, home: Home) -> None:
    """The same on a disk of its own, mounted for these processes alone."""
    mount, code = MOUNTED_FAULTS[name]
    mounted = home.folder.parent / "mounted"
    mounted.mkdir(mode=0o700)
    line = mount.format(home=home.folder, mounted=mounted)

    def inside(command: str) -> subprocess.CompletedProcess[str]:
        return shell(f"exec unshare --mount sh -c '{line} && exec {MOED} {command} --home {mounted}'")

    check(code, inside("run"), inside("doctor --json"))


@needs_mounts
def test_a_database_in_use_that_cannot_be_written_is_not_called_damaged(home: Home) -> None:
    """Its newest blocks are in the log beside it, and one without them has no table yet."""
    home.database.unlink()
    mounted = home.folder.parent / "mounted"
    mounted.mkdir(mode=0o700)
    line = MOUNTED_FAULTS["read-only data folder"][0].format(home=home.folder, mounted=mounted)
    with closing(Store(home.database, home.load_genesis())):
        doctor = shell(f"exec unshare --mount sh -c '{line} && exec {MOED} doctor --json --home {mounted}'")
    codes = [finding["code"] for finding in json.loads(doctor.stdout)["findings"]]
    assert ("store_failed" in codes, "store_corrupt" in codes) == (True, False)


def test_a_sound_home_has_no_findings(home: Home) -> None:
    """Before the first start and while the daemon runs; the doctor changes nothing."""
    before = home.database.read_bytes()
    done = shell(f"{MOED} doctor --json --home {home.folder}")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"running": False, "findings": []})
    assert home.database.read_bytes() == before


def test_a_node_whose_bootstraps_are_gone_stays_up_and_says_so(tmp_path: Path) -> None:
    """Ready after a bounded attempt, not synced; the event, the finding with its code, and the exit codes."""
    _, daemon = make_network(tmp_path, (1,), others=1)
    with running(daemon):
        assert daemon.wait_ready()["synced"] is False
        waited = shell(f"{MOECTL} --home {daemon.home.folder} wait --for synced --timeout 0.2")
        assert waited.returncode == 1
        assert "none of 0 peers has told its own" in waited.stderr
        (joined,) = daemon.client.get("/v1/events", {"names": "dht.joined"})["events"]
        assert (joined["contacts"], joined["bootstraps"]) == (0, 1)
        done = shell(f"{MOECTL} --home {daemon.home.folder} doctor --json")
        assert done.returncode == 1
        assert [finding["code"] for finding in json.loads(done.stdout)["findings"]] == ["no_bootstrap"]
        alive = shell(f"{MOED} doctor --json --home {daemon.home.folder}")
        assert json.loads(alive.stdout) == {"running": True, "findings": []}
        assert daemon.process is not None
        daemon.home.config.write_text(daemon.home.config.read_text().replace('#level = "info"', 'level = "debug"'))
        daemon.process.send_signal(signal.SIGHUP)
        (reloaded,) = wait_until("the reload", lambda: daemon.client.get("/v1/events", {"names": "config.*"})["events"])
        assert reloaded["changed"] == ["log.level"]
        assert daemon.stop() == 0


CLOCK = "import time\nreal, real_ns = time.time, time.time_ns\n" + (
    "time.time = lambda: real() + 600\ntime.time_ns = lambda: real_ns() + 600 * 10**9\n"
)
"""Run at the start of an interpreter: its clock is ten minutes fast."""


def test_a_clock_that_is_off_is_found_on_both_sides(tmp_path: Path) -> None:
    """The others drop what comes from ten minutes ahead and say why; the node itself is up, alone, and told to look."""
    right, wrong = make_network(tmp_path, (1,), others=1)
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast" / "sitecustomize.py").write_text(CLOCK)
    with running(right):
        right.wait_ready()
        with wrong.log.open("ab") as log:
            wrong.process = subprocess.Popen(
                [sys.executable, "-m", "moed.daemon.cli", "run", "--home", str(wrong.home.folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**ENVIRONMENT, "PYTHONPATH": f"{tmp_path / 'fast'}:{ENVIRONMENT['PYTHONPATH']}"},
            )  # fmt: skip
        try:
            wrong.wait_ready()
            query = {"names": "dht.datagram_dropped"}
            (dropped, *_) = wait_until("a dropped datagram", lambda: right.client.get("/v1/events", query)["events"])
            assert dropped["reason"] == "expired"
            (finding,) = wrong.client.post("/v1/doctor")["findings"]
            assert finding["code"] in ("no_bootstrap", "clock_off")
            assert "clock" in finding["remedy"]
        finally:
            assert wrong.stop() == 0


async def test_a_clock_is_compared_with_the_contacts_clocks() -> None:
    """On real datagrams; the middle one counts, so that one liar moves nothing."""
    off_s = {0: 0.0, 1: 20.0, 2: 11.0, 3: -25.0}
    async with loopback_nodes(4, clock_off_s=off_s.__getitem__) as nodes:
        await until(lambda: nodes[0].dht.clock_ahead()[1] == 3)
        ahead_s, _ = nodes[0].dht.clock_ahead()
        assert ahead_s == pytest.approx(11.0, abs=4.0)
    for found_s, signs, severity in ((11.0, True, "error"), (-11.0, True, "error"), (11.0, False, "warning")):
        (finding,) = judged(clocks_ahead_s=found_s, signs_blocks=signs)
        assert (finding.code, finding.severity) == ("clock_off", severity)
        assert ("behind" if found_s > 0 else "ahead of") in finding.cause


def judged(**changes: Any) -> list[Finding]:
    """The findings about a node that is well but for ``changes``."""
    health = {
        "contacts": 3, "udp": True, "tcp": True, "advertised": ["h:1"], "clocks_ahead_s": 0.2, "clocks": 3,
        "max_clock_drift_s": 10.0, "signs_blocks": True, **changes,
    }  # fmt: skip
    status = {"height": 9, "best_known_height": 9, **changes}
    resources = {"disk": {"free_bytes": 1 << 40}, "files": {"used": 9, "limit": 1024}}
    return list(judge_running(health, status, resources, {"expired": changes.get("expired", 0)}, bootstraps=1))


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({}, []),
        ({"contacts": 0}, ["no_bootstrap"]),
        ({"contacts": 0, "expired": 50}, ["clock_off"]),
        ({"expired": 50}, []),
        ({"udp": False, "tcp": False}, ["unreachable_udp", "unreachable_tcp"]),
        ({"udp": None}, []),
        ({"best_known_height": 12}, ["behind"]),
        ({"clocks_ahead_s": None, "clocks": 0}, []),
        ({"clocks_ahead_s": -5.0}, []),
        ({"clocks_ahead_s": 5.1}, ["clock_off"]),
    ],
)
def test_what_a_running_node_says_is_judged(changes: dict[str, Any], codes: list[str]) -> None:
    """A clock that is off shows in datagrams that came too old or too new while nobody answers."""
    found = judged(**changes)
    assert [finding.code for finding in found] == codes
    page = (ROOT / "docs" / "faults.md").read_text()
    assert all(f"`{code}`" in page for code in codes)
