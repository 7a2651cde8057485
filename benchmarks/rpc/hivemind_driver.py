"""hivemind 1.1.12 under the same workloads, in a process (and if need be an environment) of its own.

``serve UID=CLASS:WIDTH ...`` is a server; ``drive`` starts servers, then measures what each line on standard input asks
for and prints one line of JSON for it. Nothing of moed is imported, so any environment with hivemind runs this file.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hivemind
import torch
from hivemind.compression import serialize_torch_tensor
from hivemind.moe import get_experts
from hivemind.moe.client.expert import expert_forward
from hivemind.moe.client.remote_expert_worker import RemoteExpertWorker
from hivemind.moe.server import ModuleBackend, Server
from hivemind.moe.server.layers import name_to_block, name_to_input
from hivemind.utils.nested import nested_flatten
from hivemind.utils.tensor_descr import BatchTensorDescriptor

LOOPBACK: dict[str, Any] = {
    "host_maddrs": ["/ip4/127.0.0.1/tcp/0"],
    "nat_port_map": False,
    "auto_nat": False,
    "use_relay": False,
    "use_auto_relay": False,
}
HANDLERS = 8  # hivemind's default for one expert
MAX_BATCH = 1 << 14


def serve(specs: Sequence[str], peers: Sequence[str]) -> None:
    """A server until standard input ends."""
    dht = hivemind.DHT(initial_peers=list(peers), start=True, **LOOPBACK)
    backends = {}
    for spec in specs:
        uid, _, what = spec.partition("=")
        kind, _, width = what.partition(":")
        module = name_to_block[kind](int(width))
        backends[uid] = ModuleBackend(
            name=uid,
            module=module,
            args_schema=(BatchTensorDescriptor.from_tensor(name_to_input[kind](3, int(width))),),
            optimizer=torch.optim.Adam(module.parameters()),
            min_batch_size=1,
            max_batch_size=MAX_BATCH,
        )
    server = Server(dht, backends, num_connection_handlers=HANDLERS, device="cpu", start=True)
    print(json.dumps([str(address) for address in dht.get_visible_maddrs()]), flush=True)
    sys.stdin.buffer.read()
    server.shutdown()
    server.join()


def descendants(pid: int) -> list[int]:
    """``pid`` and every process below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


