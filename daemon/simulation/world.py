"""One simulated life: nodes, faults, and the invariants that hold at every step of it.

The nodes run the daemon's own chain, store and signer over links in memory and a disk in memory; time is trio's
mock clock, so an hour passes as fast as the work in it is done. Signatures are the real ones, each checked once in a
life. Everything random comes from the seed, the order of trio's tasks included, and a life ends with a hash of all
that became final: the same seed gives the same hash.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

import trio
import trio.testing

from moed.consensus.blocks import Proposal, Vote
from moed.consensus.errors import InvalidTransaction
from moed.consensus.genesis import Genesis, GenesisAccount
from moed.consensus.params import CREDIT, ChainParams
from moed.consensus.state import read_account
from moed.consensus.transactions import AddStake, Body, Register, Transfer
from moed.daemon.errors import StoreCorrupt
from moed.daemon.store import verify_chain
from moed.protocol.identity import Identity, NodeId

from .disk import SimulatedStore
from .faults import FaultPlan, Profile, draw_plan
from .network import Network
from .node import EPOCH_MS, SimulatedNode
from .schedule import same_schedule
from .witness import InvariantBroken as InvariantBroken
from .witness import Witness

HEALED_SHARE = 0.15
"""The last part of a life has no faults: then the chain must move."""
MIN_HEALED_S = 240.0


@dataclass(slots=True)
class Report:
    """How a life went."""

    seed: int
    hours: float
    nodes: int
    profile: str = ""
    heights: list[int] = field(default_factory=list)
    crashes: int = 0
    cuts: int = 0
    partitions: int = 0
    transactions: int = 0
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
            f"seed {self.seed} ({self.profile}): {self.nodes} nodes for {self.hours:g} h, height {max(self.heights)}, "
            f"{self.rounds_over_zero} blocks in later rounds, {self.crashes} crashes, {self.cuts} of them in a write, "
            f"{self.partitions} partitions, {self.transactions} transactions{liars}; "
            f"every promise held, trace {self.trace[:12]}"
        )


class World:
    """All nodes of one life, and what happens to them."""

    def __init__(self, seed: int, nodes: int, hours: float, plan: FaultPlan) -> None:
        self.seed = seed
        self.plan = plan
        self.duration_s = hours * 3600
        self.random = random.Random(f"life {seed}")  # noqa: S311  # repeatable, not secret
        self.witness = Witness(seed, trio.current_time)
        self.network = Network(seed, plan, self._saw)
        identities = [
            Identity(blake2b(f"{seed} {number}".encode(), digest_size=32).digest()) for number in range(nodes)
        ]
        self.genesis = _genesis(identities, plan)
        self.nodes = [
            SimulatedNode(
                number,
                identity,
                self.genesis,
                plan=plan,
                network=self.network,
                witness=self.witness,
                generator=self.random,
                halves=self._halves,
            )
            for number, identity in enumerate(identities)
        ]
        self._healed = trio.Event()
        self._by_id = {node.identity.node_id: node for node in self.nodes}
        self.report = Report(seed, hours, nodes, plan.profile.name.lower())
        self.report.liars = [lie.name.lower() for lie in plan.liars.values()]

    def _saw(self, source: NodeId, message: Proposal | Vote) -> None:
        node = self._by_id[source]
        head = node.chain.head if node.chain is not None else None
        validators = head.validators if head is not None and head.height + 1 == message.height else None
        self.witness.saw(node.number, node.identity.public_key, node.is_honest, validators, message)

    def _halves(self, height: int) -> frozenset[NodeId]:
        """Who is on one side of the network at a height: where the adversary parts it, else every other node."""
        grudge = self.network.grudge(height)
        if grudge is not None and grudge.halves:
            return grudge.halves
        return frozenset(node.identity.node_id for node in self.nodes[::2])

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
                    trouble.start_soon(self._stake_now_and_then)
                    await trio.sleep_forever()
            self.network.is_healed = True
            self._healed.set()  # who is down comes up
            before = max(node.acknowledged for node in self.nodes)
            await trio.sleep(healed_s)
            self._check_progress(before, healed_s)
            self._check_stores()
            nursery.cancel_scope.cancel()
        self.report.heights = [node.acknowledged for node in self.nodes]
        self.report.cuts = sum(node.cuts for node in self.nodes)
        self.report.rounds_over_zero = self.witness.rounds_over_zero
        self.report.trace = self.witness.trace
        return self.report

    def _check_progress(self, before: int, healed_s: float) -> None:
        """After healing, honest nodes are together and have gone on, at no less than a third of the full pace."""
        heights = [node.acknowledged for node in self.nodes if node.is_honest]
        self.witness.require(max(heights) - min(heights) <= 2, f"after healing the heights are {heights}")
        interval_s = self.plan.block_interval_ms / 1000
        wanted = before + int((healed_s / 2) / (3 * interval_s)) + 1
        what = f"after healing at {before} the heights are {heights}, not {wanted}"
        self.witness.require(min(heights) >= wanted, what)

    def _check_stores(self) -> None:
        """Every honest disk re-executes to the same chain: nothing final was lost."""
        for node in self.nodes:
            if not node.is_honest:
                continue
            store = SimulatedStore(node.disk, self.genesis)
            what = f"the disk of node {node.number}"
            try:
                head = verify_chain(store)
            except StoreCorrupt as error:
                raise InvariantBroken(f"seed {self.seed}: {what} does not verify: {error}") from error
            for block, _ in store.blocks():
                known = self.witness.finals.get(block.height)
                is_known = known is not None and known[0] == block.hash
                self.witness.require(is_known, f"{what} holds another block {block.height}")
            self.witness.require(head.height >= node.acknowledged, f"{what} ends at {head.height}")

    async def _keep(self, node: SimulatedNode) -> None:
        """Run a node, and again after each crash."""
        while True:
            await node.run()
            self.report.crashes += 1
            with trio.move_on_after(self.random.expovariate(1 / self.plan.downtime_s)):
                await self._healed.wait()

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
            to = self.random.choice(self.nodes).identity.public_key
            await self._submit(self.random.choice(self.nodes), Transfer(to=to, amount=self.random.randint(1, CREDIT)))

    async def _stake_now_and_then(self) -> None:
        """Honest ones bond more, so that liars keep under a third; who has no uid yet asks for one."""
        honest = [node for node in self.nodes if node.is_honest]
        while self.plan.stakings_per_minute:
            await trio.sleep(self.random.expovariate(self.plan.stakings_per_minute / 60))
            node = self.random.choice(honest)
            if node.chain is None:
                continue
            is_new = read_account(node.chain.head.state, node.identity.public_key).uid is None
            amount = self.random.choice((1, 10, 100)) * self.random.randint(1, CREDIT)
            await self._submit(node, Register() if is_new else AddStake(amount=amount))

    async def _submit(self, node: SimulatedNode, body: Body) -> None:
        if node.chain is None:
            return
        try:
            await node.chain.submit(body)
        except InvalidTransaction:
            return
        self.report.transactions += 1


def _cut(ids: list[NodeId], side: set[NodeId], *, one_way: bool) -> list[tuple[NodeId, NodeId]]:
    out = [(here, there) for here in ids for there in ids if here in side and there not in side]
    return out if one_way else out + [(there, here) for here, there in out]


def _genesis(identities: list[Identity], plan: FaultPlan) -> Genesis:
    params = ChainParams(block_interval_ms=plan.block_interval_ms, tempo=plan.tempo)
    accounts = tuple(
        GenesisAccount(
            public_key=identity.public_key.hex(),
            stake=stake * CREDIT,
            balance=1_000 * CREDIT,
            is_validator=stake > 0,
        )
        for identity, stake in zip(identities, plan.stakes, strict=True)
    )
    return Genesis(name="simulated", created_ms=EPOCH_MS, params=params, accounts=accounts)


def simulate(
    seed: int,
    *,
    nodes: int = 4,
    hours: float = 1.0,
    block_interval_ms: int | None = None,
    profile: Profile | None = None,
) -> Report:
    """Run one life; without a ``profile`` the seed chooses one. Raises `InvariantBroken`.

    The same arguments always do the same.
    """
    plan = draw_plan(seed, nodes, block_interval_ms=block_interval_ms, profile=profile)

    async def life() -> Report:
        return await World(seed, nodes, hours, plan).live()

    try:
        with same_schedule(seed):
            return trio.run(life, clock=trio.testing.MockClock(autojump_threshold=0))
    except* InvariantBroken as group:
        raise _first(group) from None


def _first(group: BaseExceptionGroup[InvariantBroken]) -> InvariantBroken:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
