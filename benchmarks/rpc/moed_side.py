"""The workloads as moed runs them: each method measures one repeat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
import trio

from moed.daemon.expert_transport import Place, ThreadTransport
from moed.daemon.network.peers import Peer, Peers
from moed.daemon.remote_experts import ExpertClient
from moed.models.hosted_layer import open_layer
from moed.models.remote import RemoteExpert
from moed.models.remote_mixture import RemoteMixture
from moed.protocol.addresses import Address
from moed.protocol.identity import Identity, NodeId

from .server import NETWORK_ID, open_receipts, spec_of

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


class ServerProcess:
    """`benchmarks.rpc.server` in its own process."""

    def __init__(self, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.rpc.server", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        ready = json.loads(self.process.stdout.readline())
        self.place = Place(Address("127.0.0.1", ready["port"]), NodeId(bytes.fromhex(ready["node_id"])))

    def kill(self) -> None:
        """SIGKILL; returns once the process is gone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it in order."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.stop()


def proportional_mib(pid: int) -> float:
    """The proportional set size of one process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


@dataclass(frozen=True, slots=True)
class Latency:
    """Of one repeat, in milliseconds."""

    p50_ms: float
    p99_ms: float


class Caller:
    """A client process: sessions and calls under trio, run to the end of each measurement."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def run(self, measure: Callable[[ExpertClient, Peer], Awaitable[Any]]) -> Any:
        """Connect, call ``measure``, disconnect; returns what it returned."""
        return trio.run(self._run, measure)

    async def _run(self, measure: Callable[[ExpertClient, Peer], Awaitable[Any]]) -> Any:
        identity = Identity(os.urandom(32))
        receipts = open_receipts(identity)
        peers = Peers(identity, NETWORK_ID, handlers=receipts.handlers(), receipts=receipts)
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(peers.run, []))
            nursery.start_soon(receipts.run)
            peer = await peers.connect(self._place.address, self._place.node_id, timeout_s=10)
            result = await measure(ExpertClient(lambda _expert: [peer]), peer)
            nursery.cancel_scope.cancel()
        return result


