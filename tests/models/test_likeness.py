"""Copies and relays are found by canaries, in disguise too, and honest twins are left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moed.models.corpora import Corpus, load_corpus
from moed.models.experiments.members import Answering, Member, ask, train_member
from moed.models.experiments.specialist import Altered
from moed.models.gate import GateConfig
from moed.models.likeness import AKIN, ALIKE, MAX_MISSING, MEASURED_PAIRS, MIN_ROWS, LikenessWatch, draw_canaries
from moed.models.locks import NextByte
from moed.models.plans import ValidatorConfig
from moed.models.validation import ValidatorBrain
from support.counted_experts import CountedExpert

SMALL = {"embedding": 24, "width": 32, "ngram_order": 3, "ngram_buckets": 1024}
LENGTH = 64


@pytest.fixture(scope="module")
def tables() -> Corpus:
    return load_corpus("tables")


@pytest.fixture(scope="module")
def twins(tables: Corpus) -> tuple[Member, Member]:
    """Two models of the same kind that learned the same text apart from each other, from other weights."""
    one, other = (
        train_member(f"twin {seed}", tables, steps=60, seed=seed, say=lambda _text: None, options=SMALL)
        for seed in (11, 12)
    )
    return one, other


def watch_of(tables: Corpus, senior: Answering, junior: Answering, seed: int = 3) -> LikenessWatch:
    """What is known of uid 1, the senior, and uid 2 after one batch of canaries."""
    rows = draw_canaries([NextByte(tables)], np.random.default_rng(seed), MIN_ROWS, LENGTH)
    watch = LikenessWatch()
    answers = {
        uid: torch.from_numpy(np.array(who.answer(rows), dtype=np.float32)) for uid, who in ((1, senior), (2, junior))
    }
    watch.observe({uid: answer[:, 16:].flatten(0, 1) for uid, answer in answers.items()}, MIN_ROWS)
    return watch


@pytest.mark.parametrize(("noise", "sharpness"), [(0.0, 1.0), (0.5, 1.0), (0.0, 0.8), (0.0, 1.3)])
def test_a_disguise_does_not_hide_a_copy(
    tables: Corpus, twins: tuple[Member, Member], noise: float, sharpness: float
) -> None:
    """Noise and temperature leave the answers of a relay above the threshold."""
    original, _ = twins
    watch = watch_of(tables, original, Altered(original, 5, noise=noise, sharpness=sharpness))
    assert (watch.likeness(1, 2) or 0) > ALIKE
    assert watch.copies({}) == {2: 1}


@pytest.mark.parametrize("own_share", [0.5, 0.75])
def test_what_a_relay_mixes_in_does_not_hide_what_it_passes_on(
    tables: Corpus, twins: tuple[Member, Member], own_share: float
) -> None:
    """Half and three quarters of an honest model of its own: nothing of the original is missing."""
    original, own = twins
    relay = Altered(original, 5, own=own, own_share=own_share)
    watch = watch_of(tables, original, relay)
    assert (watch.missing(1, 2) or 0) < 0.2 * MAX_MISSING
    assert watch.copies({}) == {2: 1}
    assert watch_of(tables, relay, original).missing(2, 1) == pytest.approx(watch.missing(1, 2))


def test_honest_twins_are_left_alone(tables: Corpus, twins: tuple[Member, Member]) -> None:
    """Twins of one text are well below one threshold and above the other, in both orders."""
    watch = watch_of(tables, *twins)
    assert (watch.likeness(1, 2) or 1) < ALIKE - 0.05
    assert min(watch.missing(1, 2) or 0, watch.missing(2, 1) or 0) > 2 * MAX_MISSING
    assert watch.copies({}) == watch.copies({1: 2, 2: 1}) == {}


def test_canaries_are_no_text(tables: Corpus) -> None:
    """A canary is as long as asked for, differs each time, and stands nowhere in the text that it is made of."""
    rows = draw_canaries([NextByte(tables)], np.random.default_rng(1), 6, LENGTH)
    assert rows.shape == (6, LENGTH)
    text = tables.sides["validation"].data.tobytes()
    assert all(row.tobytes()[:24] not in text for row in rows)
    assert len({row.tobytes() for row in rows}) == 6


def test_the_later_of_two_alike_is_the_copy() -> None:
    """By seniority, then by uid; of three the copies point to the first; before enough canaries nobody is accused."""
    watch = LikenessWatch()
    assert watch.copies({}) == {}
    answers = torch.randn(40, 256, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    other = torch.randn(40, 256, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    watch.observe({1: answers, 2: answers, 3: other, 9: answers}, MIN_ROWS - 1)
    assert watch.copies({}) == {}
    watch.observe({1: answers, 2: answers, 3: other, 9: answers}, 1)
    assert watch.copies({}) == {2: 1, 9: 1}
    assert watch.copies({1: 30, 2: 20, 9: 10}) == {1: 9, 2: 9}
    watch.keep_only({1, 3})
    assert watch.copies({}) == {}


def test_of_many_miners_not_every_pair_is_measured_and_copies_are_found() -> None:
    """Honest miners that are all akin: a copy and a relay are among them. What one observation costs has a bound, and
    after a few of the usual two canaries both are found and nobody else is; a place that was left begins anew."""
    draws = torch.Generator().manual_seed(4)
    count, original, copy, relay = 80, 3, 41, 77
    watch = LikenessWatch()

    def observe(rows: int) -> None:
        shared = 2 * torch.randn(24, 256, generator=draws)
        answers = {uid: (shared + 1.5 * torch.randn(24, 256, generator=draws)).log_softmax(-1) for uid in range(count)}
        answers[copy] = (answers[original] + 0.3 * torch.randn(24, 256, generator=draws)).log_softmax(-1)
        answers[relay] = torch.logaddexp(answers[original] + np.log(0.25), answers[relay] + np.log(0.75))
        watch.observe(answers, rows)

    observe(MIN_ROWS)
    pairs = [(one, other) for one in range(count) for other in range(one)]
    assert min(watch.likeness(*pair) or 0 for pair in pairs) > AKIN
    assert 0 < sum(watch.missing(*pair) is not None for pair in pairs) <= MEASURED_PAIRS < len(pairs)
    for _ in range(6):
        observe(2)
    assert watch.copies({}) == {copy: original, relay: original}
    watch.keep_only(set(range(count)) - {original})
    assert watch.copies({}) == {relay: copy}
    observe(2)
    assert watch.likeness(original, copy) is None


def test_an_answer_without_opinion_is_like_nobody() -> None:
    """The same distribution everywhere has no opinion: no division by zero, no accusation."""
    flat = torch.full((40, 256), -5.545).log_softmax(-1)
    watch = LikenessWatch()
    watch.observe({1: flat, 2: flat.clone()}, MIN_ROWS)
    assert watch.likeness(1, 2) == pytest.approx(0, abs=1e-3)
    assert watch.missing(1, 2) == 0  # which alone would accuse two that know nothing
    assert watch.copies({}) == {}


def test_a_validator_pays_the_original_and_not_its_relay(tables: Corpus) -> None:
    """In the running brain: the relay that came later ends with weight 0 and the reason in the report."""
    corpora = [tables, load_corpus("prose")]
    original, other = CountedExpert(tables), CountedExpert(corpora[1])
    miners: dict[int, Answering] = {4: Altered(original, 1, noise=0.2), 7: original, 9: other}
    gate = GateConfig(prefix_bytes=16, buckets=256, width=8)
    brain = ValidatorBrain(
        corpora, ValidatorConfig(rows=4, length=LENGTH, feature_steps=1, feature_rows=8, gate=gate), seed=6
    )
    brain.set_miners(miners, {4: 900, 7: 10, 9: 20})
    reports = []
    for _ in range(6):
        plan = brain.plan(probe=True)
        reports.append(brain.learn(plan, ask(miners, plan)))
    assert reports[-1].invalid == {4: "copied_answer"}
    assert reports[0].invalid == {}
    weights = brain.weights()
    assert weights[4] == 0
    assert min(weights[7], weights[9]) > 0
