"""What the service manager is told, over a real datagram socket."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import trio.testing
from structlog.testing import capture_logs

from moed.daemon.config import load_config
from moed.daemon.node import Node
from moed.daemon.notify import Notifier
from moed.daemon.settings import Settings
from support.chains import key
from support.control_plane import logs_in_memory


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.setblocking(False)
        yield listener


def heard(listener: socket.socket) -> list[bytes]:
    """Every message that has arrived."""
    messages = []
    while True:
        try:
            messages.append(listener.recv(4096))
        except BlockingIOError:
            return messages


@pytest.mark.parametrize("is_abstract", [False, True])
def test_the_manager_hears_each_change(tmp_path: Path, is_abstract: bool) -> None:
    """READY, STATUS, RELOADING and STOPPING arrive at a path and at an abstract name."""
    name = f"moed-test-{secrets.token_hex(8)}" if is_abstract else str(tmp_path / "notify")
    with manager(f"\0{name}" if is_abstract else name) as listener:
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}" if is_abstract else name})
        notifier.ready("height 3, 2 peers")
        notifier.status("syncing\nREADY=0")
        notifier.stopping()
        notifier.reloading()
        ready, status, stopping, reloading = heard(listener)
    assert ready == b"READY=1\nSTATUS=height 3, 2 peers"
    assert status == b"STATUS=syncing READY=0"  # a newline in a status must not become an assignment
    assert stopping == b"STOPPING=1"
    assert reloading.startswith(b"RELOADING=1\nMONOTONIC_USEC=")


@pytest.mark.parametrize(("text", "error"), [("port = x", None), ('[log]\nlevel = "error"\n', RuntimeError)])
def test_every_reload_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, error: type[Exception] | None
) -> None:
    """Also one of a wrong file, and one that fails on the way: else systemd would wait for it, and kill the daemon."""
    (tmp_path / "config.toml").write_text("")
    settings = Settings(load_config(tmp_path, environ={}), environ={})

    def fail(_config: object) -> None:
        raise RuntimeError

    settings.on_change.append(fail)
    with manager(str(tmp_path / "notify")) as listener, logs_in_memory() as logs:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        node = Node(settings, key(1), logs)
        (tmp_path / "config.toml").write_text(text)
        with nullcontext() if error is None else pytest.raises(error):
            node.reload()
        reloading, ready = heard(listener)
    assert reloading.startswith(b"RELOADING=1\n")
    assert ready.startswith(b"READY=1")


def test_without_a_manager_nothing_happens() -> None:
    """In a terminal every call does nothing."""
    notifier = Notifier({})
    notifier.ready()
    notifier.watchdog()
    assert notifier.watchdog_s is None


def test_a_manager_that_is_gone_is_mentioned_once(tmp_path: Path) -> None:
    """The daemon goes on; the log says it once, not at every watchdog period."""
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    with capture_logs() as events:
        notifier.watchdog()
        notifier.watchdog()
    assert [event["event"] for event in events] == ["notify.failed"]


async def test_the_watchdog_is_fed_twice_in_its_period(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """In four periods of virtual time it hears eight times (the kernel queues ten datagrams)."""
    with manager(str(tmp_path / "notify")) as listener:
        notifier = Notifier(
            {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
        )
        assert notifier.watchdog_s == 30
        with trio.move_on_after(119):
            await notifier.feed_watchdog()
        assert heard(listener) == [b"WATCHDOG=1"] * 8


@pytest.mark.parametrize(
    "environ",
    [
        {"WATCHDOG_USEC": "1000"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "1000"},
    ],
)
def test_a_watchdog_that_is_not_for_us_is_not_fed(environ: dict[str, str]) -> None:
    """Meant for another process, not a number, off, or with nowhere to report."""
    assert Notifier(environ).watchdog_s is None
