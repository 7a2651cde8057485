"""Our nodes on virtual time: join, publish, find, with dead and lying nodes among them, and under churn."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from moed.daemon.network.dht import Dht
from moed.daemon.network.library import open_loop
from moed.daemon.simulation.datagrams import VirtualNetwork, VirtualPort
from moed.protocol import queries
from moed.protocol.identity import Identity
from moed.protocol.records import PeerRecord, key_of_peer, sign_record

NETWORK_ID = b"dht benchmark".ljust(32, b".")
EPOCH_S = 1_800_000_000.0
JOINING_AT_ONCE = 16
RECORDS = 100
"""So many nodes publish a record, here and on the stock package; it stands for any number of them."""


@dataclass
class Gets:
    """What the look-ups of one scene brought."""

    times_s: list[float] = field(default_factory=list)
    hops: list[int] = field(default_factory=list)
    found: int = 0
    forged: int = 0
    asked: list[int] = field(default_factory=list)

    @property
    def success(self) -> float:
        return self.found / max(1, len(self.times_s))


@dataclass
class Node:
    """One of our nodes, on its port, in a scope of its own so that it can be ended."""

    dht: Dht
    identity: Identity
    port: VirtualPort
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    has_joined: bool = False

    @property
    def record(self) -> PeerRecord:
        return PeerRecord(addresses=(f"{self.port.address[0]}:{self.port.address[1]}",))


class Nodes:
    """A network of our nodes; needs a trio-asyncio loop and a nursery around it."""

    def __init__(self, nursery: trio.Nursery, network: VirtualNetwork, seed: int) -> None:
        self.nursery = nursery
        self.network = network
        self.rng = random.Random(seed)
        self.seed = seed
        self.all: list[Node] = []

    async def add(self) -> Node:
        """Start one more node and join it through one of those that are there."""
        number = len(self.all)
        identity = Identity(random.Random(f"{self.seed} key {number}").randbytes(32))
        draw = random.Random(f"{self.seed} draw {number}")
        dht = Dht(identity, NETWORK_ID, now_s=lambda: EPOCH_S + trio.current_time(), randomness=draw.randbytes)
        node = Node(dht, identity, VirtualPort(self.network, self.network.address(number + 1)))
        living = [each for each in self.all if each.has_joined and not each.scope.cancel_called]
        self.all.append(node)
        await self.nursery.start(self._run, node)
        if living:
            await dht.join([draw.choice(living).port.address])
        node.has_joined = True
        return node

    async def grow(self, count: int) -> None:
        """Add ``count`` nodes, the first ones one by one, then several at once."""
        for _ in range(min(count, 8)):
            await self.add()
        for start in range(8, count, JOINING_AT_ONCE):
            async with trio.open_nursery() as nursery:
                for _ in range(min(JOINING_AT_ONCE, count - start)):
                    nursery.start_soon(self.add)

    async def publish(self, nodes: Sequence[Node]) -> None:
        """Each of ``nodes`` publishes its record."""
        for start in range(0, len(nodes), JOINING_AT_ONCE):
            async with trio.open_nursery() as nursery:
                for node in nodes[start : start + JOINING_AT_ONCE]:
                    nursery.start_soon(node.dht.publish_peer, node.record)

    async def get(self, seekers: Sequence[Node], owners: Sequence[Node], count: int) -> Gets:
        """``count`` look-ups, each of a random owner's record by a random node that does not hold it."""
        gets = Gets()
        for _ in range(count):
            owner = self.rng.choice(owners)
            key = key_of_peer(owner.identity.node_id)
            others = [each for each in seekers if each is not owner and not each.dht.holds(key)]
            await self._get(self.rng.choice(others or seekers), owner, gets)
        return gets

    def kill(self, node: Node) -> None:
        """End a node as a power cut would."""
        self.network.cut(node.port.address)
        node.scope.cancel()

    async def _run(self, node: Node, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with node.scope:
            await node.dht.serve(node.port, task_status=task_status)

    async def _get(self, seeker: Node, owner: Node, gets: Gets) -> None:
        started_s = trio.current_time()
        found = await seeker.dht.look_up(key_of_peer(owner.identity.node_id))
        gets.times_s.append(trio.current_time() - started_s)
        gets.hops.append(found.value_hop)
        gets.asked.append(found.asked)
        genuine = [each for each in found.records if each.owner == owner.identity.public_key]
        gets.forged += len(found.records) - len(genuine)
        for record in genuine:
            assert isinstance(record, PeerRecord)
            if record.addresses == owner.record.addresses:
                gets.found += 1
            else:
                gets.forged += 1


async def scene(seed: int, count: int, play: Callable[[Nodes], object]) -> None:
    """A network of ``count`` nodes that all published, and then ``play``, an async function of it."""
    network = VirtualNetwork(seed)
    async with open_loop(), trio.open_nursery() as nursery:
        nursery.start_soon(network.run)
        nodes = Nodes(nursery, network, seed)
        await nodes.grow(count)
        await play(nodes)  # type: ignore[misc]  # an async function, said in the docstring
        nursery.cancel_scope.cancel()


def make_liar(node: Node, nodes: Sequence[Node], rng: random.Random) -> None:
    """From now on ``node`` names wrong neighbours, forgets what it is given, and answers with forged records."""
    protocol = node.dht._protocol
    forger = Identity(rng.randbytes(32))

    def neighbors(asker: bytes, key: bytes, budget_bytes: int) -> list[tuple[bytes, str, int]]:
        """Ids right at the key: a third at addresses of honest nodes, the rest where nobody is."""
        invented = []
        for number in range(20):
            near = (int.from_bytes(key, "big") ^ rng.getrandbits(120)).to_bytes(20, "big")
            host, port = rng.choice(nodes).port.address if number % 3 == 0 else (f"10.200.{rng.randrange(256)}.1", 9000)
            invented.append((near, host, port))
        return queries.fit_neighbors(invented, budget_bytes)

    def forged(asker: bytes, key: bytes, offset: int, budget_bytes: int) -> queries.Found:
        victim = next((each for each in nodes if key_of_peer(each.identity.node_id) == key), node)
        own = PeerRecord(
            owner=forger.public_key,
            sequence=1 << 60,
            expires_at_s=int(EPOCH_S + trio.current_time()) + 600,
            addresses=("192.0.2.66:1",),
        )
        signed = sign_record(own, forger, NETWORK_ID)
        stolen = signed.replace(forger.public_key, victim.identity.public_key)
        room = budget_bytes - len(signed) - len(stolen) - 48
        return queries.Found(value=[stolen, signed], nodes=neighbors(asker, key, room))

    lies: dict[str, Callable[..., object]] = {
        "rpc_find_node": neighbors,
        "rpc_find_value": forged,
        "rpc_store": lambda *_: True,
    }
    for name, lie in lies.items():
        setattr(protocol, name, lie)


async def churn(nodes: Nodes, *, hours: float, every_s: float, gets_a_round: int) -> Gets:
    """Half of the nodes are replaced every ``every_s``, spread over that time; records of living owners are sought.

    A new node joins and publishes as a daemon does; the one that it replaces vanishes without a word.
    """
    total = Gets()
    living = list(nodes.all)
    rounds = round(hours * 3600 / every_s)
    for number_of_round in range(rounds):
        sys.stderr.write(
            f"  round {number_of_round + 1} of {rounds}: {total.found} of {len(total.times_s)} found so far\n"
        )
        leaving = nodes.rng.sample(living, len(living) // 2)
        for number, gone in enumerate(leaving):
            nodes.kill(gone)
            living.remove(gone)
            node = await nodes.add()
            await node.dht.publish_peer(node.record)
            living.append(node)
            pause_s = every_s / len(leaving)
            if number % max(1, len(leaving) // gets_a_round) == 0:
                gets = await nodes.get(living, living, 1)
                total.times_s += gets.times_s
                total.found += gets.found
                total.forged += gets.forged
            await trio.sleep(max(0.0, pause_s - 2.0))
    return total


def play_gets(count: int, out: list[Gets], *, dead: float = 0.0, lying: float = 0.0) -> Callable[[Nodes], object]:
    """The scene of ``count`` look-ups with these shares of nodes dead or lying."""
    return partial(_play_gets, count=count, out=out, dead=dead, lying=lying)


async def _play_gets(nodes: Nodes, *, count: int, out: list[Gets], dead: float, lying: float) -> None:
    chosen = nodes.rng.sample(nodes.all, round(max(dead, lying) * len(nodes.all)))
    rest = [each for each in nodes.all if each not in chosen]
    if lying:
        for node in chosen:
            make_liar(node, nodes.all, nodes.rng)
    owners = nodes.rng.sample(rest if lying else nodes.all, min(RECORDS, len(rest)))
    await nodes.publish(owners)
    await trio.sleep(30)  # what joining and publishing set going is over
    if dead:
        for node in chosen:
            nodes.kill(node)
    out.append(await nodes.get(rest, owners, count))
