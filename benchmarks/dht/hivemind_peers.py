"""hivemind's DHT on loopback, where it is installed: each peer is a process of its own, as hivemind is run."""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import secrets
import time
from pathlib import Path
from typing import Any

from .loopback import Loopback

LOOPBACK = {
    "host_maddrs": ["/ip4/127.0.0.1/tcp/0"],
    "nat_port_map": False,
    "auto_nat": False,
    "use_relay": False,
    "use_auto_relay": False,
}
VALUE_BYTES = 300
"""About as much as our signed record of one address."""


def is_installed() -> bool:
    return importlib.util.find_spec("hivemind") is not None


class HivemindPeers:
    """``count`` peers, each joined through up to three of those before it; `close` ends their processes."""

    def __init__(self, count: int, result: Loopback) -> None:
        self._hivemind: Any = importlib.import_module("hivemind")
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
            is_stored = owner.store(key, value, self._hivemind.get_dht_time() + 600)
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
