"""One simulated node: the daemon's own chain, store and signer, which may be cut off at any moment and start again."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from moed.consensus.blocks import Commit
from moed.consensus.genesis import Genesis
from moed.consensus.transition import Executed
from moed.daemon.chain import Chain
from moed.daemon.network.errors import PeerLost
from moed.daemon.signer import Signer
from moed.protocol.identity import Identity, NodeId

from .disk import Cut, Disk, PowerCut, SimulatedJournal, SimulatedStore
from .faults import FaultPlan
from .liars import LyingChain
from .network import Endpoint, Network
from .witness import Witness

EPOCH_MS = 1_700_000_000_000
WRITES = ("append", "vote", "proposal")
"""The names of what puts something on disk that counts; at these the power may go."""


class SimulatedNode:
    """A node that can be cut off at any moment and started again from its disk."""

    def __init__(
        self,
        number: int,
        identity: Identity,
        genesis: Genesis,
        *,
        plan: FaultPlan,
        network: Network,
        witness: Witness,
        generator: random.Random,
        halves: Callable[[int], frozenset[NodeId]],
    ) -> None:
        self.number = number
        self.identity = identity
        self.genesis = genesis
        self.disk = Disk(generator)
        self.chain: Chain | None = None
        self.acknowledged = 0
        self.cuts = 0
        self._plan = plan
        self._network = network
        self._witness = witness
        self._random = generator
        self._halves = halves
        self._skew_ms = generator.randint(-plan.clock_skew_ms, plan.clock_skew_ms)
        self._scope = trio.CancelScope()

    @property
    def is_honest(self) -> bool:
        return self.number not in self._plan.liars

    def now_ms(self) -> int:
        return EPOCH_MS + int(trio.current_time() * 1000) + self._skew_ms

    async def run(self) -> None:
        """Live until `crash` or a power cut; everything that is not on the disk is gone then."""
        store = _WatchedStore(self)
        try:
            head = store.load_head()
            self._witness.require(
                head.height >= self.acknowledged,
                f"node {self.number} had block {self.acknowledged} and finds {head.height} after a crash",
            )
            signer = Signer(self.identity, head.network_id, SimulatedJournal(self.disk))
            kind = Chain if self.is_honest else LyingChain
            run_blocking = partial(self._run_blocking, store)
            chain = kind(head, store, self.identity, signer, now_ms=self.now_ms, run_blocking=run_blocking)
            if isinstance(chain, LyingChain):
                chain.corrupt(self._plan.liars[self.number], self._random, self._halves)
            await self._live(chain)
        finally:
            self.chain = None
            store.close()

    async def _live(self, chain: Chain) -> None:
        endpoint = Endpoint(self._network, self.identity.node_id, self.identity.public_key, chain.handlers())
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as nursery:
                self.chain = chain
                self._network.join(endpoint)
                try:
                    await nursery.start(chain.run, endpoint)
                    nursery.start_soon(endpoint.run)
                    nursery.start_soon(self._watch, chain)
                    nursery.start_soon(self._meet, chain, endpoint)
                    await trio.sleep_forever()
                finally:
                    self._network.leave(endpoint)

    def crash(self) -> None:
        self._scope.cancel()

    async def _meet(self, chain: Chain, endpoint: Endpoint) -> None:
        """Sessions open, and both ends greet; now and then they break and open again."""
        while True:
            for link in endpoint.connected():
                await chain.greet(link)
            await trio.sleep(120)

    async def _watch(self, chain: Chain) -> None:
        while True:
            if self.is_honest:
                self._witness.require(chain.height >= self.acknowledged, f"node {self.number} went back")
                self._witness.saw_head(chain.head)
            self.acknowledged = chain.height
            await chain.wait_block()

    def about_to_append(self, executed: Executed, commit: Commit) -> None:
        """A block is about to become final here."""
        if self.is_honest and self.chain is not None:
            self._witness.saw_final(self.number, self.chain.head, executed, commit)

    async def _run_blocking(self, store: SimulatedStore, function: Callable[..., Any], *arguments: Any) -> Any:
        """Inline, because the mock clock does not see threads; a slow disk costs virtual time before and after.

        At a write the power may go. What was under way when the node was cut off ends there.
        """
        await self._be_slow()
        if store.is_closed:
            raise PeerLost("the node is gone")
        name = getattr(function, "__name__", "")
        if name in WRITES and not self._network.is_healed and self._random.random() < self._cut_share():
            self.disk.next_cut = self._random.choice(list(Cut))
        try:
            result = function(*arguments)
        except PowerCut:
            self.cuts += 1
            self.crash()
            await trio.sleep_forever()
        self.disk.next_cut = None  # it was no write after all
        if name in WRITES:
            await self._be_slow()
        return result

    def _cut_share(self) -> float:
        """Troubles meet: where the adversary splits rounds, the power is less safe too."""
        height = self.chain.height + 1 if self.chain is not None else 0
        return min(0.2, self._plan.cut_share * (5 if self._network.grudge(height) else 1))

    async def _be_slow(self) -> None:
        if self._plan.disk_delay_s and not self._network.is_healed:
            await trio.sleep(self._random.expovariate(2 / self._plan.disk_delay_s))


class _WatchedStore(SimulatedStore):
    """A store whose every append is seen by the witness."""

    def __init__(self, node: SimulatedNode) -> None:
        super().__init__(node.disk, node.genesis)
        self._node = node

    def append(self, executed: Executed, commit: Commit) -> None:
        self._node.about_to_append(executed, commit)
        super().append(executed, commit)
