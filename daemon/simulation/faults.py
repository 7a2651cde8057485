"""What goes wrong in one simulated life, and how often: drawn from the seed alone, a different mix for each."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum


class Lie(Enum):
    """How a dishonest validator behaves."""

    EQUIVOCATE = "votes for different blocks to different peers"
    TWO_BLOCKS = "proposes different blocks to different peers"
    WITHHOLD = "keeps its votes and proposals back now and then"
    GARBAGE = "sends what does not parse"
    REPLAY = "sends old votes again"


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """The ranges of one life. Rates are means; times in seconds of virtual time."""

    stakes: tuple[int, ...]
    liars: dict[int, Lie]
    block_interval_ms: int
    tempo: int
    delay_mean_s: float
    loss: float
    duplicate: float
    crash_every_s: float
    downtime_s: float
    partition_every_s: float
    partition_s: float
    one_way: float
    disk_delay_s: float
    clock_skew_ms: int
    transfers_per_minute: float


def draw_plan(seed: int, nodes: int, *, block_interval_ms: int | None = None) -> FaultPlan:
    """The plan of a seed. Liars hold under a third of the stake; each kind of fault is absent in some lives."""
    generator = random.Random(f"plan {seed}")  # noqa: S311  # a simulation must be repeatable, not secret
    stakes = tuple(generator.choice((100, 100, generator.randint(40, 160))) for _ in range(nodes))
    liars: dict[int, Lie] = {}
    for node in generator.sample(range(nodes), nodes):
        held = sum(stakes[one] for one in (*liars, node))
        if generator.random() < 0.6 and 3 * held < sum(stakes):
            liars[node] = generator.choice(list(Lie))

    def sometimes(low: float, high: float, chance: float = 0.75) -> float:
        return generator.uniform(low, high) if generator.random() < chance else 0.0

    return FaultPlan(
        stakes=stakes,
        liars=liars,
        block_interval_ms=block_interval_ms or 12_000,
        tempo=generator.choice((7, 20, 50)),
        delay_mean_s=generator.uniform(0.01, 0.5),
        loss=sometimes(0.0, 0.3),
        duplicate=sometimes(0.0, 0.5),
        crash_every_s=sometimes(120, 1_200),
        downtime_s=generator.uniform(1, 120),
        partition_every_s=sometimes(120, 1_200),
        partition_s=generator.uniform(5, 180),
        one_way=sometimes(0.0, 0.5),
        disk_delay_s=sometimes(0.0, 0.2),
        clock_skew_ms=int(sometimes(0, 4_000)),
        transfers_per_minute=generator.uniform(0, 30),
    )
