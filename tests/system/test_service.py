"""What a real daemon tells the service manager: ready when it can be used, alive while it runs, stopping at the end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from support.daemons import ENVIRONMENT, make_network, wait_until


def drain(listener: socket.socket) -> list[str]:
    """The assignments that have arrived."""
    listener.setblocking(False)
    lines: list[str] = []
    while True:
        try:
            lines += listener.recv(4096).decode().splitlines()
        except BlockingIOError:
            return lines


def test_the_service_manager_hears_ready_watchdog_and_stopping(tmp_path: Path) -> None:
    """READY comes when the socket answers, WATCHDOG again and again, STOPPING on SIGTERM, and the exit code is 0."""
    (daemon,) = make_network(tmp_path, (1,))
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        environment = {**ENVIRONMENT, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        with daemon.log.open("ab") as log:
            daemon.process = subprocess.Popen(
                [sys.executable, "-m", "moed.daemon.cli", "run", "--home", str(daemon.home.folder)],
                stdout=log,
                stderr=log,
                env=environment,
            )
        try:

            def is_ready() -> bool:
                heard.extend(drain(listener))
                return "READY=1" in heard

            wait_until("READY", is_ready)
            status = daemon.status()
            assert status is not None
            assert status["ready"]
            heard.clear()

            def is_alive() -> bool:
                heard.extend(drain(listener))
                return heard.count("WATCHDOG=1") >= 3

            wait_until("three watchdog beats", is_alive)
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < 5
            assert "STOPPING=1" in drain(listener)
        finally:
            if daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.wait()


def test_a_daemon_that_cannot_start_never_says_ready(tmp_path: Path) -> None:
    """With its port taken the daemon ends with code 1, and the service manager hears no READY."""
    (daemon,) = make_network(tmp_path, (1,))
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder,
    ):
        listener.bind(str(tmp_path / "notify"))
        holder.bind(("127.0.0.1", daemon.port))
        holder.listen()
        done = subprocess.run(
            [sys.executable, "-m", "moed.daemon.cli", "run", "--home", str(daemon.home.folder)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **ENVIRONMENT, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        assert done.returncode == 1
        assert "READY=1" not in drain(listener)
