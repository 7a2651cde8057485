"""One daemon of a devnet: a process of its own, found again by its home after whoever started it has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .client import Client
from .home import Home


@dataclass(slots=True)
class Node:
    """A home with its daemon; ``process`` is set where it was started by this very process."""

    name: str
    role: str
    home: Home
    port: int
    domain: str | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.home.folder / "moed.log"

    @property
    def pid_file(self) -> Path:
        return self.home.folder / "moed.pid"

    def client(self, timeout_s: float = 5.0) -> Client:
        return Client(self.home.folder / "moed.sock", timeout_s=timeout_s)

    def start(self) -> None:
        """Start the daemon; it goes on by itself if this process ends."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603  # our own interpreter and program
                [sys.executable, "-m", "moed.daemon.cli", "run", "--home", str(self.home.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid_file.write_text(str(self.process.pid))

    def is_running(self) -> bool:
        """Whether the process is there and is this home's moed, not somebody who got the number later."""
        if self.process is not None:
            return self.process.poll() is None
        pid = self._pid()
        if pid is None:
            return False
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return str(self.home.folder).encode() in words and state != "Z"

    def signal(self, number: int) -> None:
        """Send a signal to the daemon, if it runs."""
        pid = self._pid()
        if pid is not None and self.is_running():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "its log is empty"

    def _pid(self) -> int | None:
        try:
            return int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None
