"""Does a niche pay, and are copies and relays found? Miners judged by a validator's own scores and canaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moed.models.corpora import Corpus, Split, Tokens, load_corpus
from moed.models.judging import Judging
from moed.models.likeness import AKIN, ALIKE, MAX_MISSING, MIN_ROWS, LikenessWatch, draw_canaries
from moed.models.locks import NextByte
from moed.models.plans import ValidatorConfig
from moed.models.validation import ValidatorBrain

from .members import Answering, Member, Say, ask, text_of, train_member

DOMAINS = ("prose", "python", "tables", "c")
NICHE = "tables"
NICHE_WEIGHTS = (0.1, 0.25, 0.5, 1.0)
BATCHES = 12


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to train and to measure: the defaults are the experiment's, a test takes less."""

    domains: Sequence[str] = DOMAINS
    niche: str = NICHE
    steps: int = 300
    twins: int = 3
    plans: int = 80
    niche_weights: Sequence[float] = NICHE_WEIGHTS
    validator: ValidatorConfig = field(default_factory=lambda: ValidatorConfig(canary_rows=0))


@dataclass(frozen=True, slots=True)
class Altered:
    """What a copy or a relay makes of another's answers so as not to be found: all that it can, short of ruining them.

    ``noise`` is the deviation of what is added to each log-probability, ``sharpness`` the power of the distribution,
    ``own`` the share of a model of its own that is mixed in.
    """

    original: Answering
    seed: int = 0
    noise: float = 0.0
    sharpness: float = 1.0
    own: Answering | None = None
    own_share: float = 0.0

    def answer(self, tokens: Tokens) -> npt.NDArray[Any]:
        """The original's answer, altered."""
        own = None if self.own is None else self.own.answer(tokens)
        return self.alter(self.original.answer(tokens), own, draw=int(tokens.sum()))

    def alter(self, answer: npt.NDArray[Any], own: npt.NDArray[Any] | None, *, draw: int) -> npt.NDArray[Any]:
        """What becomes of the original's answer and the model's own [B, T, 256]; ``draw`` decides the noise."""
        log_probs = torch.from_numpy(answer.astype(np.float32)) * self.sharpness
        if self.noise:
            generator = torch.Generator().manual_seed(self.seed + draw)
            log_probs = log_probs + self.noise * torch.randn(log_probs.shape, generator=generator)
        log_probs = log_probs.log_softmax(dim=-1)
        if own is not None:
            mine = torch.from_numpy(own.astype(np.float32))
            log_probs = torch.logaddexp(
                log_probs + float(np.log(1 - self.own_share)), mine + float(np.log(self.own_share))
            )
        altered: npt.NDArray[np.float16] = log_probs.numpy().astype(np.float16)
        return altered


def run_specialist(*, seed: int, say: Say, scale: Scale | None = None) -> dict[str, Any]:
    """A niche's pay by how much the niche counts, then a copy and a relay in the field, then error rates."""
    scale = scale or Scale()
    corpora = {name: load_corpus(name) for name in scale.domains}
    say(f"{len(corpora)} specialists and {scale.twins} honest twins of one, {scale.steps} steps each ...")
    specialists = {
        name: train_member(name, corpus, steps=scale.steps, seed=seed + at, say=say)
        for at, (name, corpus) in enumerate(corpora.items())
    }
    first = next(iter(corpora))
    twins = [
        train_member(f"{first}-twin-{number}", corpora[first], steps=scale.steps, seed=seed + 40 + number, say=say)
        for number in range(scale.twins)
    ]
    generalist = train_member(
        "generalist", text_of(corpora, dict.fromkeys(corpora, 1.0)), steps=scale.steps, seed=seed + 60, say=say
    )
    say("pay of the niche ...")
    pay = [
        niche_pay(corpora, {**specialists, "generalist": generalist}, scale, weight, seed)
        for weight in scale.niche_weights
    ]
    say("a copy and a relay beside the original and an honest twin ...")
    field = field_with_a_copy(corpora, specialists, twins[0], scale, seed)
    say("error rates ...")
    rates = error_rates(corpora, [*specialists.values(), *twins, generalist], specialists, seed)
    return {
        "experiment": "specialist",
        "seed": seed,
        "niche": scale.niche,
        "pay": pay,
        "field": field,
        "detection": rates,
        "held": {
            "the_niche_earns": all(row["niche_pay"] > 0 for row in pay),
            "in_proportion": [row["niche_pay"] for row in pay] == sorted(row["niche_pay"] for row in pay),
            "copy_and_relay_flagged": field["flagged"] == {"copy": first, "relay": first},
            "no_honest_flagged": rates["honest_flagged"] == 0,
            "no_copy_missed": rates["copies_missed"] == 0,
        },
    }


