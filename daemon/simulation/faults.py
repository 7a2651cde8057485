"""What goes wrong in one simulated life, and how often: drawn from the seed alone, a different mix for each."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum


class Lie(Enum):
    """How a dishonest validator behaves."""

    SPLIT = "tells each half of the network its own story: another block, other votes"
    EQUIVOCATE = "votes for different blocks to different peers, as it comes"
    WITHHOLD = "keeps its votes and proposals back now and then"
    GARBAGE = "sends what does not parse"
    REPLAY = "sends old votes again"


class Profile(Enum):
    """What a life is mostly about; every other kind of fault may come on top."""

    WEATHER = "loss, copies, partitions, crashes: everything by chance"
    POWER = "power cuts at the very moment of a write, and restarts at once"
    SCHEDULE = "an adversary holds back chosen messages so that rounds split: some lock, the rest go on"
    TREASON = "as many liars as may be, telling each half its own story while the halves hear each other late"
    STAKE = "stake moves and validators come, while those with much of it vanish now and then"


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """The ranges of one life. Rates are means; times in seconds of virtual time."""

    profile: Profile
    stakes: tuple[int, ...]
    liars: dict[int, Lie]
    block_interval_ms: int
    tempo: int
    delay_mean_s: float
    loss: float
    duplicate: float
    crash_every_s: float
    downtime_s: float
    cut_share: float
    partition_every_s: float
    partition_s: float
    one_way: float
    grudge_share: float
    disk_delay_s: float
    clock_skew_ms: int
    transfers_per_minute: float
    stakings_per_minute: float


def draw_plan(
    seed: int, nodes: int, *, block_interval_ms: int | None = None, profile: Profile | None = None
) -> FaultPlan:
    """The plan of a seed. Liars hold under a third of the stake; each kind of fault is absent in some lives."""
    generator = random.Random(f"plan {seed}")  # noqa: S311  # a simulation must be repeatable, not secret
    drawn = generator.choice(list(Profile))
    profile = profile or drawn
    stakes = tuple(generator.choice((100, 100, generator.randint(40, 160))) for _ in range(nodes))

    def sometimes(low: float, high: float, chance: float) -> float:
        return generator.uniform(low, high) if generator.random() < chance else 0.0

    def often_in(wanted: Profile) -> float:
        return 1.0 if profile is wanted else 0.25

    by_chance = 0.75 if profile is Profile.WEATHER else 0.35
    return FaultPlan(
        profile=profile,
        stakes=stakes,
        liars=_draw_liars(generator, profile, stakes),
        block_interval_ms=block_interval_ms or 12_000,
        tempo=generator.choice((3, 5, 10) if profile is Profile.STAKE else (7, 20, 50)),
        delay_mean_s=generator.uniform(0.01, 0.5 if profile is Profile.WEATHER else 0.2),
        loss=sometimes(0.0, 0.3 if profile is Profile.WEATHER else 0.1, by_chance),
        duplicate=sometimes(0.0, 0.5, by_chance),
        crash_every_s=sometimes(60, 1_200, max(by_chance, often_in(Profile.STAKE))),
        downtime_s=generator.choice((0.3, 3.0, generator.uniform(5, 120))),
        cut_share=sometimes(0.002, 0.05, often_in(Profile.POWER)),
        partition_every_s=sometimes(60, 1_200, max(by_chance, often_in(Profile.STAKE))),
        partition_s=generator.uniform(5, 180),
        one_way=sometimes(0.0, 1.0, 0.75),
        grudge_share=sometimes(0.1, 0.6, 0.25 if profile in (Profile.WEATHER, Profile.STAKE) else 1.0),
        disk_delay_s=sometimes(0.0, 0.2, 0.5),
        clock_skew_ms=int(sometimes(0, 4_000, 0.5)),
        transfers_per_minute=generator.uniform(0, 20),
        stakings_per_minute=sometimes(0.5, 4, often_in(Profile.STAKE)),
    )


def _draw_liars(generator: random.Random, profile: Profile, stakes: tuple[int, ...]) -> dict[int, Lie]:
    liars: dict[int, Lie] = {}
    chance = 1.0 if profile is Profile.TREASON else 0.4
    for node in generator.sample(range(len(stakes)), len(stakes)):
        held = sum(stakes[one] for one in (*liars, node))
        if generator.random() < chance and 3 * held < sum(stakes):
            liars[node] = generator.choice((Lie.SPLIT, Lie.EQUIVOCATE) if profile is Profile.TREASON else list(Lie))
    return liars
