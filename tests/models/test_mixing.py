"""The mixture as one model of rows, one input under the X-ray, and a gate that an application teaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moed.models.corpora import Corpus, load_corpus
from moed.models.errors import NotEnoughAnswers
from moed.models.experiments.members import Answering
from moed.models.gate import GateConfig
from moed.models.mixing import mix_rows, route_rows
from moed.models.plans import ValidatorConfig
from moed.models.teaching import application_plan, application_rows, measure_application, split_rows
from moed.models.validation import ValidatorBrain
from moed.models.xray import see_route
from support.counted_experts import CountedExpert

LENGTH, PREFIX = 48, 16
CONFIG = ValidatorConfig(
    rows=6, length=LENGTH, feature_steps=2, feature_rows=12, gate=GateConfig(prefix_bytes=PREFIX, buckets=512, width=16)
)


@pytest.fixture(scope="module")
def corpora() -> list[Corpus]:
    return [load_corpus("tables"), load_corpus("prose")]


@pytest.fixture(scope="module")
def miners(corpora: list[Corpus]) -> dict[int, Answering]:
    return {3: CountedExpert(corpora[0]), 5: CountedExpert(corpora[1]), 8: CountedExpert(load_corpus("python"))}


def brain_of(corpora: list[Corpus], miners: dict[int, Answering], plans: int) -> ValidatorBrain:
    brain = ValidatorBrain(corpora, CONFIG, seed=4)
    brain.set_miners(miners)
    for _ in range(plans):
        plan = brain.plan()
        brain.learn(plan, {uid: miners[uid].answer(plan.rows_for(uid)) for uid in plan.assignment})
    return brain


@pytest.fixture(scope="module")
def brain(corpora: list[Corpus], miners: dict[int, Answering]) -> ValidatorBrain:
    return brain_of(corpora, miners, 24)


def test_rows_come_back_as_distributions(
    brain: ValidatorBrain, corpora: list[Corpus], miners: dict[int, Answering]
) -> None:
    """Two miners are asked about each row, every position sums to one, and weights only go to those that answered."""
    tokens = corpora[0].sample("held_out", np.random.default_rng(1), 4, LENGTH)
    asked = route_rows(brain, tokens)
    assert asked.chosen.sum(dim=-1).tolist() == [2] * 4
    answers: dict[int, object] = {uid: miners[uid].answer(asked.rows_for(uid)) for uid in asked.assignment}
    mixed = mix_rows(brain, asked, answers)
    assert mixed.log_probs.shape == (4, LENGTH, 256)
    assert np.allclose(np.exp(mixed.log_probs).sum(axis=-1), 1, atol=1e-4)
    assert torch.allclose(mixed.weights.sum(dim=-1), torch.ones(4, LENGTH), atol=1e-5)
    assert float(mixed.weights[~asked.chosen.unsqueeze(1).expand_as(mixed.weights)].abs().max()) == 0
    del answers[3]
    left = mix_rows(brain, asked, answers)
    assert np.allclose(np.exp(left.log_probs).sum(axis=-1), 1, atol=1e-4)
    assert float(left.weights[..., left.uids.index(3)].abs().max()) == 0
    with pytest.raises(NotEnoughAnswers, match="4 of 4"):
        mix_rows(brain, asked, {})
    with pytest.raises(NotEnoughAnswers):
        route_rows(brain, tokens, reachable=())


def test_the_x_ray_shows_whose_answer_was_worth_what(
    brain: ValidatorBrain, corpora: list[Corpus], miners: dict[int, Answering]
) -> None:
    """On a row of tables the tables miner leads, leaving it out costs most, leaving out one not asked costs nothing."""
    tokens = corpora[0].sample("held_out", np.random.default_rng(2), 1, LENGTH)
    asked = route_rows(brain, tokens, everyone=True)
    answers: dict[int, object] = {uid: miners[uid].answer(tokens) for uid in asked.assignment}
    seen = see_route(brain, asked, answers)
    assert seen.miners[0].uid == 3
    assert [one.is_chosen for one in seen.miners] == [True, True, False]
    best = seen.miners[0].leave_one_out_bits
    assert best is not None
    assert best == max(one.leave_one_out_bits or 0.0 for one in seen.miners)
    assert seen.miners[2].leave_one_out_bits == pytest.approx(0, abs=1e-5)
    assert sum(one.share for one in seen.miners) == pytest.approx(1, abs=1e-4)
    assert len(seen.next_bytes) == 5
    silent = see_route(brain, asked, {3: answers[3], 5: np.zeros((1, 2), np.float32)})
    by_uid = {one.uid: one for one in silent.miners}
    assert by_uid[5].refused == "invalid_answer"
    assert by_uid[8].bits is None
    assert by_uid[8].refused is None


def test_an_application_teaches_the_gate_its_text(corpora: list[Corpus], miners: dict[int, Answering]) -> None:
    """A gate that has seen nothing learns from the application's rows whom to weigh, and loses less on those kept."""
    brain = brain_of(corpora, miners, 0)
    text = load_corpus("python").sample("held_out", np.random.default_rng(3), 1, 1500)[0].tobytes()
    learned, kept = split_rows(application_rows([text], LENGTH, PREFIX))
    uids = set(brain.uids)

    def answers(rows: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> dict[int, object]:
        return {uid: one.answer(rows[:, :-1]) for uid, one in miners.items()}

    measured = application_plan(brain, kept, uids)
    before = measure_application(brain, measured, answers(kept))
    for _ in range(8):
        brain.learn(application_plan(brain, learned, uids), answers(learned))
    after = measure_application(brain, measured, answers(kept))
    assert after.bits < before.bits
    assert after.share[8] > before.share[8]
    with pytest.raises(NotEnoughAnswers):
        application_plan(brain, kept, ())
    with pytest.raises(NotEnoughAnswers):
        measure_application(brain, measured, {})


def test_texts_are_cut_into_rows() -> None:
    """Whole rows follow each other, a long rest is made whole with bytes before it, a short one is left out."""
    text = bytes(range(100)) * 2
    rows = application_rows([text[:113], b"short"], LENGTH, PREFIX)
    assert [row[0] for row in rows] == [0, 48, 64]
    assert (rows[2] == np.frombuffer(text[64:113], np.uint8)).all()
    assert len(application_rows([text[:100]], LENGTH, PREFIX)) == 2
    assert application_rows([b"short"], LENGTH, PREFIX).shape == (0, LENGTH + 1)
    learned, kept = split_rows(application_rows([text], LENGTH, PREFIX))
    assert (len(learned), len(kept)) == (3, 1)
