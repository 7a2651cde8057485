"""hivemind's DHT on loopback, where it is installed: each peer is a process of its own, as hivemind is run.

All of it runs below one process of its own (`Anchor` talks to it in lines of JSON), because each peer is a fork of the
process that starts it: that should be small, and hold no event loop of ours.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import secrets
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .results import Loopback

LOOPBACK = {
    "host_maddrs": ["/ip4/127.0.0.1/tcp/0"],
    "nat_port_map": False,
    "auto_nat": False,
    "use_relay": False,
    "use_auto_relay": False,
}
VALUE_BYTES = 300
"""About as much as our signed record of one address."""


class Anchor:
    """The process with ``count`` peers, run by ``python``; `close` ends it and them."""

    def __init__(self, python: str, count: int) -> None:
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.dht.hivemind_peers", str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()  # its peers have joined

    def measure(self, keys: int, warmup: int) -> Loopback:
        """One repeat."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{keys} {warmup}\n")
        self._process.stdin.flush()
        return Loopback(**json.loads(self._read()))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _read(self) -> str:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                return line
        raise RuntimeError("the process with the hivemind peers ended")


class HivemindPeers:
    """``count`` peers, each joined through up to three of those before it; `close` ends their processes."""

    def __init__(self, count: int, result: Loopback) -> None:
        self._hivemind: Any = importlib.import_module("hivemind")
        self._now_s: Any = importlib.import_module("hivemind.utils").get_dht_time
        self._rng = random.Random(count)
        self._peers: list[Any] = []
        for _ in range(count):
            doors = [
                str(address)
                for peer in self._rng.sample(self._peers, min(3, len(self._peers)))
                for address in peer.get_visible_maddrs()
            ]
            started = time.perf_counter()
            self._peers.append(self._hivemind.DHT(initial_peers=doors, start=True, **LOOPBACK))
            result.join_ms.append((time.perf_counter() - started) * 1000)

    def measure(self, keys: int, warmup: int, result: Loopback) -> None:
        """Store and get ``keys`` values, each by random peers, one call after the other."""
        for number in range(warmup + keys):
            key, value = secrets.token_hex(16), secrets.token_bytes(VALUE_BYTES)
            owner = self._rng.choice(self._peers)
            started = time.perf_counter()
            is_stored = owner.store(key, value, self._now_s() + 600)
            store_ms = (time.perf_counter() - started) * 1000
            seeker = self._rng.choice([each for each in self._peers if each is not owner])
            started = time.perf_counter()
            found = seeker.get(key)
            get_ms = (time.perf_counter() - started) * 1000
            if number >= warmup:
                result.store_ms.append(store_ms)
                result.get_ms.append(get_ms)
                result.failed += not (is_stored and found is not None and found.value == value)
        result.memory_mib = sum(_tree_pss_mib(peer.pid) for peer in self._peers) / len(self._peers)

    def close(self) -> None:
        for peer in self._peers:
            peer.shutdown()


def _tree_pss_mib(root: int) -> float:
    """The proportional memory of a process and all below it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(folder.name))
    total, todo = 0.0, [root]
    while todo:
        pid = todo.pop()
        todo += children.get(pid, [])
        try:
            lines = (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return total if os.path.exists(f"/proc/{root}") else 0.0


def main() -> None:
    """Serve one `Anchor`: a line "keys warmup" in, a line of JSON out, until the input ends."""
    joined = Loopback()
    peers = HivemindPeers(int(sys.argv[1]), joined)
    try:
        print("{}", flush=True)
        for line in sys.stdin:
            keys, warmup = map(int, line.split())
            result = Loopback(join_ms=joined.join_ms)
            peers.measure(keys, warmup, result)
            print(json.dumps(asdict(result)), flush=True)
    finally:
        peers.close()


if __name__ == "__main__":
    main()