def niche_pay(
    corpora: Mapping[str, Corpus], members: Mapping[str, Answering], scale: Scale, weight: float, seed: int
) -> dict[str, Any]:
    """What share of the weights the niche's specialist gets where its lock counts ``weight`` beside 1 of each other."""
    locks = [NextByte(corpus, weight if name == scale.niche else 1.0) for name, corpus in corpora.items()]
    brain = ValidatorBrain(locks, scale.validator, seed, gate_seed=seed)
    brain.set_miners(range(len(members)))
    by_uid, names = dict(enumerate(members.values())), list(members)
    for _ in range(scale.plans):
        plan = brain.plan()
        brain.learn(plan, ask(by_uid, plan))
    weights = brain.weights()
    total = sum(weights.values())
    pay = {names[uid]: one / total if total else 0.0 for uid, one in weights.items()}
    losses = {
        member: {name: _bits_on(answering, corpus, "held_out", seed) for name, corpus in corpora.items()}
        for member, answering in members.items()
    }
    return {
        "niche_weight": weight,
        "niche_share_of_stream": weight / (weight + len(corpora) - 1),
        "niche_pay": pay[scale.niche],
        "pay": pay,
        "member_losses": losses,
    }


def field_with_a_copy(
    corpora: Mapping[str, Corpus], specialists: Mapping[str, Member], twin: Member, scale: Scale, seed: int
) -> dict[str, Any]:
    """The running detection: a validator's plans go to originals, a twin, a noisy copy and a sharpened relay."""
    first = next(iter(specialists))
    original = specialists[first]
    miners: dict[str, Answering] = {
        **specialists,
        "twin": twin,
        "copy": Altered(original, seed, noise=0.3),
        "relay": Altered(original, seed, sharpness=1.15),
    }
    names = list(miners)
    brain = ValidatorBrain(list(corpora.values()), ValidatorConfig(), seed, gate_seed=seed)
    brain.set_miners(range(len(names)), {uid: uid for uid in range(len(names))})
    by_uid = dict(enumerate(miners.values()))
    plans_until: dict[str, int] = {}
    for number in range(1, scale.plans + 1):
        plan = brain.plan()
        brain.learn(plan, ask(by_uid, plan))
        for uid in _flagged(brain.judging):
            plans_until.setdefault(names[uid], number)
    flagged = {names[uid]: names[of] for uid, of in _flagged(brain.judging).items()}
    weights = brain.weights()
    total = sum(weights.values())
    return {
        "flagged": flagged,
        "plans_until_flagged": plans_until,
        "likeness": {
            name: brain.judging.likeness.likeness(names.index(first), uid)
            for uid, name in enumerate(names)
            if name != first
        },
        "pay": {names[uid]: one / total if total else 0.0 for uid, one in weights.items()},
    }


def _flagged(judging: Judging) -> dict[int, int]:
    return judging.likeness.copies({})


DISGUISES: Mapping[str, dict[str, float]] = {
    "plain": {},
    "noise 0.3": {"noise": 0.3},
    "noise 0.6": {"noise": 0.6},
    "noise 1.0": {"noise": 1.0},
    "sharpness 0.7": {"sharpness": 0.7},
    "sharpness 1.3": {"sharpness": 1.3},
    "a fifth its own": {"own_share": 0.2},
    "half its own": {"own_share": 0.5},
    "half its own, noise 0.3": {"own_share": 0.5, "noise": 0.3},
    "half its own, sharpness 1.3": {"own_share": 0.5, "sharpness": 1.3},
    "three quarters its own": {"own_share": 0.75},
}
BEYOND: Mapping[str, dict[str, float]] = {"nine tenths its own": {"own_share": 0.9}}
"""What is not promised to be found: so little of it is another's. Told beside the rest and not counted."""


