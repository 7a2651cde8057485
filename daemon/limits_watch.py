"""What the daemon takes of its machine, measured again and again, and a stop in order where that is over its limit."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
import trio

from .config import Config
from .errors import LimitReached
from .network.traffic import Moved, PeerClass

logger = structlog.get_logger()

LOOK_EVERY_S = 1.0
DISK_EVERY_S = 15.0
LAGS_KEPT = 60
WARN_SHARE = 0.9
MIB = 1 << 20
SLOW_LOOP_S = 0.5
"""A turn of the event loop that took longer is worth a line: peers give up on one that is stuck."""
LEAST_FREE_BYTES = 64 * MIB
"""With less than this free on its disk the daemon stops before a write fails in the middle of something else."""


class LimitsWatch:
    """Measures memory, disk, descriptors and the event loop's lag; `config` is asked each time, so limits are live."""

    def __init__(self, config: Callable[[], Config], *, traffic: Callable[[], Mapping[PeerClass, Moved]]) -> None:
        """``traffic`` gives the bytes over sessions since the start, by what the peer is."""
        self._config = config
        self._traffic = traffic
        self._disk_bytes = 0
        self._free_bytes = 0
        self._lags_s: deque[float] = deque([0.0], maxlen=LAGS_KEPT)
        self._warned: set[str] = set()

    async def run(self) -> None:
        """Look until cancelled. Raises `LimitReached` when memory or disk is over its limit."""
        next_disk = trio.current_time()
        while True:
            if trio.current_time() >= next_disk:
                await trio.to_thread.run_sync(self._look_at_disk)
                next_disk = trio.current_time() + DISK_EVERY_S
            limits = self._config().limits
            self._check("memory", "memory_mib", resident_bytes(), limits.memory_mib)
            self._check("disk", "disk_mib", self._disk_bytes, limits.disk_mib)
            if self._free_bytes < LEAST_FREE_BYTES:
                raise LimitReached(
                    f"the disk of {self._config().home} has {self._free_bytes // MIB} MiB left",
                    "free some space and start moed again",
                )
            before = time.perf_counter()
            await trio.sleep(LOOK_EVERY_S)
            lag_s = max(time.perf_counter() - before - LOOK_EVERY_S, 0.0)
            self._lags_s.append(lag_s)
            if lag_s > SLOW_LOOP_S:
                logger.warning("node.loop_slow", lag_ms=round(lag_s * 1000))

    def _look_at_disk(self) -> None:
        home = self._config().home
        self._disk_bytes = folder_bytes(home)
        self._free_bytes = shutil.disk_usage(home).free

    def _check(self, what: str, key: str, used: int, limit_mib: int | None) -> None:
        if limit_mib is None:
            return
        share = used / (limit_mib * MIB)
        if share > 1:
            raise LimitReached(
                f"{what} is {used // MIB} MiB, over the limit of {limit_mib} MiB", f"raise limits.{key}, or serve less"
            )
        if share > WARN_SHARE and what not in self._warned:
            logger.warning("limits.near", what=what, used_mib=used // MIB, limit_mib=limit_mib)
        (self._warned.add if share > WARN_SHARE else self._warned.discard)(what)

    def resources(self) -> dict[str, Any]:
        """What is used now, beside its limit where there is one."""
        config = self._config()
        open_files = len(os.listdir("/proc/self/fd"))
        times = os.times()
        lags = sorted(self._lags_s)
        traffic = self._traffic()
        return {
            "memory": {"used_bytes": resident_bytes(), "limit_bytes": _bytes(config.limits.memory_mib)},
            "disk": {
                "used_bytes": self._disk_bytes,
                "limit_bytes": _bytes(config.limits.disk_mib),
                "free_bytes": self._free_bytes,
            },
            "files": {"used": open_files, "limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0]},
            "cpu": {
                "seconds": round(times.user + times.system, 2),
                "threads": threading.active_count(),
                "torch_threads": config.compute.torch_threads,
            },
            "gpu": {"memory_share": config.limits.gpu_memory_share, "used_bytes": gpu_bytes()},
            "network": {
                "sent_bytes": sum(moved.sent for moved in traffic.values()),
                "received_bytes": sum(moved.received for moved in traffic.values()),
                "upload_limit_bytes_per_s": _bytes(config.limits.upload_kib_per_s, 1024),
                "download_limit_bytes_per_s": _bytes(config.limits.download_kib_per_s, 1024),
            },
            "peer_bytes": {
                one.value: {"sent": moved.sent, "received": moved.received} for one, moved in traffic.items()
            },
            "loop_lag_ms": {
                "median": round(lags[len(lags) // 2] * 1000, 2),
                "max": round(lags[-1] * 1000, 2),
            },
        }


def _bytes(limit: int | None, unit: int = MIB) -> int | None:
    return None if limit is None else limit * unit


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def gpu_bytes() -> int:
    """What torch holds of CUDA devices' memory; 0 where no role has loaded torch, or there is no device."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(int(torch.cuda.memory_reserved(device)) for device in range(torch.cuda.device_count()))


def folder_bytes(folder: Path) -> int:
    """What the files under ``folder`` take on the disk."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
            except FileNotFoundError:  # SQLite's own files come and go
                continue
    return total
