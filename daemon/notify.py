"""Telling systemd how the daemon is: READY, STATUS, STOPPING, WATCHDOG (sd_notify, without the library).

Without ``$NOTIFY_SOCKET`` every call does nothing, so the daemon runs the same in a terminal.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

import structlog
import trio

logger = structlog.get_logger()

_MICROSECONDS = 1_000_000


class Notifier:
    """One datagram per message to the service manager; never waits and never raises for a missing listener."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Read from ``environ`` what the service manager asks of this process: where to, and how often."""
        self._address = _address_of(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_s: float | None = None
        self._has_failed = False
        microseconds = environ.get("WATCHDOG_USEC", "")
        is_for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if self._address is not None and is_for_us and microseconds.isascii() and microseconds.isdigit():
            self.watchdog_s = int(microseconds) / _MICROSECONDS or None

    def ready(self, status: str = "") -> None:
        """The daemon can be used: the socket answers and the network is joined."""
        self._send("READY=1", f"STATUS={_one_line(status)}" if status else "")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={_one_line(text)}")

    def reloading(self) -> None:
        """The configuration is read anew; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> None:
        """The daemon is on its way out."""
        self._send("STOPPING=1", f"STATUS={_one_line(status)}" if status else "")

    def watchdog(self) -> None:
        """The event loop runs."""
        self._send("WATCHDOG=1")

    async def feed_watchdog(self) -> None:
        """Feed the service manager's watchdog twice in its period, from the event loop itself; returns never.

        A loop that is stuck feeds nothing, and is killed and restarted. Without a watchdog it only sleeps.
        """
        while self.watchdog_s is not None:
            self.watchdog()
            await trio.sleep(self.watchdog_s / 2)
        await trio.sleep_forever()

    def _send(self, *assignments: str) -> None:
        if self._address is None:
            return
        message = "\n".join(line for line in assignments if line).encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            try:
                sender.sendto(message, self._address)
            except OSError as error:
                # Said once: a watchdog that cannot be fed would say it every few seconds until it bites.
                if not self._has_failed:
                    logger.warning("notify.failed", error=error.strerror, message=message.decode())
                self._has_failed = True
            else:
                self._has_failed = False


def _address_of(text: str) -> str | None:
    """A path as it is, ``@name`` as an abstract socket; other kinds (vsock) are for virtual machines' managers."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _one_line(text: str) -> str:
    """A newline would start another assignment."""
    return " ".join(text.split())