class Servers:
    """Server processes, ended in order or else by signal, down to the last child."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *specs: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, __file__, "serve", *specs, "--peers", *self.addresses[:1]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        self._processes.append(process)
        self.addresses += json.loads(process.stdout.readline())
        return process

    def stop(self) -> None:
        pids = [pid for process in self._processes for pid in descendants(process.pid)]
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        time.sleep(0.5)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


class Driver:
    """Measures one repeat of a workload at a time."""

    def __init__(self) -> None:
        self.servers = Servers()
        self.main = self.servers.start("nop.0=nop:1024", "ffn.0=ffn:1024")
        self.dht = hivemind.DHT(initial_peers=self.servers.addresses[:1], start=True, client_mode=True, **LOOPBACK)
        self.identity, self.ffn = get_experts(self.dht, ["nop.0", "ffn.0"])
        self._mixture: Any = None

    def small_calls(self, calls: int) -> list[float]:
        x, took = torch.randn(1, 1024), []
        with torch.no_grad():
            for _ in range(calls + calls // 4):
                began = time.perf_counter()
                self.identity(x)
                took.append((time.perf_counter() - began) * 1e3)
        took = took[calls // 4 :]
        return [percentile(took, 0.5), percentile(took, 0.99)]

    def large_calls(self, mib: int, calls: int) -> dict[str, Any]:
        """MB/s over the calls that came back; replies cut short raise, and are counted."""
        x, took, good, failed = torch.randn(mib * 256, 1024), 0.0, 0, 0
        for number in range(calls + 1):
            began = time.perf_counter()
            try:
                with torch.no_grad():
                    answer = self.identity(x)
            except Exception:  # whatever hivemind raises: what is counted is that the call failed
                failed += 1
                continue
            if number:
                took, good = took + time.perf_counter() - began, good + 1
            if not torch.equal(answer, x):
                failed += 1
        return {"mb_per_s": 2 * x.nbytes * good / took / 1e6 if good else None, "failed": failed}

    def concurrent_calls(self, in_flight: int, calls: int) -> float:
        """The better of its two ways: threads that call the module, or coroutines on its own loop."""
        return max(self._by_threads(in_flight, calls), self._by_coroutines(in_flight, calls))

    def _by_threads(self, in_flight: int, calls: int) -> float:
        x = torch.randn(1, 1024)

        def worker() -> None:
            with torch.no_grad():
                for _ in range(calls // in_flight):
                    self.ffn(x)

        threads = [threading.Thread(target=worker) for _ in range(in_flight)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return calls // in_flight * in_flight / (time.perf_counter() - began)

    def _by_coroutines(self, in_flight: int, calls: int) -> float:
        x, places, futures = torch.randn(1, 1024), threading.Semaphore(in_flight), []
        compression = next(iter(nested_flatten(self.ffn.info["forward_schema"]))).compression
        began = time.perf_counter()
        for _ in range(calls):
            places.acquire()
            coroutine = expert_forward(self.ffn.uid, [x], [serialize_torch_tensor(x, compression)], self.ffn.stub)
            future = RemoteExpertWorker.run_coroutine(coroutine, return_future=True)
            future.add_done_callback(lambda _: places.release())
            futures.append(future)
        for future in futures:
            future.result()
        return calls / (time.perf_counter() - began)

    def learning_rate(self, steps: int) -> float:
        x = torch.randn(64, 1024, requires_grad=True)
        began = 0.0
        for number in range(steps + 2):
            if number == 2:
                began = time.perf_counter()
            x.grad = None
            self.ffn(x).sum().backward()
        return steps / (time.perf_counter() - began)

    def grid_samples(self, batches: int) -> float:
        if self._mixture is None:
            uids = [f"grid.{row}.{column}" for row in range(4) for column in range(4)]
            for part in (uids[0::2], uids[1::2]):
                self.servers.start(*(f"{uid}=ffn:256" for uid in part))
            deadline = time.perf_counter() + 60
            while any(expert is None for expert in get_experts(self.dht, uids)):
                if time.perf_counter() > deadline:
                    raise RuntimeError("the grid's experts did not appear")
                time.sleep(0.5)
            self._mixture = hivemind.RemoteMixtureOfExperts(
                in_features=256, grid_size=(4, 4), dht=self.dht, uid_prefix="grid.", k_best=4
            )
        x = torch.randn(64, 256, requires_grad=True)
        began = 0.0
        for number in range(batches + 1):
            if number == 1:
                began = time.perf_counter()
            x.grad = None
            self._mixture.zero_grad()
            self._mixture(x).sum().backward()
        return 64 * batches / (time.perf_counter() - began)

    def idle(self) -> list[float]:
        """A fresh server of one ffn expert, idle: MiB of proportional memory, and processes."""
        servers = Servers()
        process = servers.start("ffn.0=ffn:1024")
        time.sleep(3)
        pids = descendants(process.pid)
        total = 0
        for pid in pids:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        servers.stop()
        return [total / 1024, len(pids)]

    def close(self) -> None:
        self.dht.shutdown()
        self.servers.stop()


def drive() -> None:
    driver = Driver()
    print(json.dumps({"hivemind": hivemind.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        measure: Callable[..., Any] = getattr(driver, asked.pop("measure"))
        print(json.dumps(measure(**asked)), flush=True)
    driver.close()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        at = sys.argv.index("--peers")
        serve(sys.argv[2:at], sys.argv[at + 1 :])
    else:
        drive()
        os._exit(0)  # its own worker threads do not end
