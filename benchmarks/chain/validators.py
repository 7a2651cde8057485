"""A network of validators on loopback, each a `moed run` process, whose logs say when each block was final there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moed.consensus.genesis import Genesis, GenesisAccount
from moed.consensus.params import CREDIT, DEVNET, ChainParams
from moed.daemon.client import Client
from moed.daemon.config_example import write_default
from moed.daemon.errors import DaemonUnreachable
from moed.daemon.home import Home, write_genesis
from moed.daemon.keystore import create_identity
from moed.daemon.ports import free_ports
from moed.protocol.addresses import Address
from moed.protocol.identity import Identity

ROOT = Path(__file__).resolve().parents[2]
READY_S = 120.0
ACCOUNT_BALANCE = 1_000 * CREDIT


class Validators:
    """The processes of one network, all with the same stake. ``accounts`` are keys that hold something from the start.

    ``followers`` more nodes have keys and homes, and no stake.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        *,
        params: ChainParams = DEVNET,
        accounts: Sequence[Identity] = (),
        followers: int = 0,
    ) -> None:
        self.homes = [Home(folder / f"node-{number}") for number in range(count + followers)]
        self.identities: list[Identity] = []
        for home in self.homes:
            home.folder.mkdir(parents=True, mode=0o700)
            self.identities.append(create_identity(home.key))
        rows = [
            GenesisAccount(public_key=one.public_key.hex(), stake=100 * CREDIT, balance=CREDIT, is_validator=True)
            for one in self.identities[:count]
        ]
        rows += [GenesisAccount(public_key=one.public_key.hex(), balance=ACCOUNT_BALANCE) for one in accounts]
        self.genesis = Genesis(
            name="benchmark", created_ms=int(time.time() * 1000), params=params, accounts=tuple(rows)
        )
        ports = free_ports(len(self.homes))
        self.addresses = [Address("127.0.0.1", port) for port in ports]
        for number, (home, port) in enumerate(zip(self.homes, ports, strict=True)):
            write_genesis(home.genesis, self.genesis)
            bootstrap = [f"127.0.0.1:{ports[0]}"] if number else []
            write_default(home.config, port=port, listen="127.0.0.1", bootstrap=bootstrap, level="debug")

    @contextmanager
    def running(self, numbers: Sequence[int] | None = None) -> Iterator[None]:
        """Run the processes of these numbers, or all; they are ready inside, and gone after."""
        chosen = range(len(self.homes)) if numbers is None else numbers
        processes = [self._start(self.homes[number]) for number in chosen]
        try:
            for number in chosen:
                self.wait(number, lambda status: bool(status["ready"]))
            yield
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _start(self, home: Home) -> subprocess.Popen[bytes]:
        with self.log(home).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "moed.daemon.cli", "run", "--home", str(home.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            )

    @staticmethod
    def log(home: Home) -> Path:
        return home.folder / "moed.log"

    def wait(self, number: int, holds: Any, *, timeout_s: float = READY_S) -> dict[str, Any]:
        """Wait until ``holds`` of a node's status; returns that status. Raises `TimeoutError`."""
        client = Client(self.homes[number].folder / "moed.sock", timeout_s=20.0)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                status: dict[str, Any] = client.get("/v1/status")
                if holds(status):
                    return status
            except DaemonUnreachable:
                pass  # not up yet
            time.sleep(0.05)
        raise TimeoutError(f"{self.homes[number].folder}: {self.log(self.homes[number]).read_text()[-2_000:]}")

    def finals(self, number: int) -> list[dict[str, Any]]:
        """What a node logged of each block that became final there, in order."""
        lines = self.log(self.homes[number]).read_text().splitlines()
        return [json.loads(line[line.index("{") :]) for line in lines if '"chain.block_final"' in line]
