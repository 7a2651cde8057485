"""Servers of experts on virtual time: the real device workers and layers, behind links that are late and fail.

A caller's torch code runs in threads, because autograd cannot wait; virtual time stands still while one computes, and
jumps while all of them wait. What a device would take for a batch is charged at a stated duration, so a result is the
same on any machine.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import trio
from trio.testing import MockClock

from moed.daemon.hosted import Rows
from moed.daemon.network.errors import CallError, DeadlineExceeded, RemoteRefusal
from moed.daemon.remote_experts import Asked, ask_all
from moed.daemon.runtime import Runtime, RuntimeConfig
from moed.daemon.suspects import Suspects
from moed.models.batching import QueueLimits
from moed.models.beam import children_of
from moed.models.errors import ExpertError, NoAnswer, RequestRefused
from moed.models.hosted_layer import HostedLayer, LayerSpec, open_layer
from moed.models.remote import Ask, Patience

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the links and devices are like.

    Each call, forward or backward, arrives after an exponential delay of ``mean_delay_s`` and is lost with
    ``failure_rate``, which its caller hears at once, as of a connection that breaks. A batch takes its device
    ``batch_s`` and ``row_s`` for each row; backward, with its second pass and the step, three times as much.
    """

    mean_delay_s: float = 0.0
    failure_rate: float = 0.0
    batch_s: float = 0.004
    row_s: float = 0.0001
    servers: int = 16


