"""How long it takes to find the best experts in the DHT, and how many of them are found: real DHT nodes, virtual time.

Each node serves one expert of a square grid of which a part is empty. A search starts without knowing anything, from a
random node, for one row of random scores: the first prefixes are read from the DHT at once, and more of them where what
was pruned could still be better.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import trio

from moed.daemon.expert_grid import GridDirectory, grid_topics
from moed.daemon.network.dht import Dht
from moed.daemon.network.library import open_loop
from moed.daemon.simulation.datagrams import VirtualNetwork, VirtualPort
from moed.daemon.simulation.schedule import same_schedule
from moed.models.beam import NOBODY, Grid, search
from moed.protocol.identity import Identity

from .world import VirtualClock

NETWORK_ID = b"dmoe experiment".ljust(32, b".")
EPOCH_S = 1_800_000_000.0
ROUND_TRIP_S = 0.05
FILLED = 0.7
"""The share of the grid's places that have an expert."""
K_BEST = 4
BEAM_WIDTH = 8
MAX_ROUNDS = 8
AT_ONCE = 16


@dataclass
class Searches:
    """What the searches of one network brought, in seconds and shares of the exact top k."""

    times_s: list[float] = field(default_factory=list)
    recalls: list[float] = field(default_factory=list)
    looked_up: list[int] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """The row for JSON."""
        p50, p95 = np.percentile(self.times_s, (50, 95)).tolist()
        return {
            "searches": len(self.times_s),
            "p50_s": p50,
            "p95_s": p95,
            "recall": float(np.mean(self.recalls)),
            "look_ups_mean": float(np.mean(self.looked_up)),
        }


class _Counted:
    """A directory that knows nothing yet, asked from a thread on virtual time."""

    def __init__(self, clock: VirtualClock, dht: Dht) -> None:
        self._clock = clock
        self._directory = GridDirectory(dht.find_topic)
        self.asked: set[str] = set()

    def look_up(self, prefixes: Collection[str]) -> Mapping[str, Collection[int]]:
        self.asked |= set(prefixes)
        return self._clock.wait(lambda: self._directory.live(prefixes))


def find_experts(nodes: int, searches: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """``searches`` cold searches in a network of ``nodes``.

    Each is measured twice: with the beam that it starts with, and once that beam was widened until nothing better can
    be missing.
    """
    clock = VirtualClock()
    size = math.ceil(math.sqrt(nodes / FILLED))
    grid = Grid("ffn.", (size, size))
    found = {"widened": Searches(), "fixed": Searches()}

    async def play() -> None:
        network = VirtualNetwork(seed, mean_round_trip_s=ROUND_TRIP_S)
        async with open_loop(), trio.open_nursery() as nursery:
            nursery.start_soon(network.run)
            clock.clock.autojump_threshold = 0.0
            dhts = await _grow(nursery, network, nodes, seed)
            places = random.Random(f"places {seed}").sample(range(grid.places), nodes)  # noqa: S311  # repeatable
            say(f"{nodes} nodes have joined, {trio.current_time():.0f} s of virtual time")
            await _announce(dhts, [grid.name(place) for place in places])
            say(f"{nodes} experts are announced on a grid of {size} x {size}")
            draw = np.random.default_rng(seed)
            for _ in range(searches):
                scores = [torch.from_numpy(draw.standard_normal((1, size), dtype=np.float32)) for _ in grid.sizes]
                seeker = dhts[int(draw.integers(nodes))]
                await _search_once(clock, seeker, grid, scores, places, found)
            nursery.cancel_scope.cancel()

    with same_schedule(seed):
        trio.run(play, clock=clock.clock)
    kinds = {kind: one.plain() for kind, one in found.items()}
    say(f"{searches} searches among {nodes} nodes: p50 {kinds['widened']['p50_s']:.3f} s")
    return {"nodes": nodes, "grid": list(grid.sizes), "seed": seed, "round_trip_s": ROUND_TRIP_S, **kinds}


async def _search_once(
    clock: VirtualClock,
    seeker: Dht,
    grid: Grid,
    scores: list[torch.Tensor],
    places: list[int],
    found: Mapping[str, Searches],
) -> None:
    """One search, noted after its first round as that of a fixed beam, and when it ends as that of a widened one.

    The second call goes through the first round again without a question, for the directory remembers its answers.
    """
    directory = _Counted(clock, seeker)
    began_s = trio.current_time()
    for kind, max_rounds in (("fixed", 1), ("widened", MAX_ROUNDS)):
        best = await clock.compute(
            search, scores, grid, K_BEST, directory.look_up, width=BEAM_WIDTH, max_rounds=max_rounds
        )
        into = found[kind]
        into.times_s.append(trio.current_time() - began_s)
        into.looked_up.append(len(directory.asked))
        into.recalls.append(_recall(best.picked[0], scores, places))


async def _grow(nursery: trio.Nursery, network: VirtualNetwork, count: int, seed: int) -> list[Dht]:
    """So many DHT nodes that have joined through one another."""
    dhts: list[Dht] = []
    addresses: list[tuple[str, int]] = []

    async def add(number: int) -> None:
        draw = random.Random(f"{seed} node {number}")  # noqa: S311  # repeatable, not secret
        dht = Dht(
            Identity(draw.randbytes(32)),
            NETWORK_ID,
            now_s=lambda: EPOCH_S + trio.current_time(),
            randomness=draw.randbytes,
        )
        port = VirtualPort(network, network.address(number + 1))
        await nursery.start(dht.serve, port)
        if addresses:
            await dht.join([draw.choice(addresses)])
        dhts.append(dht)
        addresses.append(port.address)

    for number in range(min(count, 8)):
        await add(number)
    for start in range(8, count, AT_ONCE):
        async with trio.open_nursery() as joining:
            for number in range(start, min(start + AT_ONCE, count)):
                joining.start_soon(add, number)
    return dhts


async def _announce(dhts: list[Dht], names: list[str]) -> None:
    async def announce(dht: Dht, name: str) -> None:
        for topic, note in grid_topics([name]).items():
            await dht.announce(topic, note)

    pairs = list(zip(dhts, names, strict=True))
    for start in range(0, len(pairs), AT_ONCE):
        async with trio.open_nursery() as nursery:
            for dht, name in pairs[start : start + AT_ONCE]:
                nursery.start_soon(announce, dht, name)


def _recall(picked: torch.Tensor, scores: list[torch.Tensor], places: list[int]) -> float:
    """The share of the exact best k among the live places that was picked."""
    total = (scores[0][0].unsqueeze(1) + scores[1][0].unsqueeze(0)).flatten()
    live = torch.tensor(places)
    exact = live[total[live].topk(K_BEST).indices].tolist()
    return len(set(exact) & (set(picked.tolist()) - {NOBODY})) / K_BEST
