"""Real `moed run` processes for tests: made in a temporary folder, watched through their sockets, always stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from moed.consensus.genesis import Genesis, GenesisAccount
from moed.consensus.params import DEVNET, ChainParams
from moed.daemon.client import Client
from moed.daemon.config_example import write_default
from moed.daemon.errors import DaemonUnreachable
from moed.daemon.home import Home, write_genesis
from moed.daemon.keystore import create_identity
from moed.daemon.ports import free_ports
from moed.protocol.identity import Identity

WAIT_S = 60.0
"""Bound of every wait; a healthy daemon needs a small part of it."""

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1"}


def run_moed(*arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run one `moed` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "moed.daemon.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=ENVIRONMENT,
    )


def wait_until(what: str, check: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Poll ``check`` until it gives something true, and return that; fails naming ``what``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s:.0f} s in vain for {what}")


class Daemon:
    """One daemon process on a home folder."""

    def __init__(self, home: Home, port: int = 0) -> None:
        self.home = home
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        self.log = home.folder / "moed.log"

    @property
    def client(self) -> Client:
        return Client(self.home.folder / "moed.sock", timeout_s=20.0)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moed.daemon.cli", "run", "--home", str(self.home.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=ENVIRONMENT,
            )

    def status(self) -> Mapping[str, Any] | None:
        """The status, or None while the socket does not answer; fails if the process has ended."""
        assert self.process is not None
        assert self.process.poll() is None, f"{self.home.folder} ended: {self.tail()}"
        with suppress(DaemonUnreachable):
            found: Mapping[str, Any] = self.client.get("/v1/status")
            return found
        return None

    def wait_ready(self) -> Mapping[str, Any]:
        def ready() -> Mapping[str, Any] | None:
            status = self.status()
            return status if status is not None and status["ready"] else None

        found: Mapping[str, Any] = wait_until(f"{self.home.folder} to be ready; log: {self.tail()}", ready)
        return found

    def wait_height(self, height: int) -> Mapping[str, Any]:
        def reached() -> Mapping[str, Any] | None:
            status = self.status()
            return status if status is not None and status["height"] >= height else None

        found: Mapping[str, Any] = wait_until(f"height {height} on {self.home.folder}", reached)
        return found

    def state_root_at(self, height: int) -> str:
        """The state root in the block at ``height``."""
        root: str = self.client.get(f"/v1/chain?start={height}&limit=1")["blocks"][0]["state_root"]
        return root

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = 10.0) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""

    def resident_bytes(self) -> int:
        """Resident memory of the process now."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def running(*daemons: Daemon) -> Iterator[None]:
    """Start the daemons, and stop what is left of them at the end."""
    try:
        for daemon in daemons:
            daemon.start()
        yield
    finally:
        for daemon in daemons:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.process.terminate()
        for daemon in daemons:
            if daemon.process is not None:
                try:
                    daemon.process.wait(10)
                except subprocess.TimeoutExpired:
                    daemon.process.kill()
                    daemon.process.wait()


def make_network(
    folder: Path, stakes: tuple[int, ...], *, others: int = 0, params: ChainParams = DEVNET
) -> list[Daemon]:
    """Homes of a network without models: followers, those with a stake being its validators; the first is bootstrap."""
    count = len(stakes) + others
    ports = free_ports(count)
    homes = [Home(folder / f"node-{number}") for number in range(count)]
    identities: list[Identity] = []
    for home in homes:
        home.folder.mkdir(parents=True, mode=0o700)
        identities.append(create_identity(home.key))
    accounts = tuple(
        GenesisAccount(public_key=identity.public_key.hex(), stake=stake, balance=10**9, is_validator=True)
        for identity, stake in zip(identities, stakes, strict=False)
    )
    genesis = Genesis(name="test", created_ms=int(time.time() * 1000), params=params, accounts=accounts)
    for number, (home, port) in enumerate(zip(homes, ports, strict=True)):
        write_genesis(home.genesis, genesis)
        bootstrap = [f"127.0.0.1:{ports[0]}"] if number else []
        write_default(home.config, port=port, listen="127.0.0.1", bootstrap=bootstrap)
    return [Daemon(home, port) for home, port in zip(homes, ports, strict=True)]
