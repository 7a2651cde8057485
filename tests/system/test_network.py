"""Real processes agree on one chain, are killed again and again, and end in order."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest

from moed.consensus.params import ChainParams
from moed.daemon.home import Home
from moed.daemon.ports import free_ports
from support.daemons import Daemon, make_network, run_moed, running, wait_until

FAST = ChainParams(block_interval_ms=200, tempo=10, timeout_propose_ms=1_000, timeout_vote_ms=500)


def test_a_node_alone_is_a_network_of_one(tmp_path: Path) -> None:
    """`moed init` and `moed run` are enough: ready, final blocks, a clean end, a chain that verifies."""
    home = tmp_path / "home"
    made = run_moed("init", "--home", str(home), "--port", str(free_ports(1)[0]))
    assert made.returncode == 0, made.stderr
    daemon = Daemon(Home(home))
    with running(daemon):
        status = daemon.wait_ready()
        assert (status["role"], status["uid"], status["peers"], status["synced"]) == ("follower", 0, 0, True)
        daemon.wait_height(1)
        started = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - started < 5
    verified = run_moed("chain", "verify", "--home", str(home), "--json")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["height"] >= 1


def test_three_nodes_find_each_other_and_agree(tmp_path: Path) -> None:
    """Two validators and a follower, one bootstrap address: everybody meets everybody, all roots are equal."""
    daemons = make_network(tmp_path, (60, 40), others=1, params=FAST)
    with running(*daemons):
        for daemon in daemons:
            daemon.wait_ready()
        wait_until("everybody to meet", lambda: all((one.status() or {}).get("peers") == 2 for one in daemons))
        height = 15
        for daemon in daemons:
            daemon.wait_height(height)
        assert len({daemon.state_root_at(height) for daemon in daemons}) == 1
        assert [daemon.stop() for daemon in daemons] == [0, 0, 0]
    for daemon in daemons:
        assert run_moed("chain", "verify", "--home", str(daemon.home.folder)).returncode == 0


@pytest.mark.slow
def test_a_network_of_one_survives_being_killed_again_and_again(tmp_path: Path) -> None:
    """`kill -9` at many moments, between signing and deciding too, never leaves a validator that waits for itself."""
    params = ChainParams(block_interval_ms=1, tempo=50, timeout_propose_ms=1_000, timeout_vote_ms=500)
    (daemon,) = make_network(tmp_path, (5,), params=params)
    height = 0
    with running(daemon):
        for turn in range(8):
            height = daemon.wait_height(height + 3 + turn)["height"]
            daemon.kill()
            daemon.start()
        daemon.wait_height(height + 5)
        assert daemon.stop() == 0
    assert run_moed("chain", "verify", "--home", str(daemon.home.folder)).returncode == 0


def test_a_node_that_is_still_looking_for_the_network_stops_as_fast_as_any(tmp_path: Path) -> None:
    """SIGTERM while the bootstrap does not answer: nobody waits for the end of the attempt."""
    silent, daemon = make_network(tmp_path, (60, 40), params=FAST)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", silent.port))
        with running(daemon):
            wait_until("the socket to answer", daemon.status)
            assert not (daemon.status() or {})["ready"]
            began = time.monotonic()
            assert daemon.stop(20) == 0
            assert time.monotonic() - began < 5
    assert "node.ready" not in daemon.log.read_text()
