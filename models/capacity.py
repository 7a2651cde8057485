"""Measures what this machine's devices and experts can do: nothing here is typed in or looked up in a table."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from moed.protocol.codec import Record

# The whole benchmark of one device: half for each of its two measurements, the allocations included.
DEVICE_BUDGET_S = 0.4
_MATMUL_SIZE = {"cpu": 384, "cuda": 4096}
_COPY_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}


class DeviceCapacity(Record, frozen=True):
    """One device as measured: ``matmul_flops_per_s`` by dtype counts a multiply and an add as two operations,
    ``copy_bytes_per_s`` counts each byte copied once."""

    kind: str
    index: int
    name: str
    compute_capability: str | None
    memory_total_bytes: int
    memory_free_bytes: int
    matmul_flops_per_s: dict[str, int]
    copy_bytes_per_s: int


class ExpertThroughput(Record, frozen=True):
    """One expert as measured, for full batches of ``rows`` rows of ``length`` bytes."""

    rows: int
    length: int
    forwards_per_s: float
    parameter_count: int
    parameter_bytes: int


def measure_devices(budget_s: float = DEVICE_BUDGET_S) -> tuple[DeviceCapacity, ...]:
    """Measure every CUDA device, or the CPU where there is none; about ``budget_s`` each."""
    if not torch.cuda.is_available():
        return (_measure_cpu(budget_s),)
    return tuple(_measure_cuda(index, budget_s) for index in range(torch.cuda.device_count()))


def _measure_cpu(budget_s: float) -> DeviceCapacity:
    total, free = host_memory_bytes()
    return DeviceCapacity(
        kind="cpu",
        index=0,
        name=_cpu_name()[:64],
        compute_capability=None,
        memory_total_bytes=total,
        memory_free_bytes=free,
        matmul_flops_per_s={"float32": _matmul_flops_per_s("cpu", torch.float32, budget_s / 2)},
        copy_bytes_per_s=_copy_bytes_per_s("cpu", budget_s / 2),
    )


def _measure_cuda(index: int, budget_s: float) -> DeviceCapacity:
    device = f"cuda:{index}"
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    dtypes = (torch.float32, torch.bfloat16)
    return DeviceCapacity(
        kind="cuda",
        index=index,
        name=str(properties.name)[:64],
        compute_capability=f"{properties.major}.{properties.minor}",
        memory_total_bytes=total,
        memory_free_bytes=free,
        matmul_flops_per_s={
            str(dtype).removeprefix("torch."): _matmul_flops_per_s(device, dtype, budget_s / 4) for dtype in dtypes
        },
        copy_bytes_per_s=_copy_bytes_per_s(device, budget_s / 2),
    )


def _rate_per_s(work: Callable[[], object], settle: Callable[[], object], budget_s: float) -> float:
    """How often ``work`` runs in a second: the best of several rounds, as others share the machine."""
    work()  # the first run pays for allocation and kernel choice
    settle()
    best_s = float("inf")
    ends = time.perf_counter() + budget_s
    while True:
        began = time.perf_counter()
        work()
        settle()
        now = time.perf_counter()
        best_s = min(best_s, now - began)
        if now >= ends:
            return 1 / max(best_s, 1e-9)


def _settle(device: str) -> Callable[[], object]:
    """What waits for the device's queue: nothing on the CPU, which has none."""
    return (lambda: torch.cuda.synchronize(device)) if device.startswith("cuda") else (lambda: None)


def _matmul_flops_per_s(device: str, dtype: torch.dtype, budget_s: float) -> int:
    size = _MATMUL_SIZE[device.split(":")[0]]
    left = torch.ones(size, size, device=device, dtype=dtype)
    out = torch.empty_like(left)
    rate = _rate_per_s(lambda: torch.mm(left, left, out=out), _settle(device), budget_s)
    return int(rate * 2 * size**3)


def _copy_bytes_per_s(device: str, budget_s: float) -> int:
    size = _COPY_BYTES[device.split(":")[0]]
    source = torch.ones(size, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return int(_rate_per_s(lambda: target.copy_(source), _settle(device), budget_s) * size)


def measure_expert(
    module: nn.Module, *, rows: int, length: int, budget_s: float = 0.3, device: str = "cpu"
) -> ExpertThroughput:
    """Measure ``module`` on full batches of random bytes; at least two forwards, then as many as fit the budget."""
    tokens = torch.from_numpy(np.random.default_rng(0).integers(256, size=(rows, length), dtype=np.uint8)).to(device)

    def forward() -> object:
        with torch.inference_mode():
            return module(tokens)

    return ExpertThroughput(
        rows=rows,
        length=length,
        forwards_per_s=_rate_per_s(forward, _settle(device), budget_s),
        parameter_count=sum(p.numel() for p in module.parameters()),
        parameter_bytes=sum(p.numel() * p.element_size() for p in module.parameters()),
    )


def host_memory_bytes() -> tuple[int, int]:
    """(total, free) memory that this process may use: the machine's, or its control group's where that is less."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    free = _available_bytes() or os.sysconf("SC_AVPHYS_PAGES") * page
    limit, used = (_read_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is not None and limit < total:
        total, free = limit, min(free, max(0, limit - (used or 0)))
    return total, free


def _available_bytes() -> int | None:
    """What the kernel could give without swapping; more than what is unused, because caches can be dropped."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" where there is no limit


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name") and ":" in line]
    return names[0] if names else platform.machine() or "cpu"
