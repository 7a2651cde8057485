"""One real network of six daemons that every promise test looks at: two validators, four miners, three epochs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from moed.daemon.client import Client
from support.daemons import run_moed, wait_until

EPOCHS = 3
EPOCH_TIMEOUT_S = 150.0


@dataclass(frozen=True)
class Network:
    """The running network, and what it had to say after its last awaited epoch."""

    folder: Path
    genesis: dict[str, Any]
    rankings: dict[str, Any]
    losses: dict[str, Any]

    def client(self, name: str) -> Client:
        return Client(self.folder / name / "moed.sock", timeout_s=120.0)

    @property
    def names(self) -> list[str]:
        return sorted(path.parent.name for path in self.folder.glob("*/config.toml"))

    @property
    def miners(self) -> list[str]:
        return [name for name in self.names if name.startswith("miner")]

    def domain_of(self, uid: int) -> str:
        domain: str = next(row["domain"] for row in self.rankings["miners"] if row["uid"] == uid)
        return domain


def has_finished(client: Client, epoch: int) -> bool:
    """Whether so many epochs are final."""
    return int(client.get("/v1/status")["epoch"]) >= epoch


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """The network, up until the last promise is looked at; every daemon must end in order."""
    folder = tmp_path_factory.mktemp("network")
    up = run_moed("devnet", "up", "--folder", str(folder), timeout_s=120)
    try:
        assert up.returncode == 0, up.stderr
        validator = Client(folder / "validator-0" / "moed.sock", timeout_s=120.0)
        for epoch in range(1, EPOCHS + 1):
            wait_until(f"epoch {epoch}", partial(has_finished, validator, epoch), EPOCH_TIMEOUT_S)
        yield Network(
            folder,
            genesis=json.loads((folder / "validator-0" / "genesis.json").read_text()),
            rankings=validator.get("/v1/rankings"),
            losses=validator.post("/v1/losses"),
        )
    finally:
        started = time.monotonic()
        down = run_moed("devnet", "down", "--folder", str(folder), timeout_s=60)
        assert down.returncode == 0, down.stderr
        print(f"down in {time.monotonic() - started:.1f} s")
