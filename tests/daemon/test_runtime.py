"""The device worker on virtual time, with a real expert and compute charged a stated duration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import torch
import trio
from torch import nn

from moed.daemon.runtime import Runtime, RuntimeConfig
from moed.models.batching import QueueLimits
from moed.models.checkpoint import load_checkpoint
from moed.models.corpora import load_corpus
from moed.models.errors import (
    DeadlinePassed,
    ExpertFailed,
    OutOfMemory,
    QueueFull,
    ShapeMismatch,
    Stopping,
    UnknownExpert,
)
from moed.models.experts import ExpertSpec, TransformerConfig, TransformerExpert
from moed.models.hosted_layer import HostedLayer, LayerSpec, open_layer
from moed.models.hosting import CHECKPOINT_KIND, HostedExpert, open_hosted
from moed.models.training import TrainingConfig

COMPUTE_S = 0.05
TOKENS = np.arange(16, dtype=np.uint8).reshape(2, 8)
FAR = 1e6


async def charged(function: Callable[..., Any], *args: Any) -> Any:
    """Run inline, and let `COMPUTE_S` of virtual time pass."""
    await trio.sleep(COMPUTE_S)
    return function(*args)


@pytest.fixture
def hosted(tmp_path: Path) -> HostedExpert:
    spec = ExpertSpec(name="x", options={"embedding": 8, "width": 8, "ngram_buckets": 64}, max_rows=8)
    return open_hosted(spec, load_corpus("tables"), TrainingConfig(rows=2, length=8), tmp_path, seed=1)


def make_runtime(*experts: HostedExpert, **config: Any) -> Runtime:
    return Runtime(experts, RuntimeConfig(**config), run_blocking=charged)


async def ask(runtime: Runtime, *, caller: bytes = b"v", deadline: float = FAR) -> np.ndarray:
    return await runtime.forward("x", TOKENS, caller=caller, stake_share=0.5, deadline=deadline)


async def test_it_answers_what_the_expert_answers(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, hosted: HostedExpert
) -> None:
    """The rows of the caller, and of nobody else in the batch."""
    runtime = make_runtime(hosted, training_share=0.0)
    await nursery.start(runtime.run)
    answers: dict[int, np.ndarray] = {}

    async def one(number: int) -> None:
        tokens = TOKENS + np.uint8(number)
        answers[number] = await runtime.forward("x", tokens, caller=b"%d" % number, stake_share=0, deadline=FAR)

    async with trio.open_nursery() as callers:
        for number in range(3):
            callers.start_soon(one, number)
    for number, answer in answers.items():
        assert np.allclose(answer, hosted.forward(TOKENS + np.uint8(number)), atol=1e-5)
    load = runtime.load()
    assert load.experts[0].rows_served == 6
    assert load.experts[0].forwards_per_s == pytest.approx(1 / COMPUTE_S)
    assert load.waiting_requests == 0


async def test_it_trains_whenever_nothing_waits_and_stores_in_the_end(
    autojump_clock: trio.testing.MockClock, hosted: HostedExpert
) -> None:
    """Ten idle seconds at 50 ms a step are two hundred steps; being cancelled stores the last of them."""
    runtime = make_runtime(hosted, checkpoint_every_s=FAR)
    with trio.move_on_after(10):
        await runtime.run()
    steps = hosted.training_steps
    assert steps == pytest.approx(200, abs=2)
    assert int(load_checkpoint(hosted.path, CHECKPOINT_KIND).tensors["steps"]) == steps
    assert runtime.load().experts[0].training_loss_bits < 8
    with pytest.raises(Stopping):
        await ask(runtime)


async def test_it_trains_only_its_share_of_the_time(
    autojump_clock: trio.testing.MockClock, hosted: HostedExpert
) -> None:
    """A quarter of the idle time gives a quarter of the steps, and none gives none."""
    runtime = make_runtime(hosted, training_share=0.25)
    with trio.move_on_after(10):
        await runtime.run()
    assert hosted.training_steps == pytest.approx(50, abs=2)
    with trio.move_on_after(10):
        await make_runtime(hosted, training_share=0.0).run()
    assert hosted.training_steps == pytest.approx(50, abs=2)


async def test_a_request_waits_for_one_step_at_most(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, hosted: HostedExpert
) -> None:
    """Even while training takes all idle time."""
    runtime = make_runtime(hosted)
    await nursery.start(runtime.run)
    for _ in range(5):
        await trio.sleep(0.333)
        began_s = trio.current_time()
        await ask(runtime)
        assert trio.current_time() - began_s <= 2 * COMPUTE_S + 1e-6
    assert 0 < runtime.load().queue_delay_ms <= COMPUTE_S * 1000


async def test_checkpoints_are_written_now_and_then(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, hosted: HostedExpert
) -> None:
    """Without waiting for the end."""
    await nursery.start(make_runtime(hosted, checkpoint_every_s=2.0).run)
    await trio.sleep(5)
    stored = int(load_checkpoint(hosted.path, CHECKPOINT_KIND).tensors["steps"])
    assert 0 < stored < hosted.training_steps


async def test_a_deadline_is_kept_and_leaves_nothing_behind(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, hosted: HostedExpert
) -> None:
    """The caller learns in time; a cancelled caller's request is gone from the queue too."""
    runtime = make_runtime(hosted, training_share=0.0)
    with pytest.raises(DeadlinePassed):
        await ask(runtime, deadline=trio.current_time() + 0.5)
    with trio.move_on_after(0.5):
        await ask(runtime)
    assert runtime.load().waiting_requests == 0
    assert runtime._waiters == {}
    await nursery.start(runtime.run)
    assert (await ask(runtime)).shape == (2, 8, 256)


