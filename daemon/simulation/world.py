"""One simulated life: nodes, faults, and the invariants that hold at every step of it.

The nodes run the daemon's own chain, store and signer over links in memory and a disk in memory; time is trio's
mock clock, so an hour passes as fast as the work in it is done. Everything random comes from the seed, the order of
trio's tasks included, and a life ends with a hash of all that became final: the same seed gives the same hash.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any

import trio
import trio.testing

from moed.consensus.errors import InvalidTransaction
from moed.consensus.genesis import Genesis, GenesisAccount
from moed.consensus.params import CREDIT, ChainParams
from moed.consensus.state import read_totals, units_in
from moed.consensus.transactions import Transfer
from moed.daemon.chain import Chain
from moed.daemon.errors import StoreCorrupt
from moed.daemon.network.errors import PeerLost
from moed.daemon.signer import Signer
from moed.daemon.store import verify_chain
from moed.protocol.identity import Identity, NodeId

from .disk import Disk, ImagedStore
from .faults import FaultPlan, draw_plan
from .liars import LyingChain
from .network import Endpoint, Network

EPOCH_MS = 1_700_000_000_000
HEALED_SHARE = 0.15
"""The last part of a life has no faults: then the chain must move."""
MIN_HEALED_S = 240.0


class InvariantBroken(AssertionError):
    """The life broke a promise; the message says which, when and between whom."""


@dataclass(slots=True)
class Report:
    """How a life went."""

    seed: int
    hours: float
    nodes: int
    heights: list[int] = field(default_factory=list)
    crashes: int = 0
    partitions: int = 0
    transfers: int = 0
    rounds_over_zero: int = 0
    liars: list[str] = field(default_factory=list)
    trace: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The report as builtins, for JSON."""
        return asdict(self)

    def line(self) -> str:
        """The report as one line for people."""
        liars = f", liars: {', '.join(self.liars)}" if self.liars else ""
        return (
            f"seed {self.seed}: {self.nodes} nodes for {self.hours:g} h, height {max(self.heights)}, "
            f"{self.crashes} crashes, {self.partitions} partitions, {self.transfers} transfers{liars}; "
            f"every promise held, trace {self.trace[:12]}"
        )


class SimulatedNode:
    """A node that can be cut off at any moment and started again from its disk."""

    def __init__(self, world: World, number: int, identity: Identity) -> None:
        self.world = world
        self.number = number
        self.identity = identity
        self.disk = Disk()
        self.skew_ms = world.random.randint(-world.plan.clock_skew_ms, world.plan.clock_skew_ms)
        self.chain: Chain | None = None
        self.acknowledged = 0
        self._scope = trio.CancelScope()

    @property
    def is_honest(self) -> bool:
        return self.number not in self.world.plan.liars

    def now_ms(self) -> int:
        return EPOCH_MS + int(trio.current_time() * 1000) + self.skew_ms

    async def run(self) -> None:
        """Live until `crash`; everything that is not on the disk is gone then."""
        store = ImagedStore(self.disk, self.world.genesis)
        try:
            head = store.load_head()
            self.world.require(
                head.height >= self.acknowledged,
                f"node {self.number} had block {self.acknowledged} and finds {head.height} after a crash",
            )
            signer = Signer(self.identity, head.network_id, self.disk.journal)
            kind = Chain if self.is_honest else LyingChain
            run_blocking = partial(self._run_blocking, store)
            chain = kind(head, store, self.identity, signer, now_ms=self.now_ms, run_blocking=run_blocking)
            if isinstance(chain, LyingChain):
                chain.corrupt(self.world.plan.liars[self.number], self.world.random)
            await self._live(chain)
        finally:
            self.chain = None
            store.close()

    async def _live(self, chain: Chain) -> None:
        endpoint = Endpoint(self.world.network, self.identity.node_id, self.identity.public_key, chain.handlers())
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(chain.run, endpoint)
                self.chain = chain
                self.world.network.join(endpoint)
                try:
                    nursery.start_soon(self._watch, chain)
                    nursery.start_soon(self._meet, chain, endpoint)
                    await trio.sleep_forever()
                finally:
                    self.world.network.leave(endpoint)

    def crash(self) -> None:
        self._scope.cancel()

    async def _meet(self, chain: Chain, endpoint: Endpoint) -> None:
        """Sessions open again and again, as discovery sees to it; both ends greet."""
        while True:
            for link in endpoint.connected():
                await chain.greet(link)
            await trio.sleep(30)

    async def _watch(self, chain: Chain) -> None:
        while True:
            self.world.check_final(self, chain)
            await chain.wait_block()

    async def _run_blocking(self, store: ImagedStore, function: Callable[..., Any], *arguments: Any) -> Any:
        """Inline, because the mock clock does not see threads; a slow disk costs virtual time.

        A request that was under way when the node was cut off ends there.
        """
        if self.world.plan.disk_delay_s and not self.world.network.is_healed:
            await trio.sleep(self.world.random.expovariate(1 / self.world.plan.disk_delay_s))
        if store.is_closed:
            raise PeerLost("the node is gone")
        return function(*arguments)


