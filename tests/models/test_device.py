"""The device worker: which device is meant, how rows come and go, what a failure means; on a GPU where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from moed.daemon.runtime import Runtime, RuntimeConfig
from moed.models.device import CPU, choose_device, device_of, is_out_of_memory
from moed.models.errors import ExpertFailed, ModelRefused, OutOfMemory
from moed.models.hosted_layer import HostedLayer, LayerSpec, open_layer

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ROWS = np.random.default_rng(3).standard_normal((32, 64), dtype=np.float32)


def test_a_device_that_is_not_there_is_refused() -> None:
    """By what the machine has; the CPU is always there."""
    assert choose_device("cpu") == CPU
    with pytest.raises(ModelRefused, match=r"'cuda:99' is not on this machine, which has cpu"):
        choose_device("cuda:99")
    assert choose_device("auto").is_cuda == torch.cuda.is_available()


def test_rows_are_taken_as_they_lie_unless_that_is_read_only() -> None:
    """Without a copy where torch may write, and without a warning where it may not."""
    rows = ROWS.copy()
    assert CPU.put(rows).data_ptr() == rows.ctypes.data
    rows.flags.writeable = False
    there = CPU.put(rows)
    assert there.data_ptr() != rows.ctypes.data
    assert np.array_equal(CPU.fetch(there), rows)


def test_what_torch_raises_is_told_apart() -> None:
    """The allocator's own refusals are `OutOfMemory`, any other failure is not."""
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    for error in (refused.value, torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):
        assert is_out_of_memory(error)
        assert isinstance(CPU.failure("x", error), OutOfMemory)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2, 3) @ torch.ones(2, 3)
    found = CPU.failure("x", other.value)
    assert isinstance(found, ExpertFailed)
    assert not isinstance(found, OutOfMemory)


def test_bfloat16_answers_are_near_and_float32(tmp_path: Path) -> None:
    """Products in fewer digits; what comes back is float32 and almost the same."""
    spec = LayerSpec(name="x", layer="ffn", width=64)
    exact = open_layer(spec, tmp_path, 1).forward(ROWS)
    near = open_layer(spec, tmp_path, 1, choose_device("cpu", "bfloat16")).forward(ROWS)
    assert near.dtype == np.float32
    assert not np.array_equal(near, exact)
    assert np.allclose(near, exact, atol=0.05)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("layer", ["ffn", "block", "encoder"])
def test_a_gpu_answers_and_learns_as_the_cpu_does(tmp_path: Path, layer: str) -> None:
    """From the same seed: answers, gradients, and the answers after a step; and the checkpoint goes back and forth."""
    spec = LayerSpec(name="x", layer=layer, width=64)
    for folder in ("cpu", "cuda"):
        (tmp_path / folder).mkdir()
    here, there = (open_layer(spec, tmp_path / one, 1, choose_device(one)) for one in ("cpu", "cuda"))
    assert device_of(there.module).type == "cuda"
    for _ in range(3):
        assert np.allclose(here.forward(ROWS), there.forward(ROWS), atol=1e-3)
        assert np.allclose(here.backward(ROWS, ROWS), there.backward(ROWS, ROWS), atol=1e-2)
    there.save()
    again = open_layer(spec, tmp_path / "cuda", 2, choose_device("cuda"))
    assert np.allclose(again.forward(ROWS), there.forward(ROWS), atol=1e-6)
    assert np.isfinite(again.backward(ROWS, ROWS)).all()


class Wide(nn.Module):
    """Takes a quarter of a GPU for each row."""

    def __init__(self, row_bytes: int) -> None:
        super().__init__()
        self.row_bytes = row_bytes
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.empty(len(x) * self.row_bytes, dtype=torch.uint8, device=x.device)
        return x * self.weight


@pytest.mark.cuda
@needs_cuda
def test_a_gpu_that_is_full_serves_the_batch_in_parts(tmp_path: Path) -> None:
    """The device's own refusal halves the batch, and the caller is served."""
    device = choose_device("cuda")
    total, _ = device.memory_bytes()
    layer = HostedLayer(
        LayerSpec(name="h", layer="identity", width=64), device.place(Wide(total // 4)), tmp_path / "h.ckpt", device
    )
    state = Runtime([layer], RuntimeConfig(training_share=0.0))._states["h"]
    assert np.allclose(Runtime._in_parts(state, layer.forward, ROWS), ROWS)
    assert state.rows_at_once <= 4