def error_rates(
    corpora: Mapping[str, Corpus], honest: Sequence[Member], specialists: Mapping[str, Member], seed: int
) -> dict[str, Any]:
    """How often honest pairs are taken for copies, and disguised copies are missed, over batches of fresh canaries."""
    locks = [NextByte(corpus) for corpus in corpora.values()]
    rng = np.random.default_rng(seed)
    batches = [draw_canaries(locks, rng, MIN_ROWS, 128) for _ in range(BATCHES)]
    answers = {member.name: [member.answer(rows) for rows in batches] for member in honest}
    pairs = {
        f"{one} / {other}": [_compare(a, b) for a, b in zip(answers[one], answers[other], strict=True)]
        for one, other in combinations(answers, 2)
    }
    told = [one for found in pairs.values() for one in found]
    stranger = honest[-1]
    copies, costs = {}, {}
    for name, means in {**DISGUISES, **BEYOND}.items():
        relays = [
            Altered(victim, seed, own=stranger if "own_share" in means else None, **means)
            for victim in specialists.values()
        ]
        copies[name] = [
            one for relay, victim in zip(relays, specialists, strict=True) for one in _find(relay, victim, answers)
        ]
        costs[name] = _costs(relays, specialists, corpora, seed)
    return {
        "threshold": ALIKE,
        "akin": AKIN,
        "max_missing": MAX_MISSING,
        "rows": MIN_ROWS,
        "honest_tests": len(told),
        "honest_flagged": sum(one.is_flagged for one in told),
        "honest_mean": float(np.mean([one.likeness for one in told])),
        "honest_max": max(one.likeness for one in told),
        "honest_missing_min": min((one.missing for one in told if one.likeness > AKIN), default=1.0),
        "copy_tests": sum(len(copies[name]) for name in DISGUISES),
        "copies_missed": sum(not one.is_flagged for name in DISGUISES for one in copies[name]),
        "disguises": {
            name: {
                "likeness_min": min(one.likeness for one in found),
                "likeness_mean": float(np.mean([one.likeness for one in found])),
                "missing_max": max(one.missing for one in found),
                "missed": sum(not one.is_flagged for one in found),
                "tests": len(found),
                "costs_bits": float(np.mean(costs[name])),
            }
            for name, found in copies.items()
        },
        "honest": {
            pair: [float(np.mean([one.likeness for one in found])), max(one.likeness for one in found),
                   min(one.missing for one in found)]
            for pair, found in pairs.items()
        },
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Compared:
    """How a `LikenessWatch` finds two answers to one batch of canaries; ``missing`` is the lesser of both ways."""

    likeness: float
    missing: float
    is_flagged: bool


def _compare(one: npt.NDArray[Any], other: npt.NDArray[Any], *, both_ways: bool = True, first: int = 47) -> _Compared:
    watch = LikenessWatch()
    read = {
        uid: torch.from_numpy(answer[:, first:].astype(np.float32)).flatten(0, 1)
        for uid, answer in enumerate((one, other))
    }
    watch.observe(read, len(one))
    ways = [(0, 1), (1, 0)] if both_ways else [(0, 1)]
    missing = [watch.missing(*way) for way in ways]
    return _Compared(
        watch.likeness(0, 1) or 0.0,
        min(1.0 if one is None else one for one in missing),
        any(watch.is_copy(*way) for way in ways),
    )


def _find(relay: Altered, victim: str, answers: Mapping[str, Sequence[npt.NDArray[Any]]]) -> list[_Compared]:
    """A relay's answers to each batch beside those of the one that it asks, which came first."""
    own = answers[relay.own.name] if isinstance(relay.own, Member) else [None] * BATCHES
    return [
        _compare(original, relay.alter(original, mine, draw=number), both_ways=False)
        for number, (original, mine) in enumerate(zip(answers[victim], own, strict=True))
    ]


def _costs(
    relays: Sequence[Altered], specialists: Mapping[str, Member], corpora: Mapping[str, Corpus], seed: int
) -> list[float]:
    """What the disguise costs each relay in bits per byte of its victim's own domain."""
    return [
        _bits_on(relay, corpora[victim], "validation", seed)
        - _bits_on(specialists[victim], corpora[victim], "validation", seed)
        for relay, victim in zip(relays, specialists, strict=True)
    ]


def _bits_on(member: Answering, corpus: Corpus, split: Split, seed: int, rows: int = 32) -> float:
    drawn = corpus.sample(split, np.random.default_rng(seed), rows, 129)
    answer = member.answer(drawn[:, :-1]).astype(np.float32)
    told = np.take_along_axis(answer, drawn[:, 1:, None].astype(np.int64), axis=-1)
    return float(-told.mean() / np.log(2))