async def small_calls(client: ExpertClient, _peer: Peer, *, calls: int) -> Latency:
    """Sequential calls of the identity expert, one row of 1,024 floats."""
    x = np.random.default_rng(1).standard_normal((1, 1024), dtype=np.float32)
    took = []
    for _ in range(calls // 4 + calls):
        began = time.perf_counter()
        await client.forward("identity", x, deadline_s=DEADLINE_S)
        took.append((time.perf_counter() - began) * 1e3)
    took = took[calls // 4 :]
    return Latency(percentile(took, 0.5), percentile(took, 0.99))


async def large_calls(client: ExpertClient, peer: Peer, *, mib: int, calls: int, hashed: bool = False) -> float:
    """Sequential calls of ``mib`` MiB in and as much out; returns MB/s, in and out together.

    ``hashed``: both ends hash every message, for the receipt.
    """
    client = ExpertClient(lambda _expert: [peer], hashed=True) if hashed else client
    x = np.random.default_rng(mib).standard_normal((mib * 256, 1024), dtype=np.float32)
    took = 0.0
    for number in range(calls + 3):
        began = time.perf_counter()
        answer = await client.forward("identity", x, deadline_s=DEADLINE_S)
        if number >= 3:
            took += time.perf_counter() - began
        if not np.array_equal(answer.rows, x):
            raise AssertionError("an answer differs from what was sent")
        del answer  # its buffer is used for the next one
    return 2 * x.nbytes * calls / took / 1e6


async def mixed_sizes(client: ExpertClient, _peer: Peer, *, calls: int, seed: int) -> int:
    """Calls of 1 to 64 MiB, all sizes of a logarithmic scale alike; returns how many failed or came back wrong."""
    generator = np.random.default_rng(seed)
    source = generator.standard_normal((64 * 256, 1024), dtype=np.float32)
    failed = 0
    for _ in range(calls):
        x = source[: int(256 * 64 ** generator.random())]
        try:
            answer = await client.forward("identity", x, deadline_s=DEADLINE_S)
            failed += not np.array_equal(answer.rows, x)
            del answer
        except Exception as error:  # what is counted here is any failure at all
            print(f"failed: {error!r}", file=sys.stderr)
            failed += 1
    return failed


async def concurrent_calls(client: ExpertClient, _peer: Peer, *, expert: str, in_flight: int, calls: int) -> float:
    """One row a call, so many at once; returns calls per second."""
    x = np.random.default_rng(2).standard_normal((1, 1024), dtype=np.float32)

    async def worker(count: int) -> None:
        for _ in range(count):
            await client.forward(expert, x, deadline_s=DEADLINE_S)

    async def all_of(count: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(in_flight):
                nursery.start_soon(worker, count)

    await all_of(2)
    began = time.perf_counter()
    await all_of(calls // in_flight)
    return calls // in_flight * in_flight / (time.perf_counter() - began)


STORM = """
import socket, sys, time
port, seconds = int(sys.argv[1]), float(sys.argv[2])
end, count = time.monotonic() + seconds, 0
while time.monotonic() < end:
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex(("127.0.0.1", port))
    one.close()
    count += 1
print(count / seconds)
"""


@dataclass(frozen=True, slots=True)
class Storm:
    """What a flood of connections from one core does: its rate, and an honest peer's calls before and during it."""

    connects_per_s: float
    quiet_p50_ms: float
    storm_p50_ms: float
    grown_mib: float


def storm(threads: int, seconds: float) -> Storm:
    """Connections as fast as one core makes them, each dropped at once, while a session's calls go on."""
    with ServerProcess("identity=identity:1024", "--threads", str(threads)) as server:
        caller = Caller(server.place)
        quiet: Latency = caller.run(partial(small_calls, calls=400))
        before = proportional_mib(server.process.pid)
        rate, during_ms = caller.run(partial(_calls_in_storm, port=server.place.address.port, seconds=seconds))
        grown = proportional_mib(server.process.pid) - before
    return Storm(rate, quiet.p50_ms, during_ms, grown)


async def _calls_in_storm(client: ExpertClient, peer: Peer, *, port: int, seconds: float) -> tuple[float, float]:
    """Connections a second, and the p50 of the calls meanwhile in milliseconds."""
    await small_calls(client, peer, calls=20)
    command = [sys.executable, "-c", STORM, str(port), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: ASYNC220  # a millisecond, before what is timed
    took = []
    x = np.zeros((1, 1024), np.float32)
    while process.poll() is None:
        began = time.perf_counter()
        await client.forward("identity", x, deadline_s=DEADLINE_S)
        took.append((time.perf_counter() - began) * 1e3)
    assert process.stdout is not None
    return float(process.stdout.read()), percentile(took, 0.5)


def module_calls(expert: RemoteExpert, calls: int) -> Latency:
    """Sequential calls through the torch module, which hands each to the transport's thread."""
    x = torch.randn(1, 1024)
    took = []
    with torch.no_grad():
        for _ in range(calls // 4 + calls):
            began = time.perf_counter()
            expert(x)
            took.append((time.perf_counter() - began) * 1e3)
    took = took[calls // 4 :]
    return Latency(percentile(took, 0.5), percentile(took, 0.99))


def learning_rate(module: Callable[[torch.Tensor], torch.Tensor], steps: int) -> float:
    """Forward and backward of 64 rows through ``module``; steps per second."""
    x = torch.randn(64, 1024, requires_grad=True)
    began = 0.0
    for number in range(steps + 2):
        if number == 2:
            began = time.perf_counter()
        x.grad = None
        torch.autograd.backward(module(x).sum())
    return steps / (time.perf_counter() - began)


def local_learning_rate(steps: int, folder: Path, threads: int) -> float:
    """The same work without a network: the same layer's forward and backward calls, in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    layer = open_layer(spec_of("local=ffn:1024"), folder, seed=7)
    x = np.random.default_rng(3).standard_normal((64, 1024), dtype=np.float32)
    gradients = np.ones_like(x)
    began = 0.0
    for number in range(steps + 2):
        if number == 2:
            began = time.perf_counter()
        layer.forward(x)
        layer.backward(x, gradients)
    torch.set_num_threads(before)
    return steps / (time.perf_counter() - began)


GRID = [f"grid.{row}.{column}" for row in range(4) for column in range(4)]


def grid_samples(mixture: RemoteMixture, batches: int) -> float:
    """Forward and backward of 64 rows of 256 through the top 4 of a 4 x 4 grid; samples per second."""
    x = torch.randn(64, 256, requires_grad=True)
    began = 0.0
    for number in range(batches + 2):
        if number == 2:
            began = time.perf_counter()
        x.grad = None
        mixture.zero_grad()
        torch.autograd.backward(mixture(x).sum())
    return 64 * batches / (time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class Killed:
    """What one of two servers killed does to a caller."""

    error_after_kill_ms: float
    error_after_death_ms: float
    next_call_ms: float
    bad_rows: int


def kill_one(threads: int) -> Killed:
    """Two servers of the same identity experts: calls are under way on the first when it is killed."""
    with (
        ServerProcess("one=identity:1024", "--threads", str(threads)) as first,
        ServerProcess("two=identity:1024", "--threads", str(threads)) as second,
    ):
        killed: Killed = trio.run(_kill_one, first, second)
        return killed


async def _kill_one(first: ServerProcess, second: ServerProcess) -> Killed:
    peers = Peers(Identity(os.urandom(32)), NETWORK_ID)
    x = np.zeros((1, 1024), np.float32)
    big = np.zeros((8192, 1024), np.float32)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(peers.run, []))
        places = [await peers.connect(one.place.address, one.place.node_id, timeout_s=10) for one in (first, second)]
        alive = ExpertClient(
            lambda name: [peer for peer in places[:1] if name == "one" and peers.get(peer.node_id)] or places[1:]
        )
        for _ in range(50):
            await alive.forward("one", x, deadline_s=DEADLINE_S)
        failed_at: list[float] = []
        failed = trio.Event()

        async def call_until_it_fails() -> None:
            try:
                while True:
                    await places[0].call("expert.forward", {"expert": "one"}, [big], deadline_s=DEADLINE_S)
            except Exception:  # whichever error it is, when it came is what counts
                failed_at.append(time.perf_counter())
                failed.set()

        nursery.start_soon(call_until_it_fails)
        await trio.sleep(0.2)
        killed_at = time.perf_counter()
        first.process.kill()
        await trio.to_thread.run_sync(first.process.wait)
        died_at = time.perf_counter()
        await failed.wait()
        began = time.perf_counter()
        answer = await alive.forward("two", x, deadline_s=DEADLINE_S)
        took = time.perf_counter() - began
        bad = int(np.isnan(answer.rows).any(axis=1).sum())
        nursery.cancel_scope.cancel()
    return Killed((failed_at[0] - killed_at) * 1e3, max(failed_at[0] - died_at, 0.0) * 1e3, took * 1e3, bad)


def open_transport(*servers: ServerProcess) -> ThreadTransport:
    """A transport with a session to each server."""
    return ThreadTransport(Identity(os.urandom(32)), NETWORK_ID, [server.place for server in servers])