class World:
    """All nodes of one life, and what must hold between them."""

    def __init__(self, seed: int, nodes: int, hours: float, plan: FaultPlan, network: Network) -> None:
        self.seed = seed
        self.plan = plan
        self.network = network
        self.duration_s = hours * 3600
        self.random = random.Random(f"life {seed}")  # noqa: S311  # repeatable, not secret
        identities = [
            Identity(blake2b(f"{seed} {number}".encode(), digest_size=32).digest()) for number in range(nodes)
        ]
        self.genesis = _genesis(identities, plan)
        self.nodes = [SimulatedNode(self, number, identity) for number, identity in enumerate(identities)]
        self.report = Report(seed, hours, nodes, liars=[lie.name.lower() for lie in plan.liars.values()])
        self._finals: dict[int, tuple[bytes, bytes, int]] = {}
        self._trace = blake2b(digest_size=16)

    def require(self, holds: bool, what: str) -> None:
        if not holds:
            raise InvariantBroken(f"seed {self.seed}, at {trio.current_time():.3f} s: {what}")

    def check_final(self, node: SimulatedNode, chain: Chain) -> None:
        """No two final blocks at one height, one root, supply conserved, and a node never goes back."""
        head = chain.head
        if head.header is None or not node.is_honest:
            return
        self.require(head.height >= node.acknowledged, f"node {node.number} went back to {head.height}")
        node.acknowledged = head.height
        final = (head.hash, head.state_root, node.number)
        first = self._finals.setdefault(head.height, final)
        self.require(
            first[:2] == final[:2],
            f"block {head.height} is {first[0].hex()[:12]} on node {first[2]}, {final[0].hex()[:12]} on {node.number}",
        )
        held = units_in(head.state.records())
        self.require(held == read_totals(head.state).supply, f"units {held} are not the supply at {head.height}")
        self._trace.update(f"{trio.current_time():.6f} {node.number} {head.height} {head.hash.hex()}".encode())
        if first is final:
            self.report.rounds_over_zero += head.commit.round > 0

    async def live(self) -> Report:
        """The whole life, with the final questions at its end. Raises `InvariantBroken`."""
        healed_s = max(self.duration_s * HEALED_SHARE, MIN_HEALED_S)
        async with trio.open_nursery() as nursery:
            for node in self.nodes:
                nursery.start_soon(self._keep, node)
            with trio.move_on_after(self.duration_s - healed_s):
                async with trio.open_nursery() as trouble:
                    trouble.start_soon(self._crash_now_and_then)
                    trouble.start_soon(self._partition_now_and_then)
                    trouble.start_soon(self._transfer_now_and_then)
                    await trio.sleep_forever()
            self.network.is_healed = True
            before = max(node.acknowledged for node in self.nodes)
            await trio.sleep(healed_s)
            self._check_progress(before, healed_s)
            self._check_stores()
            nursery.cancel_scope.cancel()
        self.report.heights = [node.acknowledged for node in self.nodes]
        self.report.trace = self._trace.hexdigest()
        return self.report

    def _check_progress(self, before: int, healed_s: float) -> None:
        """After healing, honest nodes are together and have gone on, at no less than a third of the full pace."""
        honest = [node for node in self.nodes if node.is_honest]
        heights = [node.acknowledged for node in honest]
        self.require(max(heights) - min(heights) <= 2, f"after healing the heights are {heights}")
        interval_s = self.plan.block_interval_ms / 1000
        wanted = before + int((healed_s / 2) / (3 * interval_s)) + 1
        self.require(min(heights) >= wanted, f"after healing at {before} the heights are {heights}, not {wanted}")

    def _check_stores(self) -> None:
        """Every honest disk re-executes to the same chain: nothing final was lost."""
        for node in self.nodes:
            if not node.is_honest or node.disk.image is None:
                continue
            store = ImagedStore(node.disk, self.genesis)
            try:
                head = verify_chain(store)
            except StoreCorrupt as error:
                raise InvariantBroken(
                    f"seed {self.seed}: the disk of node {node.number} does not verify: {error}"
                ) from error
            for block, _ in store.blocks():
                known = self._finals.get(block.height)
                self.require(
                    known is None or known[0] == block.hash, f"node {node.number} holds another block {block.height}"
                )
            self.require(head.height >= node.acknowledged, f"the disk of node {node.number} ends at {head.height}")
            store.close()

    async def _keep(self, node: SimulatedNode) -> None:
        """Run a node, and again after each crash."""
        while True:
            await node.run()
            self.report.crashes += 1
            downtime_s = 0.0 if self.network.is_healed else self.random.expovariate(1 / self.plan.downtime_s)
            await trio.sleep(downtime_s)

    async def _crash_now_and_then(self) -> None:
        while self.plan.crash_every_s:
            await trio.sleep(self.random.expovariate(len(self.nodes) / self.plan.crash_every_s))
            victims = [self.random.choice(self.nodes)]
            if self.random.random() < 0.1:  # a power cut takes everybody
                victims = self.nodes
            for victim in victims:
                if victim.chain is not None:
                    victim.crash()

    async def _partition_now_and_then(self) -> None:
        while self.plan.partition_every_s:
            await trio.sleep(self.random.expovariate(1 / self.plan.partition_every_s))
            ids = [node.identity.node_id for node in self.nodes]
            side = set(self.random.sample(ids, self.random.randint(1, len(ids) - 1)))
            links = _cut(ids, side, one_way=self.random.random() < self.plan.one_way)
            self.report.partitions += 1
            self.network.block(links)
            try:
                await trio.sleep(self.random.expovariate(1 / self.plan.partition_s))
            finally:
                self.network.unblock(links)

    async def _transfer_now_and_then(self) -> None:
        while self.plan.transfers_per_minute:
            await trio.sleep(self.random.expovariate(self.plan.transfers_per_minute / 60))
            chain = self.random.choice(self.nodes).chain
            to = self.random.choice(self.nodes).identity.public_key
            if chain is None:
                continue
            try:
                await chain.submit(Transfer(to=to, amount=self.random.randint(1, CREDIT)))
                self.report.transfers += 1
            except InvalidTransaction:
                continue