async def test_refusals_reach_the_caller(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, hosted: HostedExpert
) -> None:
    """An unknown expert, and a queue at its bound while nobody serves it; those who wait are told of the end."""
    runtime = make_runtime(hosted, training_share=0.0, limits=QueueLimits(max_requests=1))
    with pytest.raises(UnknownExpert):
        await runtime.forward("y", TOKENS, caller=b"v", stake_share=0, deadline=FAR)
    refused: list[str] = []

    async def wait_for_the_end() -> None:
        with pytest.raises(Stopping):
            await ask(runtime)
        refused.append("stopping")

    nursery.start_soon(wait_for_the_end)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(QueueFull):
        await ask(runtime)
    with trio.move_on_after(0):
        await runtime.run()
    await trio.testing.wait_all_tasks_blocked()
    assert refused == ["stopping"]


async def test_an_expert_that_fails_does_not_take_the_worker_with_it(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, hosted: HostedExpert, tmp_path: Path
) -> None:
    """Its callers get its error, its training ends; the other expert goes on being served and trained."""
    own = ExpertSpec(name="own", factory="torch.nn:Linear", options={"in_features": 3, "out_features": 5})
    broken = open_hosted(own, load_corpus("tables"), TrainingConfig(rows=2, length=8), tmp_path, seed=1)
    runtime = make_runtime(hosted, broken)
    await nursery.start(runtime.run)
    with pytest.raises(ExpertFailed):
        await runtime.forward("own", TOKENS, caller=b"v", stake_share=0, deadline=FAR)
    assert (await ask(runtime)).shape == (2, 8, 256)
    await trio.sleep(5)
    assert [one.is_training for one in runtime.load().experts] == [True, False]


async def test_training_that_diverged_stops_and_serving_goes_on(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, hosted: HostedExpert
) -> None:
    """The averaged weights of before are served."""
    import torch

    with torch.no_grad():
        next(hosted.trainer.module.parameters()).fill_(torch.nan)
    runtime = make_runtime(hosted)
    await nursery.start(runtime.run)
    await trio.sleep(5)
    assert not runtime.load().experts[0].is_training
    assert np.isfinite(await ask(runtime)).all()


