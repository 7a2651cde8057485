"""`moed experiment failure`: real daemons serve a layer of experts, one is killed while a model learns through them.

Four `moed run` processes of one network, each with a row of the grid; the caller finds them through the DHT. Nothing is
told about the kill: the session breaks, the experts of that server are left out, and the rows go to the others.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from moed.models.errors import RowsUnanswered
from moed.models.optimizer import Adam
from moed.models.remote import Patience
from moed.models.remote_mixture import RemoteMixture
from moed.protocol.addresses import Address
from moed.protocol.identity import Identity

from .client import Client
from .config_example import render_default
from .errors import DaemonUnreachable, NodeError
from .expert_transport import ThreadTransport
from .home import Home, initialise
from .ports import free_ports
from .tables import Table

SERVERS, COLUMNS, WIDTH, ROWS = 4, 4, 32, 32
START_TIMEOUT_S = 90.0
RECOVERED_SHARE = 0.7
RECOVERED_WITHIN_S = 5.0
WINDOW_S = 0.5
STEADY_WINDOWS = 4


class ServerFailed(NodeError):
    """A server of the experiment did not start; its log tells why."""


def failure(*, seed: int, before_s: float, after_s: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Learn for ``before_s``, kill one server with SIGKILL, and go on for ``after_s``. Raises `NodeError`."""
    say(f"seed {seed}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="moed-failure-") as folder, ExitStack() as stack:
        homes = _make_homes(Path(folder))
        servers = [stack.enter_context(_Server(home)) for home in homes]
        for server in servers:
            server.wait_ready()
        say(f"{len(servers)} servers run")
        genesis = Home(homes[0]).load_genesis()
        bootstrap = [Address("127.0.0.1", server.port) for server in servers[:2]]
        caller = Identity(seed.to_bytes(32, "big"))
        transport = stack.enter_context(ThreadTransport(caller, genesis.network_id, bootstrap=bootstrap))
        learner = _Learner(transport, seed)
        learner.await_experts(START_TIMEOUT_S)
        say("all experts are found")
        learner.run(before_s)
        killed_at_s = time.monotonic()
        servers[seed % SERVERS].kill()
        say("one server is killed")
        learner.run(after_s)
    return _describe(learner, killed_at_s, seed)


def _make_homes(folder: Path) -> list[Path]:
    """A network of one and three that join it; each serves one row of the grid."""
    ports = free_ports(SERVERS)
    homes: list[Path] = []
    for number, port in enumerate(ports):
        home = folder / f"server-{number}"
        first = homes[0] / "genesis.json" if homes else None
        doors = (f"127.0.0.1:{ports[0]}",) if homes else ()
        initialise(home, role="miner", port=port, bootstrap=doors, genesis_file=first)
        values = {"role": "miner", "port": port, "listen": "127.0.0.1", "bootstrap": doors, "stranger_share": 1.0}
        layers = f'\n[[layers]]\nname = "ffn.{number}.[0-{COLUMNS - 1}]"\nwidth = {WIDTH}\n'
        Home(home).config.write_text(render_default(values) + layers)
        homes.append(home)
    return homes


class _Server:
    """One daemon; ends with the `with` block."""

    def __init__(self, home: Path) -> None:
        self._home, self._log = home, home / "log"
        self.port = int(Home(home).config.read_text().split("\nport = ")[1].split("\n")[0])

    def __enter__(self) -> _Server:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and program
                [sys.executable, "-m", "moed.daemon.cli", "run", "--home", str(self._home)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.wait()

    def wait_ready(self) -> None:
        """Wait until it serves. Raises `ServerFailed`."""
        client = Client(self._home / "moed.sock")
        ends = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < ends and self._process.poll() is None:
            try:
                if client.get("/v1/status")["ready"]:
                    return
            except DaemonUnreachable:
                pass
            time.sleep(0.1)
        last = (self._log.read_text(errors="replace").splitlines() or [""])[-1]
        raise ServerFailed(f"a server did not start: {last}", "run the experiment again")


class _Learner:
    """A small model around the mixture that learns a fixed map, and what came of each batch."""

    def __init__(self, transport: ThreadTransport, seed: int) -> None:
        self._transport = transport
        torch.manual_seed(seed)
        self.mixture = RemoteMixture(
            WIDTH, (SERVERS, COLUMNS), transport=transport, prefix="ffn.", k_best=3, k_min=1,
            patience=Patience(deadline_s=2.0, grace_s=0.5), is_strict=False,
        )  # fmt: skip
        self.model = nn.ModuleList([self.mixture, nn.Linear(WIDTH, WIDTH)])
        self._target = torch.randn(WIDTH, WIDTH) / WIDTH**0.5
        self._adam = Adam()
        self.ended_s: list[float] = []
        self.answered: list[int] = []
        self.losses: list[float] = []
        self.not_finite = 0

    def await_experts(self, timeout_s: float) -> None:
        """Wait until the DHT names every expert. Raises `ServerFailed`."""
        rows = [f"ffn.{number}." for number in range(SERVERS)]
        ends = time.monotonic() + timeout_s
        while sum(len(found) for found in self._transport.live(rows).values()) < SERVERS * COLUMNS:
            if time.monotonic() > ends:
                raise ServerFailed("the experts were not found in the DHT in time", "run the experiment again")
            time.sleep(1.0)

    def run(self, duration_s: float) -> None:
        """Learn batch after batch."""
        ends = time.monotonic() + duration_s
        while time.monotonic() < ends:
            self._step(torch.randn(ROWS, WIDTH))

    def _step(self, x: torch.Tensor) -> None:
        try:
            mixed = self.mixture.mix(x)
        except RowsUnanswered:  # nobody lives: every row is said to have no answer
            self._note(0, float("nan"))
            return
        is_answered = mixed.answered.any(dim=1)
        values = self.model[1](mixed.values)
        self.not_finite += int((~torch.isfinite(values)).any(dim=1).sum())
        loss = (values - torch.tanh(x @ self._target))[is_answered].square().mean()
        if is_answered.any():
            torch.autograd.backward(loss + 0.01 * mixed.balance_loss)
            self._adam.step(list(self.model.named_parameters()), 1e-3)
        self._note(int(is_answered.sum()), loss.item())

    def _note(self, answered: int, loss: float) -> None:
        self.ended_s.append(time.monotonic())
        self.answered.append(answered)
        self.losses.append(loss)


@dataclass(frozen=True, slots=True)
class Recovery:
    """Rows learned from in a second before a kill and after it, as medians of windows of `WINDOW_S`; how long it took
    to be at `RECOVERED_SHARE` of the first; and the longest time after it in which no batch ended."""

    before: float
    after: float
    recovered_after_s: float
    longest_pause_s: float


def measure_recovery(ended_s: Sequence[float], answered: Sequence[int]) -> Recovery:
    """From when each batch ended, in seconds after the kill, and how many of its rows were answered.

    Medians, because a machine with other work stops everything for a moment before the kill as after it. Recovered is
    the end of the first `STEADY_WINDOWS` windows of which at least half are fast again; 0 where the first are.
    """
    times, rows = np.asarray(ended_s), np.asarray(answered, dtype=np.float64)

    def rates(start_s: float, end_s: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        edges = np.arange(start_s, end_s + WINDOW_S / 2, WINDOW_S)
        return np.histogram(times, bins=edges, weights=rows)[0] / WINDOW_S

    begun_s = times[0] / 2  # the first half warms up
    before = float(np.median(rates(begun_s - begun_s % WINDOW_S, 0.0)))
    after = rates(0.0, times[-1] - times[-1] % WINDOW_S)
    steady = (np.median(after[at : at + STEADY_WINDOWS]) for at in range(len(after) - STEADY_WINDOWS + 1))
    first = next((at for at, rate in enumerate(steady) if rate >= RECOVERED_SHARE * before), math.inf)
    answered_s = times[rows > 0]
    pauses_s = np.diff(answered_s, append=times[-1])[answered_s >= answered_s[answered_s < 0].max(initial=-math.inf)]
    return Recovery(
        before,
        float(np.median(after[len(after) // 2 :])),
        (first + STEADY_WINDOWS) * WINDOW_S if first else 0.0,
        float(pauses_s.max()),
    )


def _describe(learner: _Learner, killed_at_s: float, seed: int) -> dict[str, Any]:
    times = [at - killed_at_s for at in learner.ended_s]
    rows = learner.answered
    found = measure_recovery(times, rows)
    halves = range(int(times[0] / WINDOW_S), int(times[-1] / WINDOW_S))
    return {
        "experiment": "failure",
        "seed": seed,
        "servers": SERVERS,
        "batches": len(times),
        "rows_without_answer": sum(ROWS - one for one in rows),
        "rows_per_s_before": found.before,
        "rows_per_s_at_the_end": found.after,
        "longest_pause_s": found.longest_pause_s,
        "loss_first": learner.losses[0],
        "loss_at_the_end": float(np.nanmedian(learner.losses[-20:])),
        "verdict": {
            "rows_not_finite": {"value": learner.not_finite, "target": "0", "met": learner.not_finite == 0},
            "recovered_after_s": {
                "value": found.recovered_after_s if math.isfinite(found.recovered_after_s) else None,
                "target": f"at most {RECOVERED_WITHIN_S:g}",
                "met": found.recovered_after_s <= RECOVERED_WITHIN_S,
            },
        },
        "rates": [
            [at * WINDOW_S, sum(n for t, n in zip(times, rows, strict=True) if at <= t / WINDOW_S < at + 1) / WINDOW_S]
            for at in halves
        ],
    }


def failure_tables(found: dict[str, Any]) -> list[Table]:
    """The numbers for people."""
    rows: Sequence[Sequence[str]] = [
        ["rows without an answer, each said", str(found["rows_without_answer"])],
        ["rows/s before", f"{found['rows_per_s_before']:.0f}"],
        ["rows/s at the end", f"{found['rows_per_s_at_the_end']:.0f}"],
        ["longest time without a batch after the kill, s", f"{found['longest_pause_s']:.2f}"],
        ["loss of the first batch", f"{found['loss_first']:.3f}"],
        ["loss at the end", f"{found['loss_at_the_end']:.3f}"],
    ]
    verdicts = [
        [
            name.replace("_", " "),
            "never" if one["value"] is None else f"{one['value']:g}",
            one["target"],
            "yes" if one["met"] else "NO",
        ]
        for name, one in found["verdict"].items()
    ]
    return [
        Table(f"One of {found['servers']} servers killed (seed {found['seed']})", ("what", ">value"), rows),
        Table("Promised", ("what", ">value", "target", "met"), verdicts),
    ]