def _identity(seed: int, number: int) -> Identity:
    return Identity(blake2b(f"{seed} {number}".encode(), digest_size=32).digest())


def _cut(ids: list[NodeId], side: set[NodeId], *, one_way: bool) -> list[tuple[NodeId, NodeId]]:
    out = [(here, there) for here in ids for there in ids if here in side and there not in side]
    return out if one_way else out + [(there, here) for here, there in out]


def _genesis(identities: list[Identity], plan: FaultPlan) -> Genesis:
    params = ChainParams(block_interval_ms=plan.block_interval_ms, tempo=plan.tempo)
    accounts = tuple(
        GenesisAccount(
            public_key=identity.public_key.hex(), stake=stake * CREDIT, balance=1_000 * CREDIT, is_validator=True
        )
        for identity, stake in zip(identities, plan.stakes, strict=True)
    )
    return Genesis(name="simulated", created_ms=EPOCH_MS, params=params, accounts=accounts)


def simulate(seed: int, *, nodes: int = 4, hours: float = 1.0, block_interval_ms: int | None = None) -> Report:
    """Run one life. Raises `InvariantBroken`; the same arguments always do the same."""
    plan = draw_plan(seed, nodes, block_interval_ms=block_interval_ms)
    clock = trio.testing.MockClock(autojump_threshold=0)

    async def life() -> Report:
        async with trio.open_nursery() as nursery:
            generator = random.Random(f"network {seed}")  # noqa: S311  # repeatable, not secret
            world = World(seed, nodes, hours, plan, Network(plan, generator, nursery))
            report = await world.live()
            nursery.cancel_scope.cancel()
        return report

    try:
        with _repeatable_order(seed):
            return trio.run(life, clock=clock)
    except* InvariantBroken as group:
        raise _first(group) from None


@contextmanager
def _repeatable_order(seed: int) -> Iterator[None]:
    """trio shuffles ready tasks by its own random object: seeded, and sorted first, the order is part of the life."""
    scheduler: Any = trio._core._run  # noqa: SLF001  # the switch that hypothesis uses; there is no public one
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING  # noqa: SLF001
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # noqa: SLF001
    scheduler._r.seed(seed)  # noqa: SLF001
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before  # noqa: SLF001


def _first(group: BaseExceptionGroup[InvariantBroken]) -> InvariantBroken:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
