"""A whole network on this machine: one real daemon process for each node, for demonstrations, play and tests.

Everything the processes know of each other they find through the DHT, from one bootstrap address; this file only
makes their homes, starts them, reads their sockets and stops them.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from moed.consensus.genesis import Genesis, GenesisAccount
from moed.consensus.params import CREDIT, DEVNET
from moed.protocol.identity import Identity

from .config_example import write_default
from .config_sections import ExpertSection
from .devnet_node import Node
from .errors import ConfigError, DaemonRefused, DaemonUnreachable, NodeError
from .home import Home, write_genesis
from .keystore import create_identity
from .ports import free_ports

DOMAINS = ("prose", "python", "tables", "c", "html")
STAKE = 100_000 * CREDIT
READY_TIMEOUT_S = 90.0
EPOCH_TIMEOUT_S = 120.0
"""Longest wait for one more epoch before the network counts as stuck."""
STOP_TIMEOUT_S = 10.0
POLL_S = 1.0
PROMPT = "The import statement "
COMPLETION_BYTES = 48


class DevnetFailed(NodeError):
    """The network did not do what it should; the message names the node and where its log is."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What one look at the network showed."""

    seconds: float
    ready: int
    nodes: int
    height: int
    epoch: int
    miners: list[dict[str, Any]]


