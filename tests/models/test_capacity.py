"""Capacity is measured: positive, plausible, bounded in time, and small enough for a record."""

from __future__ import annotations

import time

import pytest
import torch

from moed.models.capacity import DeviceCapacity, measure_devices, measure_expert
from moed.models.device import host_memory_bytes
from moed.models.experts import ExpertSpec, build_expert
from moed.protocol.codec import decode_record, encode_record


def test_the_cpu_is_measured_in_bounded_time() -> None:
    """Every number is positive, free memory is no more than there is, and it all fits a record."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device: the next test measures it")
    began_s = time.perf_counter()
    (device,) = measure_devices(0.1)
    assert time.perf_counter() - began_s < 5  # far above the budget, for a machine that is busy
    assert (device.kind, device.index, device.compute_capability) == ("cpu", 0, None)
    assert 0 < device.memory_free_bytes <= device.memory_total_bytes
    assert device.matmul_flops_per_s["float32"] > 10**8
    assert device.copy_bytes_per_s > 10**7
    assert device.name
    encoded = encode_record(device)
    assert len(encoded) < 400
    assert decode_record(encoded, DeviceCapacity) == device


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_each_cuda_device_is_measured() -> None:
    """With its compute capability and both dtypes."""
    devices = measure_devices(0.2)
    assert [device.index for device in devices] == list(range(torch.cuda.device_count()))
    for device in devices:
        assert device.kind == "cuda"
        assert device.compute_capability is not None
        assert set(device.matmul_flops_per_s) == {"float32", "bfloat16"}
        assert 0 < device.memory_free_bytes <= device.memory_total_bytes


def test_an_expert_is_measured_at_full_batches() -> None:
    """A wider model is slower and larger."""
    narrow, wide = (
        measure_expert(
            build_expert(ExpertSpec(name="x", options={"width": width}), 0).module, rows=4, length=32, budget_s=0.1
        )
        for width in (16, 512)
    )
    assert narrow.forwards_per_s > wide.forwards_per_s > 0
    assert narrow.parameter_bytes == 4 * narrow.parameter_count < wide.parameter_bytes


def test_memory_is_what_this_process_may_use() -> None:
    """Total and free are plausible for any machine that runs this."""
    total, free = host_memory_bytes()
    assert total > 64 << 20
    assert 0 < free <= total