@pytest.mark.parametrize(
    "module", [nn.Bilinear(2, 2, 2), TransformerExpert(TransformerConfig(width=8, heads=1, context_bytes=4))]
)
async def test_a_model_that_cannot_train_stops_and_serving_goes_on(
    module: nn.Module, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, hosted: HostedExpert
) -> None:
    """One's own model may raise anything at a step, and a built-in one that the rows are too long for it."""
    hosted.trainer.module = module
    runtime = make_runtime(hosted)
    await nursery.start(runtime.run)
    await trio.sleep(1)
    assert not runtime.load().experts[0].is_training
    assert (await ask(runtime)).shape == (2, 8, 256)


async def test_a_full_disk_costs_the_checkpoint_and_nothing_else(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, hosted: HostedExpert
) -> None:
    """A folder that cannot be written to stands for it: training and serving go on."""
    hosted.path.with_name(hosted.path.name + ".tmp").mkdir()
    runtime = make_runtime(hosted, checkpoint_every_s=1.0)
    await nursery.start(runtime.run)
    await trio.sleep(3)
    assert not hosted.path.exists()
    assert (await ask(runtime)).shape == (2, 8, 256)


async def test_real_threads_serve_too(nursery: trio.Nursery, hosted: HostedExpert) -> None:
    """The default runs torch in a thread, one call at a time, and training goes on in between."""
    runtime = Runtime([hosted], RuntimeConfig())
    await nursery.start(runtime.run)
    for _ in range(3):
        assert (await ask(runtime, deadline=trio.current_time() + 60)).shape == (2, 8, 256)
    assert hosted.training_steps > 0


def test_a_share_that_is_none_is_refused() -> None:
    """The configuration says what it may be."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        RuntimeConfig(training_share=1.5)


class Hungry(nn.Module):
    """Asks the allocator for more than any machine has as soon as it gets more than ``rows`` rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.rows:
            torch.empty(1 << 60, dtype=torch.uint8)
        return x * self.weight


@pytest.mark.parametrize("direction", ["forward", "backward"])
async def test_a_batch_that_does_not_fit_is_served_in_parts(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, tmp_path: Path, direction: str
) -> None:
    """The allocator's own refusal halves the batch: the caller is served, the limit stays low, an event is logged."""
    layer = HostedLayer(LayerSpec(name="h", layer="identity", width=4), Hungry(3), tmp_path / "h.ckpt")
    runtime = Runtime([layer], RuntimeConfig(training_share=0.0), run_blocking=charged)
    await nursery.start(runtime.run)
    rows = np.arange(64, dtype=np.float32).reshape(16, 4)

    async def once() -> np.ndarray:
        if direction == "forward":
            return await runtime.forward("h", rows, caller=b"", stake_share=1.0, deadline=FAR)
        return await runtime.backward("h", rows, rows, caller=b"", stake_share=1.0, deadline=FAR)

    with structlog.testing.capture_logs() as logs:
        assert np.allclose(await once(), rows)
        await once()
    exceeded = [one for one in logs if one["event"] == "memory.exceeded"]
    assert [one["limit"] for one in exceeded] == [8, 4, 2]


