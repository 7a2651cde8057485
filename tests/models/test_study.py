"""A student learns from who helps it, says what that brought, and spends nothing on who does not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from moed.models.corpora import Blend, Corpus, Tokens, excerpt, load_corpus, set_apart
from moed.models.errors import CorpusUnavailable, InvalidAnswer
from moed.models.experiments.members import Answering
from moed.models.experts import ExpertSpec, build_expert
from moed.models.lessons import read_lesson
from moed.models.optimizer import LearningRate
from moed.models.study import Study, StudyConfig
from moed.models.training import Trainer, TrainingConfig
from support.counted_experts import CountedExpert

TINY = {"embedding": 16, "width": 16, "ngram_order": 2, "ngram_buckets": 256}
CONFIG = StudyConfig(rows=6, trial_lessons=2, trial_steps=4, trial_every_steps=20, check_rows=16, bank_lessons=8)
TRAINING = TrainingConfig(rows=8, length=24, rate=LearningRate(peak=2e-2, warmup_steps=2))


class Noise:
    """Answers by chance: a valid distribution that has nothing to do with the question."""

    def answer(self, tokens: Tokens) -> npt.NDArray[np.float32]:
        """Peaks at random bytes."""
        raw = np.random.default_rng(int(tokens.sum())).normal(size=(*tokens.shape, 256)) * 4
        answer: npt.NDArray[np.float32] = (raw - np.log(np.exp(raw).sum(-1, keepdims=True))).astype(np.float32)
        return answer


@pytest.fixture(scope="module")
def tables() -> Corpus:
    return load_corpus("tables")


def make_study(tables: Corpus, seed: int = 1) -> Study:
    own, check = set_apart(excerpt(tables, 40_000), 0.2)
    module = build_expert(ExpertSpec(name="student", options=dict(TINY)), seed).module
    return Study(Trainer(module, own, TRAINING, seed), check, CONFIG, seed)


def teacher_of(study: Study) -> str | None:
    return study.teacher  # the type checker would take what an assertion saw for what it still is


def learn(study: Study, teachers: dict[str, Answering], steps: int) -> None:
    study.set_teachers(teachers)
    while study.steps < steps:
        question = study.question()
        if question is not None:
            study.take(question, teachers[question.teacher].answer(question.tokens))
        study.step()


def test_it_finds_the_teacher_that_helps(tables: Corpus) -> None:
    """Of a good teacher, one of another domain and one that answers by chance, the good one is learned from, has
    nearly all of the credit, and most of the questions."""
    study = make_study(tables)
    learn(study, {"good": CountedExpert(tables), "other": CountedExpert(load_corpus("prose")), "chance": Noise()}, 120)
    records = study.records
    assert teacher_of(study) == "good"
    assert records["good"].credit_bits > 0
    assert records["good"].earned_bits > 10 * (records["other"].earned_bits + records["chance"].earned_bits)
    assert (records["good"].complement_bits or 0) > (records["chance"].complement_bits or 0)
    assert records["good"].rows_asked > 2 * (records["other"].rows_asked + records["chance"].rows_asked)


def test_silence_and_nonsense_cost_a_teacher_its_place(tables: Corpus) -> None:
    """A teacher that stops answering is left; what is no answer is counted and learned from nowhere."""
    study = make_study(tables)
    learn(study, {"good": CountedExpert(tables)}, 60)
    assert teacher_of(study) == "good"
    question = study.question()
    assert question is not None
    study.take(question, np.zeros((1, 2), dtype=np.float32))
    study.step()
    assert teacher_of(study) is None
    assert study.records["good"].failures == 1
    study.take(question, None)
    study.step()
    assert study.records["good"].failures == 2


def test_teachers_may_leave_at_any_moment(tables: Corpus) -> None:
    """In the middle of a trial, and while they are learned from: training goes on, and late answers are dropped."""
    study = make_study(tables)
    good = CountedExpert(tables)
    study.set_teachers({"good"})
    late = []
    for _ in range(12):
        question = study.question()
        if question is not None and question.purpose == "trial":
            late.append(question)
            study.set_teachers(())
            break
        if question is not None:
            study.take(question, good.answer(question.tokens))
        study.step()
    assert late
    assert study.question() is None
    study.take(late[0], good.answer(late[0].tokens))
    learn(study, {"good": good}, 80)
    assert teacher_of(study) == "good"
    study.set_teachers(())
    study.step()
    assert teacher_of(study) is None


def test_a_teacher_that_was_away_for_a_moment_is_no_new_one(tables: Corpus) -> None:
    """A session that broke costs it neither its credit nor its trials; after a long while it begins anew."""
    study = make_study(tables)
    good = CountedExpert(tables)
    learn(study, {"good": good}, 60)
    before = study.records["good"]
    assert before.trials > 0
    study.set_teachers(())
    study.step()
    assert (teacher_of(study), study.question()) == (None, None)
    study.set_teachers({"good"})
    assert study.records == {"good": before}
    question = study.question()
    assert question is None or question.purpose != "scout"
    learn(study, {"good": good}, 120)
    assert teacher_of(study) == "good"
    study.set_teachers(())
    study.steps += CONFIG.remember_steps
    study.set_teachers(())
    assert study.records == {}


def test_a_teacher_may_leave_while_a_step_begins(tables: Corpus) -> None:
    """The other thread has its turn as soon as the lock is free: the step is then one without a trial."""
    study = make_study(tables)
    learn(study, {"good": CountedExpert(tables)}, 1)
    while study.records["good"].complement_bits is None or study._trial is None:
        question = study.question()
        if question is not None and question.purpose == "scout":
            study.take(question, CountedExpert(tables).answer(question.tokens))
        study.step()

    class Watched:
        def __init__(self) -> None:
            self.lock, self.is_told = study._lock, False

        def __enter__(self) -> None:
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            self.lock.release()
            if not self.is_told:
                self.is_told = True
                study.set_teachers(())

    study._lock = Watched()  # type: ignore[assignment]  # what the scheduler does once in a blue moon, each time
    assert np.isfinite(study.step())
    assert study._trial is None


def test_answers_that_nobody_reads_do_not_pile_up(tables: Corpus) -> None:
    """While the worker trains nothing, only so many questions are asked; when it goes on, so do they."""
    study = make_study(tables)
    good = CountedExpert(tables)
    learn(study, {"good": good}, 60)
    asked = 0
    while (question := study.question()) is not None:
        study.take(question, good.answer(question.tokens))
        asked += 1
    assert asked == CONFIG.bank_lessons
    study.step()
    assert study.question() is not None


def test_too_little_text_is_refused_at_once(tables: Corpus) -> None:
    """And not when the first question is drawn from it."""
    own, check = set_apart(excerpt(tables, 200), 0.1)
    module = build_expert(ExpertSpec(name="student", options=dict(TINY)), 1).module
    with pytest.raises(CorpusUnavailable, match="25 bytes"):
        Study(Trainer(module, own, TRAINING, 1), check, CONFIG, 1)


def test_the_lesson_is_checked(tables: Corpus) -> None:
    """Answers of another shape, or that are no distribution, are no lesson."""
    rows = tables.sample("train", np.random.default_rng(0), 2, 9)
    for wrong in (None, np.zeros((2, 9, 256), np.float32), np.zeros((2, 8, 256), np.float32)):
        with pytest.raises(InvalidAnswer):
            read_lesson(rows, wrong)
    lesson = read_lesson(rows, CountedExpert(tables).answer(rows[:, :-1]))
    assert lesson.rows == 2
    assert lesson.targets[0, 0] == rows[0, 1]


def test_what_is_set_apart_is_not_trained_on(tables: Corpus) -> None:
    """The two parts hold the whole text and share no byte; an excerpt is its beginning; a blend draws by share."""
    learned, kept = set_apart(tables, 0.25)
    assert learned.size_bytes("train") + kept.size_bytes("train") == tables.size_bytes("train")
    whole = tables.sides["train"].data.tobytes()
    assert learned.sides["train"].data.tobytes() + kept.sides["train"].data.tobytes() == whole
    assert learned.size_bytes("held_out") == tables.size_bytes("held_out")
    assert excerpt(tables, 5000).sides["train"].data.tobytes() == whole[:5000]
    drawn = Blend([tables, load_corpus("prose")], [1.0, 0.0]).sample("train", np.random.default_rng(1), 5, 30)
    assert drawn.shape == (5, 30)
    assert all(row.tobytes() in whole for row in drawn)


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"trial_steps": 0}, {"trust": 1.5}], ids=str)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    """With the name of the setting."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StudyConfig(**wrong)  # type: ignore[arg-type]  # the point of the test
