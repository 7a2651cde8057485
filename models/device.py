"""The device that experts live on: where tensors go and come back from, what memory there is, what a failure means.

All that is particular to CUDA stands here. Everything runs on the device's current stream, in the order in which the
one worker thread asks for it; what comes from the host goes through pinned memory, so that the copy need not wait for
the work before it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .errors import ExpertFailed, ModelRefused, OutOfMemory

Rows = npt.NDArray[Any]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Device:
    """One device as torch names it. With ``precision`` bfloat16 the products of a forward pass are computed in that
    (autocast); weights, answers and training stay float32."""

    torch_device: torch.device
    precision: Precision = "float32"

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU, with memory of its own."""
        return self.torch_device.type == "cuda"

    @property
    def name(self) -> str:
        """As in the configuration: ``cpu`` or ``cuda:0``."""
        return str(self.torch_device)

    @property
    def model_name(self) -> str:
        """What its maker calls it."""
        return torch.cuda.get_device_name(self.torch_device) if self.is_cuda else _cpu_name()

    @property
    def compute_capability(self) -> str | None:
        """Of a CUDA device, as ``9.0``."""
        if not self.is_cuda:
            return None
        major, minor = torch.cuda.get_device_capability(self.torch_device)
        return f"{major}.{minor}"

    def memory_bytes(self) -> tuple[int, int]:
        """(total, free): of the GPU, or of the host for this process."""
        if not self.is_cuda:
            return host_memory_bytes()
        free, total = torch.cuda.mem_get_info(self.torch_device)
        return total, free

    def settle(self) -> None:
        """Wait until all that was asked of it is done; a CPU has no queue."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch_device)

    def put(self, rows: Rows) -> Tensor:
        """``rows`` on the device. On the CPU a tensor over the same memory, unless that is read-only."""
        # a copy of what is read-only, which torch would warn about; a GPU's copy goes over pinned memory
        if not self.is_cuda:
            return torch.from_numpy(rows if rows.flags.writeable else np.array(rows))
        return torch.from_numpy(np.array(rows)).pin_memory().to(self.torch_device, non_blocking=True)

    def fetch(self, tensor: Tensor) -> Rows:
        """The values of ``tensor`` on the host; on the CPU its own memory."""
        values: Rows = tensor.detach().cpu().numpy()
        return values

    def place(self, module: nn.Module) -> nn.Module:
        """``module`` with its weights on the device."""
        return module.to(self.torch_device) if self.is_cuda else module

    def computing(self) -> AbstractContextManager[Any]:
        """What a forward pass runs under."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.torch_device.type, dtype=torch.bfloat16)

    def release(self) -> None:
        """Give back what freed tensors held, so that a smaller batch finds it in one piece."""
        if self.is_cuda:
            torch.cuda.empty_cache()

    def failure(self, expert: str, error: RuntimeError | MemoryError) -> ExpertFailed:
        """What torch raised as what it means. After `OutOfMemory` the freed memory is there for a smaller batch."""
        if not is_out_of_memory(error):
            return ExpertFailed(f"expert {expert!r}: {error}")
        self.release()
        return OutOfMemory(f"expert {expert!r}: {error}")


CPU = Device(torch.device("cpu"))


def choose_device(wanted: str, precision: Precision = "float32") -> Device:
    """The device that ``[compute] device`` names; ``auto`` is the first GPU, or the CPU where there is none.

    Raises `ModelRefused` for one that this machine does not have.
    """
    count = torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and not count):
        return Device(torch.device("cpu"), precision)
    index = int(wanted.partition(":")[2] or 0)
    if index >= count:
        there = ", ".join(["cpu", *(f"cuda:{number}" for number in range(count))])
        raise ModelRefused(f"[compute] device = {wanted!r} is not on this machine, which has {there}")
    return Device(torch.device("cuda", index), precision)


def cuda_devices() -> tuple[Device, ...]:
    """Every GPU that torch can use."""
    return tuple(Device(torch.device("cuda", index)) for index in range(torch.cuda.device_count()))


def limit_gpu_memory(share: float) -> None:
    """Let torch take no more than ``share`` of any GPU's memory; beyond that is `OutOfMemory`."""
    for device in cuda_devices() if share < 1 else ():
        torch.cuda.set_per_process_memory_fraction(share, device.torch_device)


def is_out_of_memory(error: Exception) -> bool:
    """Torch tells of memory in three ways: two classes, and on the CPU by its words alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in words or "not enough memory" in words)


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights lie; the CPU for one that has none."""
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


class PeakMemory:
    """The most memory that tensors of ``device`` took since this was made, over what they took then.

    On a GPU torch counts it. On the CPU it is the peak of the process's resident memory, less the pages of code that
    came in meanwhile; `give_back_at_once` first, or it holds what the allocator kept as well.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._before = torch.cuda.memory_allocated(device.torch_device) if device.is_cuda else _resident()[0]
        self._code_before = 0 if device.is_cuda else _resident()[1]
        if device.is_cuda:
            torch.cuda.reset_peak_memory_stats(device.torch_device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the kernel's mark of the peak starts again from here

    def bytes(self) -> int:
        """So far."""
        if self._device.is_cuda:
            return torch.cuda.max_memory_allocated(self._device.torch_device) - self._before
        _, code, peak = _resident()
        return max(0, peak - self._before - (code - self._code_before))


def give_back_at_once(allocator: Callable[..., int]) -> None:
    """Have the C library's ``mallopt`` give each freed tensor back to the system: resident memory is then what is used.

    For measuring; a daemon that did this would spend a quarter of its time on mapping pages.
    """
    for option in (-3, -1):  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of mallopt(3)
        allocator(option, 4096)


def resident_bytes() -> int:
    """What this process has in memory."""
    return _resident()[0]


def _resident() -> tuple[int, int, int]:
    """(resident bytes, those of them that are files, the peak of the former) of this process."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, code, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssFile", "VmHWM"))
    return now, code, peak


def host_memory_bytes() -> tuple[int, int]:
    """(total, free) memory that this process may use: the machine's, or its control group's where that is less."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    free = _available_bytes() or os.sysconf("SC_AVPHYS_PAGES") * page
    for group in _control_groups():
        limit, used = (_read_number(group / name) for name in ("memory.max", "memory.current"))
        if limit is not None and limit < total:
            total, free = limit, min(free, max(0, limit - (used or 0)))
    return total, free


def _control_groups() -> tuple[Path, ...]:
    """The control group of this process and those around it (cgroup v2)."""
    try:
        own = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
    except OSError:
        own = "/"
    root = Path("/sys/fs/cgroup")
    inner = root / own.lstrip("/")
    return tuple(one for one in (inner, *inner.parents) if one.is_relative_to(root))


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
