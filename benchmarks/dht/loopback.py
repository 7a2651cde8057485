"""Our nodes on real loopback sockets, all in one process: join, store, get, memory, and speed beside a flood."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from moed.daemon.network.datagrams import Address
from moed.daemon.network.dht import Dht
from moed.daemon.network.library import open_loop
from moed.protocol.identity import Identity
from moed.protocol.records import PeerRecord, key_of_peer

from .ours import NETWORK_ID
from .results import Loopback

REPLICAS = 5
"""hivemind's default number of replicas."""
FLOOD_PER_S = 20_000
FLOOD_S = 5.0


@dataclass(frozen=True)
class LoopbackNode:
    dht: Dht
    identity: Identity
    address: Address


@asynccontextmanager
async def nodes_on_loopback(
    count: int, result: Loopback | None = None, *, replicas: int = REPLICAS
) -> AsyncIterator[list[LoopbackNode]]:
    """``count`` nodes, each joined through up to three of those before it."""
    rng = random.Random(count)
    sockets = []
    async with open_loop(), trio.open_nursery() as nursery:
        nodes: list[LoopbackNode] = []
        for _ in range(count):
            socket = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
            sockets.append(socket)
            await socket.bind(("127.0.0.1", 0))
            identity = Identity(rng.randbytes(32))
            started = time.perf_counter()
            dht = Dht(identity, NETWORK_ID, replicas=replicas)
            await nursery.start(dht.run, socket)
            await dht.join([each.address for each in rng.sample(nodes, min(3, len(nodes)))])
            if result is not None:
                result.join_ms.append((time.perf_counter() - started) * 1000)
            nodes.append(LoopbackNode(dht, identity, socket.getsockname()))
        yield nodes
        nursery.cancel_scope.cancel()
    for socket in sockets:
        socket.close()


async def measure(count: int, keys: int, warmup: int) -> Loopback:
    """Store and get ``keys`` records among ``count`` nodes: each by random nodes, one call after the other."""
    result = Loopback()
    async with nodes_on_loopback(count, result) as nodes:
        rng = random.Random(count)
        for number in range(warmup + keys):
            owner = rng.choice(nodes)
            started = time.perf_counter()
            accepted = await owner.dht.publish_peer(PeerRecord(addresses=(f"192.0.2.1:{number + 1}",)))
            store_ms = (time.perf_counter() - started) * 1000
            seeker = rng.choice([each for each in nodes if each is not owner])
            started = time.perf_counter()
            found = await seeker.dht.find_peer(owner.identity.node_id)
            get_ms = (time.perf_counter() - started) * 1000
            if number >= warmup:
                result.store_ms.append(store_ms)
                result.get_ms.append(get_ms)
                is_right = found is not None and found.addresses == (f"192.0.2.1:{number + 1}",)
                result.failed += not (accepted and is_right)
    return result


def memory_mib(count: int) -> tuple[float, float]:
    """Resident memory for each of ``count`` nodes after 100 stores and gets: (growth, whole process over count).

    Measured in a process of its own, so that nothing is there already.
    """
    script = (
        "import sys, trio, logging, structlog\n"
        "structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))\n"
        "from benchmarks.dht import loopback\n"
        "count = int(sys.argv[1]); before = loopback.resident_mib()\n"
        "trio.run(loopback.measure, count, 100, 0)\n"
        "after = loopback.resident_mib(); print((after - before) / count, after / count)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(count)], capture_output=True, text=True, check=True)
    growth, whole = done.stdout.split()
    return float(growth), float(whole)


def resident_mib() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


async def look_ups_beside_a_flood(seconds: float) -> tuple[float, float]:
    """Look-ups a second among eight nodes, one after the other: (while one of them is flooded, while it is not).

    The flood comes from one address of another process: 20,000 datagrams a second for ``seconds``, half random bytes,
    half copies of one properly signed ping. When no node is flooded the same flood goes to a socket that nobody reads:
    the sender takes its share of this machine's cores both times, as one elsewhere would not.
    """
    async with nodes_on_loopback(8) as nodes:
        for node in nodes:
            await node.dht.publish_peer(PeerRecord(addresses=(f"127.0.0.1:{node.address[1]}",)))
        rng = random.Random(1)

        async def look_up_beside(target: Address) -> float:
            flood = await trio.lowlevel.open_process(_flood_command(target, seconds + 2))
            await trio.sleep(1)  # the other process takes a while to start
            done = 0
            started = time.perf_counter()
            while time.perf_counter() - started < seconds:
                seeker, owner = rng.sample(nodes[1:], 2)
                found = await seeker.dht.look_up(key_of_peer(owner.identity.node_id))
                done += bool(found.records)
            rate = done / (time.perf_counter() - started)
            await flood.wait()
            return rate

        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sink:
            await sink.bind(("127.0.0.1", 0))
            before = await look_up_beside(sink.getsockname())
            flooded = await look_up_beside(nodes[0].address)
            after = await look_up_beside(sink.getsockname())
        return flooded, (before + after) / 2


def _flood_command(target: Address, seconds: float) -> list[str]:
    return [sys.executable, "-m", "benchmarks.dht.flood", target[0], str(target[1]), str(seconds)]