class VirtualClock:
    """trio's mock clock, which jumps while nobody computes."""

    def __init__(self) -> None:
        self.clock = MockClock()
        self._computing = 0

    async def compute(self, function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        """Run ``function`` in a thread; time stands still but for where it `wait`s."""
        self._count(1)
        try:
            limiter = trio.CapacityLimiter(1)  # as many threads as there are calls
            return await trio.to_thread.run_sync(partial(function, *arguments, **keywords), limiter=limiter)
        finally:
            self._count(-1)

    def wait(self, function: Callable[[], Awaitable[T]]) -> T:
        """From a thread of `compute`: await ``function`` while time goes on."""

        async def waited() -> T:
            self._count(-1)
            try:
                return await function()
            finally:
                self._count(1)

        return trio.from_thread.run(waited)

    def _count(self, change: int) -> None:
        self._computing += change
        self.clock.autojump_threshold = 0.0 if self._computing == 0 else float("inf")


@dataclass(slots=True)
class Server:
    """One server of some experts."""

    runtime: Runtime
    names: tuple[str, ...]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class World:
    """All servers, and a `moed.models.remote.Transport` to them for callers in threads of ``clock``."""

    def __init__(self, clock: VirtualClock, conditions: Conditions, layers: Sequence[HostedLayer], seed: int) -> None:
        self.clock, self.conditions = clock, conditions
        self.calls = 0
        self._random = random.Random(f"links {seed}")  # noqa: S311  # repeatable, not secret
        self._suspects: Suspects[int] = Suspects()
        limits = QueueLimits(
            max_requests=1 << 16,
            max_rows=1 << 20,
            max_requests_per_caller=1 << 16,
            max_rows_per_caller=1 << 20,
        )
        config = RuntimeConfig(training_share=0.0, checkpoint_every_s=float("inf"), limits=limits)
        self.servers = []
        for number in range(conditions.servers):
            own = list(layers)[number :: conditions.servers]
            runtime = Runtime(own, config, run_blocking=self._charged)
            self.servers.append(Server(runtime, tuple(one.name for one in own)))
        self._home = {name: number for number, server in enumerate(self.servers) for name in server.names}

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            for server in self.servers:
                await nursery.start(self._serve, server)
            nursery.start_soon(self._try_again)
            task_status.started()

    def kill(self, count: int) -> None:
        """End so many servers as a power cut would: whoever asks them hears nothing."""
        for server in self._random.sample([one for one in self.servers if not one.scope.cancel_called], count):
            server.scope.cancel()

    def live(self, prefixes: Collection[str]) -> Mapping[str, Collection[int]]:
        """The experts that were announced, but for those of servers that did not answer of late."""
        return children_of([name for name, home in self._home.items() if not self._suspects.is_out(home)], prefixes)

    def ask(
        self, asks: Sequence[Ask], patience: Patience, is_enough: Callable[[Collection[int]], bool]
    ) -> list[Rows | NoAnswer]:
        """Ask all at once and wait on virtual time."""
        wanted = [Asked(one.expert, one.inputs, one.gradients) for one in asks]
        one = partial(self._ask_one, deadline_s=patience.deadline_s)

        async def asked() -> list[Rows | CallError]:
            outcomes = await ask_all(wanted, one, grace_s=patience.grace_s, is_enough=is_enough)
            # two callers of one batch are answered at one moment, and would go on in the order of the machine
            await trio.sleep(1e-6 * self._random.random())
            return outcomes

        outcomes = self.clock.wait(asked)
        now_s = self.clock.clock.current_time()
        for ask, outcome in zip(wanted, outcomes, strict=True):
            if isinstance(outcome, CallError):
                self._suspects.failed(self._home[ask.expert], now_s)
            else:
                self._suspects.answered(self._home[ask.expert])
        return [NoAnswer(type(one).__name__, str(one)) if isinstance(one, CallError) else one for one in outcomes]

    async def _try_again(self) -> None:
        """Dial the servers that are out, as a caller does beside its work."""
        while True:
            await trio.sleep(1.0)
            for number in self._suspects.due(trio.current_time()):
                if self.servers[number].scope.cancel_called:
                    self._suspects.failed(number, trio.current_time())
                else:
                    self._suspects.answered(number)

    async def _ask_one(self, asked: Asked, *, deadline_s: float) -> Rows:
        """One call over a link. Raises `CallError`."""
        self.calls += 1
        deadline = trio.current_time() + deadline_s
        mean_s = self.conditions.mean_delay_s
        delay_s = self._random.expovariate(1 / mean_s) if mean_s else 0.0
        is_lost = self._random.random() < self.conditions.failure_rate
        with trio.move_on_at(deadline):
            await trio.sleep(delay_s)
            if is_lost:
                raise RemoteRefusal("lost", "the connection broke")
            server = self.servers[self._home[asked.expert]]
            if not server.scope.cancel_called:
                try:
                    return await self._serve_one(server.runtime, asked, deadline)
                except (ExpertError, RequestRefused) as error:
                    raise RemoteRefusal(error.code, str(error)) from error
            await trio.sleep_forever()
        raise DeadlineExceeded("no answer in time")

    @staticmethod
    async def _serve_one(runtime: Runtime, asked: Asked, deadline: float) -> Rows:
        if asked.gradients is None:
            return await runtime.forward(
                asked.expert, asked.inputs, caller=b"caller", stake_share=1.0, deadline=deadline
            )
        return await runtime.backward(
            asked.expert, asked.inputs, asked.gradients, caller=b"caller", stake_share=1.0, deadline=deadline
        )

    @staticmethod
    async def _serve(server: Server, task_status: trio.TaskStatus[None]) -> None:
        with server.scope:
            await server.runtime.run(task_status)

    async def _charged(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The device's time for the batch among ``arguments``, or the two of a backward pass, and then the result."""
        batches = [one for one in arguments if isinstance(one, np.ndarray)]
        if batches:
            passes = 3 if len(batches) > 1 else 1
            await trio.sleep(passes * (self.conditions.batch_s + self.conditions.row_s * len(batches[0])))
        return function(*arguments)


def make_layers(names: Sequence[str], width: int, rate: float, folder: Path, seed: int) -> list[HostedLayer]:
    """A feed-forward expert for each name, its weights drawn from ``seed``."""
    return [
        open_layer(
            LayerSpec(name=name, layer="ffn", width=width, max_rows=256, learning_rate=rate),
            folder,
            seed=seed * 100_003 + number,
        )
        for number, name in enumerate(names)
    ]