async def test_one_callers_numbers_do_not_spoil_anothers_gradient(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """Both would be one batch, whose norm is none that float32 has: who sent it is refused, the other one is served."""
    layer = open_layer(LayerSpec(name="h", layer="ffn", width=4), tmp_path, seed=1)
    runtime = Runtime([layer], RuntimeConfig(training_share=0.0), run_blocking=charged)
    await nursery.start(runtime.run)
    rows = np.ones((2, 4), np.float32)
    refused = []

    async def spoil(inputs: np.ndarray, gradients: np.ndarray) -> None:
        try:
            await runtime.backward("h", inputs, gradients, caller=b"a", stake_share=1.0, deadline=FAR)
        except ShapeMismatch as error:
            refused.append(error)

    async with trio.open_nursery() as callers:
        callers.start_soon(spoil, rows, rows * np.float32(1e38))
        callers.start_soon(spoil, rows * np.float32(np.inf), rows)
        found = await runtime.backward("h", rows, rows, caller=b"b", stake_share=1.0, deadline=FAR)
    assert np.isfinite(found).all()
    assert len(refused) == 2
    await trio.sleep(1)
    assert layer.training_steps == 1


async def test_who_gives_up_a_gradient_pays_for_it(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """The device was at it when the deadline came: it went on, and the layer learned."""
    layer = open_layer(LayerSpec(name="h", layer="ffn", width=4), tmp_path, seed=1)
    runtime = Runtime([layer], RuntimeConfig(training_share=0.0), run_blocking=charged)
    await nursery.start(runtime.run)
    rows, charged_s = np.ones((2, 4), np.float32), list[float]()
    with pytest.raises(DeadlinePassed):
        await runtime.backward(
            "h", rows, rows, caller=b"", stake_share=1.0, deadline=COMPUTE_S / 2, charge=charged_s.append
        )
    await trio.sleep(1)
    assert layer.training_steps == 1
    assert [one > 0 for one in charged_s] == [True]


async def test_a_gradient_that_fails_is_paid_for(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """By all callers of the batch, by their rows: else who only sends what fails is never out of budget."""
    layer = HostedLayer(LayerSpec(name="h", layer="identity", width=4), Hungry(0), tmp_path / "h.ckpt")
    runtime = Runtime([layer], RuntimeConfig(training_share=0.0), run_blocking=charged)
    await nursery.start(runtime.run)
    charged_s: dict[int, float] = {}

    async def fail(count: int) -> None:
        rows = np.ones((count, 4), np.float32)
        charge = partial(charged_s.__setitem__, count)
        with pytest.raises(OutOfMemory):
            await runtime.backward("h", rows, rows, caller=b"", stake_share=1.0, deadline=FAR, charge=charge)

    async with trio.open_nursery() as callers:
        callers.start_soon(fail, 1)
        callers.start_soon(fail, 3)
    assert charged_s[3] == pytest.approx(3 * charged_s[1])
    assert charged_s[1] > 0


class Crowded(nn.Module):
    """Memory is short at its first call, and again at its third: somebody else took some meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls in (1, 3):
            torch.empty(1 << 60, dtype=torch.uint8)
        return x * self.weight


async def test_a_step_is_along_the_gradient_of_all_parts(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """The second part does not fit any more: what the first one brought, and would be most of it, is not lost."""
    module = Crowded()
    layer = HostedLayer(LayerSpec(name="h", layer="identity", width=4), module, tmp_path / "h.ckpt")
    runtime = Runtime([layer], RuntimeConfig(training_share=0.0), run_blocking=charged)
    await nursery.start(runtime.run)
    rows = np.ones((8, 4), np.float32)
    gradients = np.repeat(np.array([1.0, -0.1], np.float32), 4)[:, None] * rows
    found = await runtime.backward("h", rows, gradients, caller=b"", stake_share=1.0, deadline=FAR)
    assert np.allclose(found, gradients)
    await trio.sleep(1)
    assert layer.training_steps == 1
    assert float(module.weight.detach()) < 1


async def test_what_does_not_fit_in_single_rows_is_an_error(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """Not even one row: the caller is told, and the worker goes on."""
    layer = HostedLayer(LayerSpec(name="h", layer="identity", width=4), Hungry(0), tmp_path / "h.ckpt")
    runtime = Runtime([layer], RuntimeConfig(training_share=0.0), run_blocking=charged)
    await nursery.start(runtime.run)
    for _ in range(2):
        with pytest.raises(OutOfMemory):
            await runtime.forward("h", np.ones((2, 4), np.float32), caller=b"", stake_share=1.0, deadline=FAR)