def stakes_of(validators: int) -> list[int]:
    """Unequal stakes that sum to `STAKE`: two get 60 and 40 per cent, since equal ones clip nothing."""
    if validators == 1:
        return [STAKE]
    shares = [validators + 1 - number for number in range(validators)]
    return [STAKE * share // sum(shares) for share in shares]


def available_domains(miners: int) -> list[str]:
    """A domain of text for each miner, round and round over those that this Python ships."""
    # asked in another process, because the answer needs the models and this one stays without torch
    code = "from moed.models.corpora import available_domains; print('\\n'.join(available_domains()))"
    found = subprocess.run(  # noqa: S603  # our own interpreter and a constant program
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    usable = [domain for domain in DOMAINS if domain in found]
    return [usable[number % len(usable)] for number in range(miners)]


class Devnet:
    """A network under one folder. `create`, `start`, then `stop`; the processes outlive this object if not stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.nodes: list[Node] = []
        self.started = time.monotonic()

    # making and finding it

    def create(self, *, validators: int, miners: int) -> None:
        """Make the homes of a new network, in place of an old one that is not running.

        Raises `ConfigError` for impossible numbers, if a network runs there already, or if the folder holds anything
        but a network of ours: then nothing is deleted.
        """
        if validators < 1 or miners < 0:
            raise ConfigError("a network needs at least one validator", "use --validators 1 or more")
        if any(node.is_running() for node in self.load()):
            raise ConfigError(f"a network runs in {self.folder}", "stop it with `moed devnet down`")
        self._clear()
        roles = [("validator", number) for number in range(validators)] + [
            ("miner", number) for number in range(miners)
        ]
        ports = free_ports(len(roles))
        domains = iter(available_domains(miners) if miners else [])
        self.nodes = [
            Node(
                name := f"{role}-{number}",
                role,
                Home(self.folder / name),
                port,
                next(domains) if role == "miner" else None,
            )
            for (role, number), port in zip(roles, ports, strict=True)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        # before the homes: what an interrupted start leaves is then known as ours
        self._index.write_text(json.dumps([[node.name, node.role, node.port, node.domain] for node in self.nodes]))
        identities: list[Identity] = []
        for node in self.nodes:
            node.home.folder.mkdir(mode=0o700)
            identities.append(create_identity(node.home.key))
        genesis = _genesis(identities, stakes_of(validators))
        for node in self.nodes:
            write_genesis(node.home.genesis, genesis)
            self._configure(node)

    def _clear(self) -> None:
        """Remove an old network and everything beside it; a folder that holds none is not touched."""
        try:
            is_foreign = not self._index.is_file() and any(self.folder.iterdir())
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(f"cannot use {self.folder}: {error.strerror}", "choose another --folder") from error
        if is_foreign:
            raise ConfigError(f"{self.folder} holds files and no network", "choose an empty or new --folder")
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _index(self) -> Path:
        return self.folder / "nodes.json"

    def _configure(self, node: Node) -> None:
        bootstrap = [] if node is self.nodes[0] else [f"127.0.0.1:{self.nodes[0].port}"]
        write_default(
            node.home.config,
            role=node.role,
            port=node.port,
            experts=[_expert(node.domain)] if node.domain else [],
            listen="127.0.0.1",
            bootstrap=bootstrap,
        )

    def load(self) -> list[Node]:
        """The nodes that `create` made in this folder, if it did."""
        if not self._index.is_file():
            return []
        rows = json.loads(self._index.read_text())
        self.nodes = [Node(name, role, Home(self.folder / name), port, domain) for name, role, port, domain in rows]
        return self.nodes

    # running it

    def start(self) -> None:
        """Start every daemon; each goes on by itself if this process ends."""
        self.started = time.monotonic()
        for node in self.nodes:
            node.start()

    def look(self) -> Progress:
        """Read every socket once. Raises `DevnetFailed` if a daemon has died."""
        statuses = []
        for node in self.nodes:
            if node.process is not None and node.process.poll() is not None:
                raise DevnetFailed(
                    f"{node.name} ended with code {node.process.returncode}: {node.last_words()}",
                    f"read {node.log}",
                )
            with suppress(DaemonUnreachable):
                statuses.append(node.client().get("/v1/status"))
        ready = [status for status in statuses if status["ready"]]
        miners = []
        with suppress(DaemonUnreachable, DaemonRefused):
            miners = self.nodes[0].client().get("/v1/rankings")["miners"]
        return Progress(
            seconds=time.monotonic() - self.started,
            ready=len(ready),
            nodes=len(self.nodes),
            height=min((status["height"] for status in statuses), default=0),
            epoch=min((status["epoch"] for status in ready), default=0) if len(ready) == len(self.nodes) else 0,
            miners=miners,
        )

    def watch_ready(self) -> Iterator[Progress]:
        """Look again and again until every node is ready. Raises `DevnetFailed` if one dies or is late."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            progress = self.look()
            yield progress
            if progress.ready == progress.nodes:
                return
            if time.monotonic() > deadline:
                raise DevnetFailed(
                    f"{progress.ready} of {progress.nodes} nodes ready after {READY_TIMEOUT_S:.0f} s",
                    f"read the logs under {self.folder}",
                )
            time.sleep(POLL_S)

    def watch(self, epochs: int) -> Iterator[Progress]:
        """Look again and again until ``epochs`` epochs are final everywhere.

        Raises `DevnetFailed` if a daemon dies, if they are not ready in time, or if the chain stands still.
        """
        last_change, last_seen = time.monotonic(), (-1, -1)
        while True:
            progress = self.look()
            yield progress
            if progress.epoch >= epochs:
                return
            now = time.monotonic()
            if (progress.ready, progress.epoch) != last_seen:
                last_change, last_seen = now, (progress.ready, progress.epoch)
            limit = READY_TIMEOUT_S if progress.ready < progress.nodes else EPOCH_TIMEOUT_S
            if now - last_change > limit:
                raise DevnetFailed(
                    f"no progress for {limit:.0f} s: {progress.ready} of {progress.nodes} nodes ready, "
                    f"height {progress.height}, epoch {progress.epoch}",
                    f"read the logs under {self.folder}",
                )
            time.sleep(POLL_S)

    def stop(self) -> list[str]:
        """Stop every daemon and wait; returns a sentence for each that did not end cleanly."""
        for node in self.nodes:
            node.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        complaints = []
        for node in self.nodes:
            while node.is_running() and time.monotonic() < deadline:
                time.sleep(0.05)
            if node.is_running():
                node.signal(signal.SIGKILL)
                complaints.append(f"{node.name} did not stop within {STOP_TIMEOUT_S:.0f} s and was killed")
            elif node.process is not None and node.process.wait() != 0:
                complaints.append(f"{node.name} ended with code {node.process.returncode}; read {node.log}")
            node.pid_file.unlink(missing_ok=True)
        return complaints

    # what it found

    def common_height(self) -> int:
        """The greatest height that is final on every node."""
        return min(int(node.client().get("/v1/status")["height"]) for node in self.nodes)

    def node_rows(self) -> list[dict[str, Any]]:
        """Each node with its state root at one height that all have."""
        height = self.common_height()
        rows = []
        for node in self.nodes:
            status = node.client().get("/v1/status")
            block = node.client().get(f"/v1/chain?start={height}&limit=1")["blocks"][0]
            rows.append(
                {
                    "node_id": status["node_id"],
                    "role": status["role"],
                    "uid": status["uid"],
                    "height": block["height"],
                    "state_root": block["state_root"],
                }
            )
        return rows

    def summary(self, epochs: int) -> dict[str, Any]:
        """The whole result as one object: nodes, miners, held-out losses in bits per byte, epochs, seconds."""
        rankings = self.nodes[0].client().get("/v1/rankings")
        losses = self.nodes[0].client(timeout_s=120.0).post("/v1/losses", {})
        return {
            "nodes": self.node_rows(),
            "miners": [
                {name: miner[name] for name in ("uid", "domain", "incentive", "weight_by_validator")}
                for miner in rankings["miners"]
            ],
            "losses": {name: losses[name] for name in ("mixture", "best_single", "uniform_average")},
            "share": losses.get("share", {}),
            "epochs": max(epochs, int(rankings["epoch"])),
            "seconds": round(time.monotonic() - self.started, 1),
        }

    def complete(self, prompt: str) -> dict[str, Any]:
        """One completion through the mixture, asked of the first validator."""
        client = self.nodes[0].client(timeout_s=120.0)
        answer: dict[str, Any] = client.post(
            "/v1/complete", {"prompt": prompt, "max_bytes": COMPLETION_BYTES, "temperature": 0.0}
        )
        return answer


def run(
    folder: Path,
    *,
    validators: int,
    miners: int,
    epochs: int,
    show: Callable[[Progress], None],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run a new network until ``epochs`` are final, then stop it; returns its summary with a completion in it.

    Raises `DevnetFailed`; whatever happens, no daemon is left running.
    """
    network = Devnet(folder)
    network.create(validators=validators, miners=miners)
    try:
        network.start()
        for progress in network.watch(epochs):
            show(progress)
        say("measuring the mixture on held-out text ...")
        summary = network.summary(epochs)
        summary["completion"] = {"prompt": PROMPT, **network.complete(PROMPT)}
    except BaseException:  # Ctrl-C among them: no process may outlive the command that failed
        network.stop()
        raise
    say("shutting down ...")
    complaints = network.stop()
    if complaints:
        raise DevnetFailed("; ".join(complaints), f"read the logs under {network.folder}")
    summary["seconds"] = round(time.monotonic() - network.started, 1)
    return summary


def _genesis(identities: Sequence[Identity], stakes: Sequence[int]) -> Genesis:
    accounts = [
        GenesisAccount(public_key=identity.public_key.hex(), stake=stake, is_validator=True)
        for identity, stake in zip(identities, stakes, strict=False)
    ]
    return Genesis(name="devnet", created_ms=int(time.time() * 1000), params=DEVNET, accounts=tuple(accounts))


def _expert(domain: str) -> ExpertSection:
    """A small model of one domain that trains whenever nobody asks: a demonstration has little time."""
    return msgspec.convert({"name": domain, "domain": domain, "training_share": 1.0}, ExpertSection)
