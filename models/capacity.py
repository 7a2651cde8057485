"""Measures what this machine's devices and experts can do: nothing here is typed in or looked up in a table."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from moed.protocol.codec import Record

from .device import CPU, Device, cuda_devices

# The whole benchmark of one device: half for each of its two measurements, the allocations included.
DEVICE_BUDGET_S = 0.4
_MATMUL_SIZE = {"cpu": 384, "cuda": 4096}
_COPY_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
# bfloat16 on a CPU without instructions for it is no product that anybody would run there, and slow to find out
_DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.bfloat16, torch.float16)}


class DeviceCapacity(Record, frozen=True):
    """One device as measured: ``matmul_flops_per_s`` by dtype counts a multiply and an add as two operations,
    ``copy_bytes_per_s`` is within its memory and ``upload_bytes_per_s`` to a GPU from the host's pinned memory; each
    byte counts once."""

    kind: str
    index: int
    name: str
    compute_capability: str | None
    memory_total_bytes: int
    memory_free_bytes: int
    matmul_flops_per_s: dict[str, int]
    copy_bytes_per_s: int
    upload_bytes_per_s: int | None


class ExpertThroughput(Record, frozen=True):
    """One expert as measured, for full batches of ``rows`` rows of ``length`` bytes."""

    rows: int
    length: int
    forwards_per_s: float
    parameter_count: int
    parameter_bytes: int


def measure_devices(budget_s: float = DEVICE_BUDGET_S) -> tuple[DeviceCapacity, ...]:
    """Measure every CUDA device, or the CPU where there is none; about ``budget_s`` each."""
    return tuple(_measure(device, index, budget_s) for index, device in enumerate(cuda_devices() or (CPU,)))


def _measure(device: Device, index: int, budget_s: float) -> DeviceCapacity:
    # before the measurements, which take some of it
    total, free = device.memory_bytes()
    kind = "cuda" if device.is_cuda else "cpu"
    dtypes = _DTYPES[kind]
    return DeviceCapacity(
        kind=kind,
        index=index,
        name=device.model_name[:64],
        compute_capability=device.compute_capability,
        memory_total_bytes=total,
        memory_free_bytes=free,
        matmul_flops_per_s={
            str(dtype).removeprefix("torch."): _matmul_flops_per_s(device, dtype, budget_s / 2 / len(dtypes))
            for dtype in dtypes
        },
        copy_bytes_per_s=_copy_bytes_per_s(device, budget_s / 4),
        upload_bytes_per_s=_upload_bytes_per_s(device, budget_s / 4) if device.is_cuda else None,
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


def _matmul_flops_per_s(device: Device, dtype: torch.dtype, budget_s: float) -> int:
    size = _MATMUL_SIZE[device.torch_device.type]
    left = torch.ones(size, size, device=device.torch_device, dtype=dtype)
    out = torch.empty_like(left)
    rate = _rate_per_s(lambda: torch.mm(left, left, out=out), device.settle, budget_s)
    return int(rate * 2 * size**3)


def _copy_bytes_per_s(device: Device, budget_s: float) -> int:
    size = _COPY_BYTES[device.torch_device.type]
    source = torch.ones(size, device=device.torch_device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return int(_rate_per_s(lambda: target.copy_(source), device.settle, budget_s) * size)


def _upload_bytes_per_s(device: Device, budget_s: float) -> int:
    size = _COPY_BYTES["cpu"]
    source = torch.ones(size, dtype=torch.uint8).pin_memory()
    target = torch.empty(size, device=device.torch_device, dtype=torch.uint8)
    return int(_rate_per_s(lambda: target.copy_(source, non_blocking=True), device.settle, budget_s) * size)


def measure_expert(
    module: nn.Module, *, rows: int, length: int, budget_s: float = 0.3, device: Device = CPU
) -> ExpertThroughput:
    """Measure ``module`` on full batches of random bytes; at least two forwards, then as many as fit the budget."""
    tokens = device.put(np.random.default_rng(0).integers(256, size=(rows, length), dtype=np.uint8))

    def forward() -> object:
        with torch.inference_mode(), device.computing():
            return module(tokens)

    return ExpertThroughput(
        rows=rows,
        length=length,
        forwards_per_s=_rate_per_s(forward, device.settle, budget_s),
        parameter_count=sum(p.numel() for p in module.parameters()),
        parameter_bytes=sum(p.numel() * p.element_size() for p in module.parameters()),
    )
