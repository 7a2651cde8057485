"""A disk that takes no more: the node says so in one line and ends, and nothing that was final is lost."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moed.consensus.params import ChainParams
from moed.daemon.client import Client
from moed.daemon.errors import DaemonUnreachable
from moed.daemon.store import Store, verify_chain
from support.daemons import ENVIRONMENT, make_network, run_moed, running

FAST = ChainParams(block_interval_ms=20, tempo=50)
ROOM_BYTES = 400 << 10


def forbid_large_files() -> None:
    """In the child: no file grows over the limit, which the kernel enforces as it does a disk's end."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM_BYTES, ROOM_BYTES))


@pytest.mark.parametrize("rounds", [2])
def test_a_node_without_room_stops_cleanly_and_comes_back(rounds: int, tmp_path: Path) -> None:
    """It ends with 1 and a remedy, again and again; with room it goes on from its last final block."""
    (daemon,) = make_network(tmp_path, (100,), params=FAST)
    for _ in range(rounds):
        seen = run_out_of_room(tmp_path, daemon.home.folder)
        with Store(daemon.home.database, daemon.home.load_genesis()) as store:
            assert verify_chain(store).height >= seen > 0
    with running(daemon):
        daemon.wait_height(seen + 5)
        assert daemon.stop() == 0
    assert run_moed("chain", "verify", "--home", str(daemon.home.folder)).returncode == 0


def run_out_of_room(folder: Path, home: Path) -> int:
    """Run the node until it ends for want of room; returns the greatest height that it showed to anybody."""
    log, seen = folder / "out.log", 0
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "moed.daemon.cli", "run", "--home", str(home), "--log-level", "error"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=ENVIRONMENT,
            preexec_fn=forbid_large_files,  # noqa: PLW1509  # no thread of this process holds a lock that it needs
        )
    deadline = time.monotonic() + 60
    while process.poll() is None:
        try:
            seen = max(seen, int(Client(home / "moed.sock").get("/v1/status")["height"]))
        except DaemonUnreachable:
            time.sleep(0.02)
        assert time.monotonic() < deadline, log.read_text()
    last = log.read_text().splitlines()[-1]
    assert process.returncode == 1, log.read_text()
    assert last.startswith("moed: cannot write"), last
    assert "(" in last
    return seen
