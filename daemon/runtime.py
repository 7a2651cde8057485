"""The device worker: serves waiting requests in batches, and trains whenever nothing waits.

One task and one thread at a time touch the experts, so a forward never sees half a training step. A request waits for
at most one step or one batch that is under way, and both are sized to be short.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import msgspec
import numpy as np
import structlog
import trio

from moed.models.batching import Batch, BatchQueue, QueueLimits, Request
from moed.models.errors import (
    DeadlinePassed,
    ExpertError,
    NoBackward,
    OutOfMemory,
    ShapeMismatch,
    Stopping,
    TrainingDiverged,
)
from moed.protocol.experts import BatchSchema, ExpertInfo, Load

from .allocator import keep_freed_memory
from .hosted import ExpertLoad, Hosted, Rows, RuntimeLoad, TeachableHosted

T = TypeVar("T")
# ``run_blocking(function, *args)`` awaits the function's result: in a thread, or inline on virtual time.
RunBlocking = Callable[..., Awaitable[Any]]

# How much of an average is the newest measurement.
_EMA_SHARE = 0.1
LARGEST = 1e15
"""Up to here the squares of all numbers in a batch add up to one that float32 has."""

_INLINE_S = 100e-6
"""A batch that takes less than this runs on the event loop itself: going to a thread and back costs as much."""
_log = structlog.get_logger()


def _free(_busy_s: float) -> None:
    """Nobody counts the time."""


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """``training_share`` is the share of otherwise idle time that goes to training, 0 to 1."""

    training_share: float = 1.0
    checkpoint_every_s: float = 60.0
    # Less than the 5 s in which the daemon must end: a save of a few tens of MiB takes a fraction of a second.
    final_save_timeout_s: float = 3.0
    limits: QueueLimits = field(default_factory=QueueLimits)

    def __post_init__(self) -> None:
        if not 0 <= self.training_share <= 1:
            raise ValueError(f"training_share is between 0 and 1, not {self.training_share}")


@dataclass(slots=True)
class _Waiter:
    """One awaiting caller; exactly one of the two results is set before the event. ``charge`` is told of the device
    time that its request took, whether it still waits or not."""

    done: trio.Event
    charge: Callable[[float], None]
    answer: Rows | None = None
    error: ExpertError | DeadlinePassed | Stopping | None = None


@dataclass(slots=True)
class _State:
    hosted: Hosted
    is_training: bool
    forward_s: float = 0.0
    # the shortest of late that a batch took inside the expert, and the moving average of its rows
    busy_s: float = math.inf
    batch_rows: float = 1.0
    learn_s: float = 0.0  # what the last step after a gradient took
    rows_served: int = 0
    # as many rows as were seen to fit the device's memory at a time; all of a batch until one did not
    rows_at_once: int = 1 << 62
    saved_steps: int = -1


class Runtime:
    """Owns the queue of one device. `run` is its worker; `forward` and `backward` may be awaited from any task.

    ``run_blocking`` replaces the worker thread, in simulations; without it, batches shorter than a thread's own cost
    run where they are.
    """

    def __init__(
        self,
        experts: Sequence[Hosted],
        config: RuntimeConfig | None = None,
        *,
        run_blocking: RunBlocking | None = None,
    ) -> None:
        self._config = config or RuntimeConfig()
        self._run_blocking: RunBlocking = run_blocking or trio.to_thread.run_sync
        self._inline_s = _INLINE_S if run_blocking is None else 0.0
        is_training = self._config.training_share > 0
        self._states = {hosted.name: _State(hosted, is_training and hosted.trains_itself) for hosted in experts}
        self._takes = {hosted.name: hosted.info.takes for hosted in experts}
        self._takes_gradients = {one.name: one.info.gradients for one in experts if one.info.has_backward}
        self._queue = BatchQueue(self._takes, self._config.limits, gradients=self._takes_gradients)
        self._waiters: dict[int, _Waiter] = {}
        self._wake = trio.Event()
        self._is_stopping = False
        self._is_idle = False  # the worker sleeps, and so does the device
        self._queue_delay_s = 0.0
        self._train_at_s = -math.inf
        self._turn = 0

    def takes(self, expert_name: str) -> BatchSchema | None:
        """The batches that an expert takes; None for one that is not served here."""
        return self._takes.get(expert_name)

    def takes_gradients(self, expert_name: str) -> BatchSchema | None:
        """The gradients at its outputs that an expert takes; None where it gives none or is not served here."""
        return self._takes_gradients.get(expert_name)

    async def forward(
        self, expert_name: str, inputs: Rows, *, caller: bytes, stake_share: float, deadline: float
    ) -> Rows:
        """Answer a batch that fits the expert's schema, as the expert does.

        ``deadline`` is on trio's clock. Raises a `RequestRefused` that says why nothing was computed, or the
        expert's own `ExpertError`. Cancelling it takes the request out of the queue.
        """
        return await self._await(expert_name, inputs, None, caller, stake_share, deadline)

    async def backward(
        self,
        expert_name: str,
        inputs: Rows,
        gradients: Rows,
        *,
        caller: bytes,
        stake_share: float,
        deadline: float,
        charge: Callable[[float], None] = _free,
    ) -> Rows:
        """The gradient at ``inputs`` from ``gradients`` at the outputs. Raises like `forward`.

        ``charge`` is called with the device time that it took as soon as it is known, also if this was cancelled while
        the device was at it. Numbers over `LARGEST` are refused: they are no gradient, and would spoil the step of
        those in the same batch.
        """
        state = self._states.get(expert_name)
        if state is not None and not state.hosted.info.has_backward:
            raise NoBackward(f"expert {expert_name!r} gives no gradients")
        if not (_are_bounded(inputs) and _are_bounded(gradients)):
            raise ShapeMismatch(f"inputs and gradients are finite here, and none is over {LARGEST:g}")
        return await self._await(expert_name, inputs, gradients, caller, stake_share, deadline, charge)

    async def _await(
        self,
        expert_name: str,
        inputs: Rows,
        gradients: Rows | None,
        caller: bytes,
        stake_share: float,
        deadline: float,
        charge: Callable[[float], None] = _free,
    ) -> Rows:
        if self._is_stopping:
            raise Stopping("this device worker is ending")
        request = self._queue.submit(
            expert_name,
            inputs,
            gradients=gradients,
            caller=caller,
            stake_share=stake_share,
            deadline_s=deadline,
            now_s=trio.current_time(),
        )
        waiter = self._waiters[request.request_id] = _Waiter(trio.Event(), charge)
        self._wake.set()
        self._is_idle = False
        try:
            with trio.CancelScope(deadline=deadline):
                await waiter.done.wait()
        finally:
            self._queue.cancel(request)
            self._waiters.pop(request.request_id, None)
        if waiter.error is not None:
            raise waiter.error
        if waiter.answer is None:
            raise DeadlinePassed("the deadline passed before the answer was there")
        return waiter.answer

    def forward_at_once(self, expert_name: str, inputs: Rows) -> Rows | None:
        """Answer a batch that fits the schema, without waiting, if nothing is before it and the expert is sure to be
        quick; None if it has to wait its turn in `forward`. Raises `ExpertError`."""
        state = self._states.get(expert_name)
        if state is None or not self._is_idle or not self._is_quick(state, len(inputs)):
            return None
        answer, busy_s = _timed(self._in_parts, state, state.hosted.forward, inputs)
        self._learn_rate(state, len(inputs), busy_s, busy_s)
        state.rows_served += len(inputs)
        self._queue_delay_s -= self._queue_delay_s * _EMA_SHARE
        return answer

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve and train until cancelled; then store every expert and refuse whoever still waits."""
        keep_freed_memory()
        task_status.started()
        save_at_s = trio.current_time() + self._config.checkpoint_every_s
        try:
            while True:
                batch = self._queue.next_batch(trio.current_time())
                if batch is not None:
                    await self._serve(batch)
                elif (hosted := self._next_to_train()) is not None and trio.current_time() >= self._train_at_s:
                    await self._train(hosted)
                else:
                    await self._sleep_until(min(save_at_s, self._train_at_s if hosted else math.inf))
                if trio.current_time() >= save_at_s:
                    await self._save_all()
                    save_at_s = trio.current_time() + self._config.checkpoint_every_s
        finally:
            self._stop()
            with trio.move_on_after(self._config.final_save_timeout_s, shield=True):
                await self._save_all()

    def infos(self) -> tuple[ExpertInfo, ...]:
        """What is served here, with the rates as measured."""
        return tuple(
            msgspec.structs.replace(state.hosted.info, forwards_per_s=1 / state.forward_s if state.forward_s else 0.0)
            for state in self._states.values()
        )

    def brief_load(self) -> Load:
        """What goes with each answer; the delay to a tenth of a millisecond, so that idle answers are all alike."""
        return Load(queue_delay_ms=round(self._queue_delay_s * 1000, 1), waiting_rows=self._queue.rows)

    def load(self) -> RuntimeLoad:
        """What to tell others about how busy this device is."""
        experts = tuple(
            ExpertLoad(
                name=name,
                forwards_per_s=1 / state.forward_s if state.forward_s else 0.0,
                rows_served=state.rows_served,
                training_loss_bits=state.hosted.training_loss_bits,
                training_steps=state.hosted.training_steps,
                is_training=state.is_training,
            )
            for name, state in self._states.items()
        )
        return RuntimeLoad(self._queue_delay_s * 1000, len(self._queue), self._queue.rows, experts)

    async def _sleep_until(self, at_s: float) -> None:
        """Wait for a request, until ``at_s``; requests whose deadline passes meanwhile wake their own callers."""
        self._queue.expire(trio.current_time())
        if len(self._queue):
            return
        self._wake = trio.Event()
        self._is_idle = True
        try:
            with trio.move_on_at(at_s):
                await self._wake.wait()
        finally:
            self._is_idle = False

    async def _serve(self, batch: Batch) -> None:
        state = self._states[batch.expert]
        began_s = trio.current_time()
        charges = [self._waiters[request.request_id].charge for request in batch.requests]
        for request in batch.requests:
            self._queue_delay_s += (began_s - request.submitted_s - self._queue_delay_s) * _EMA_SHARE
        inputs = _joined([request.inputs for request in batch.requests])
        gradients = [request.gradients for request in batch.requests if request.gradients is not None]
        if gradients:
            hosted = cast("TeachableHosted", state.hosted)  # `backward` lets no other request in
            answer, busy_s = await self._run_blocking(
                _timed, _tried, self._in_parts, state, hosted.gradient, inputs, _joined(gradients)
            )
        elif self._is_quick(state, batch.rows):
            answer, busy_s = _timed(_tried, self._in_parts, state, state.hosted.forward, inputs)
        else:
            answer, busy_s = await self._run_blocking(
                _timed, _tried, self._in_parts, state, state.hosted.forward, inputs
            )
        if isinstance(answer, ExpertError):
            _log.warning("expert.failed", expert=batch.expert, rows=batch.rows, reason=str(answer))
            for request, charge in zip(batch.requests, charges, strict=True):
                charge(busy_s * len(request.inputs) / batch.rows)  # the device was at it all the same
                self._resolve(request, error=answer)
            return
        if gradients:
            busy_s += state.learn_s  # the step is still to come, and takes what it took last time
        if not gradients:
            self._learn_rate(state, batch.rows, trio.current_time() - began_s, busy_s)
        state.rows_served += batch.rows
        at = 0
        for request, charge in zip(batch.requests, charges, strict=True):
            rows = len(request.inputs)
            charge(busy_s * rows / batch.rows)
            self._resolve(request, answer=answer[at : at + rows])
            at += rows
        if gradients:  # only now: nobody waits for it, and the answers travel meanwhile
            _, state.learn_s = await self._run_blocking(_timed, hosted.learn)

    @staticmethod
    def _in_parts(state: _State, function: Callable[..., Rows], *batches: Rows) -> Rows:
        """``function`` of batches of equal length, in parts that fit the device's memory.

        A part that does not fit is halved, and that is the expert's limit from then on: the caller is served, only
        later. A gradient begins again with the first part then: the step after it is to be along that of all rows, and
        a part that failed left nothing of those before it. Raises `OutOfMemory` where not even one row fits.
        """
        is_gradient = len(batches) > 1
        rows, at, parts = len(batches[0]), 0, list[Rows]()
        while at < rows:
            part = [one[at : at + state.rows_at_once] for one in batches]
            try:
                parts.append(function(*part))
            except OutOfMemory as error:
                size = len(part[0])
                if size == 1:
                    raise
                state.rows_at_once = size // 2
                _log.warning(
                    "memory.exceeded", expert=state.hosted.name, rows=size, limit=state.rows_at_once, reason=str(error)
                )
                if is_gradient:
                    at, parts = 0, []
                continue
            at += len(part[0])
        return _joined(parts)

    def _is_quick(self, state: _State, rows: int) -> bool:
        """Whether a forward of so many rows is sure to be shorter than a thread's own cost."""
        return state.busy_s * max(1.0, rows / state.batch_rows) < self._inline_s

    @staticmethod
    def _learn_rate(state: _State, rows: int, took_s: float, busy_s: float) -> None:
        state.forward_s += (took_s - state.forward_s) * (_EMA_SHARE if state.forward_s else 1.0)
        if math.isinf(state.busy_s):
            state.busy_s, state.batch_rows = busy_s, rows
        # The shortest of late: a batch during which the system or another thread ran looks long and is not, while an
        # expert that is slow never looks quick.
        state.busy_s = min(busy_s / max(1.0, rows / state.batch_rows), state.busy_s * 1.1)
        state.batch_rows += (rows - state.batch_rows) * _EMA_SHARE

    def _resolve(
        self,
        request: Request,
        *,
        answer: Rows | None = None,
        error: ExpertError | Stopping | None = None,
    ) -> None:
        waiter = self._waiters.get(request.request_id)
        if waiter is None:
            return  # its caller gave up while the batch ran
        waiter.answer, waiter.error = answer, error
        waiter.done.set()

    def _next_to_train(self) -> Hosted | None:
        """The experts that train take turns."""
        training = [state.hosted for state in self._states.values() if state.is_training]
        return training[self._turn % len(training)] if training else None

    async def _train(self, hosted: Hosted) -> None:
        self._turn += 1
        began_s = trio.current_time()
        try:
            await self._run_blocking(hosted.train_step)
        except ExpertError as error:  # it still serves what it has learned
            self._states[hosted.name].is_training = False
            event = "training.diverged" if isinstance(error, TrainingDiverged) else "training.failed"
            _log.error(event, expert=hosted.name, reason=str(error))
        now_s = trio.current_time()
        self._train_at_s = now_s + (now_s - began_s) * (1 / self._config.training_share - 1)

    async def _save_all(self) -> None:
        for name, state in self._states.items():
            steps = state.hosted.training_steps
            if steps == state.saved_steps:
                continue
            try:
                content_hash: bytes = await self._run_blocking(state.hosted.save)
            except OSError as error:
                # A full disk costs the checkpoint, not the service; the old one is still whole.
                _log.error("checkpoint.failed", expert=name, reason=str(error))
                continue
            state.saved_steps = steps
            _log.info("checkpoint.saved", expert=name, steps=steps, content_hash=content_hash.hex())

    def _stop(self) -> None:
        self._is_stopping = True
        for waiter in self._waiters.values():
            if not waiter.done.is_set():
                waiter.error = Stopping("this device worker is ending")
                waiter.done.set()


def _are_bounded(rows: Rows) -> bool:
    """Whether all are numbers within `LARGEST`; a NaN is its own minimum, and within nothing."""
    return bool(rows.size == 0 or (rows.min() >= -LARGEST and rows.max() <= LARGEST))


def _joined(parts: list[Rows]) -> Rows:
    """One batch of several; a single one is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _tried(function: Callable[..., T], *arguments: Any) -> T | ExpertError:
    """The error as a value, so that what led to it can be timed."""
    try:
        return function(*arguments)
    except ExpertError as error:
        return error


def _timed(function: Callable[..., T], *arguments: Any) -> tuple[T, float]:
    began_s = time.perf_counter()
    answer = function(*arguments)
    return answer, time.perf_counter() - began_s
