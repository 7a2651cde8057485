"""A miner that learns from others: whom to ask what, which answers to train on, and what each teacher was worth.

    question = study.question()              # rows of one's own text for one teacher, or None
    study.take(question, answer)             # the caller asked, within its budget; None where no answer came
    study.step()                             # one step of training's worth of work, in the worker's thread

Every teacher is first *scouted*: it answers rows that the student keeps from its own training, and how much better
the two are together than the student alone is its *complement*. The best complement is put on *trial*: from the same
weights the student makes the same steps once alone and once with the teacher's answers, and the difference on kept
rows is the teacher's *credit*, in bits per byte. What helped is gone on with; who did not help is not asked again for
a while.

`question`, `take` and `set_teachers` may be called from another thread than `step`: no training happens under their
lock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from moed.protocol.codec import Record

from .corpora import TextSource, Tokens
from .device import device_of
from .errors import InvalidAnswer
from .lessons import Lesson, read_lesson
from .training import Trainer, evaluate_rows, next_byte_bits

Purpose = Literal["scout", "trial", "lesson"]


class StudyConfig(Record, frozen=True):
    """How a student learns: ``rows`` of each batch are a lesson's, in which the teacher's word counts for ``trust``.

    A trial takes ``trial_lessons`` questions and twice ``trial_steps`` steps; the best of the two branches is kept, so
    half of them are not lost. The next one comes after ``trial_every_steps``.
    """

    rows: int = 24
    trust: float = 1.0
    bank_lessons: int = 24
    trial_lessons: int = 3
    trial_steps: int = 6
    trial_every_steps: int = 120
    check_rows: int = 64
    # how often, in trials, somebody other than the best so far is tried
    retry_chance: float = 0.2
    # a teacher that is away for fewer steps is not a new one when it comes back
    remember_steps: int = 1200

    def __post_init__(self) -> None:
        if self.rows < 1 or self.trial_lessons < 1 or self.trial_steps < 1 or self.check_rows < 1:
            raise ValueError("rows, trial_lessons, trial_steps and check_rows must be at least 1")
        if not 0 <= self.trust <= 1:
            raise ValueError(f"trust is between 0 and 1, not {self.trust}")


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask of ``teacher``: all but the last byte of ``rows`` [R, T + 1]."""

    teacher: str
    purpose: Purpose
    rows: Tokens
    round: int

    @property
    def tokens(self) -> Tokens:
        """What to send: uint8 [R, T]."""
        return self.rows[:, :-1]


@dataclass(slots=True)
class TeacherRecord:
    """What the student knows of a teacher: credit is the sum of measured gains, in bits per byte of kept text."""

    complement_bits: float | None = None
    credit_bits: float = 0.0
    latest_gain_bits: float | None = None
    trials: int = 0
    rows_asked: int = 0
    failures: int = 0

    @property
    def earned_bits(self) -> float:
        """Its credit, if it has any."""
        return max(0.0, self.credit_bits)


@dataclass(slots=True)
class _Trial:
    teacher: str
    round: int
    issued: int = 0
    has_failed: bool = False
    lessons: list[Lesson] = field(default_factory=list)


class Study:
    """The student side of the exchange around one `Trainer`; ``check`` is text that it does not train on."""

    def __init__(self, trainer: Trainer, check: TextSource, config: StudyConfig, seed: int) -> None:
        self.trainer = trainer
        self.config = config
        self.steps = 0  # optimizer steps made, those of branches that were given up among them
        self._check = check
        check.sample("train", np.random.default_rng(seed), 1, trainer.config.length + 1)  # refuse text too short now
        self._seed = seed
        self._asking_rng = np.random.default_rng((seed, 1))
        self._rng = np.random.default_rng((seed, 2))
        self._lock = threading.Lock()
        self._records: dict[str, TeacherRecord] = {}
        self._present: set[str] = set()
        self._left_at: dict[str, int] = {}  # at which step those left that are remembered
        self._inbox: deque[tuple[Question, object]] = deque()
        self._to_scout: deque[str] = deque()
        self._trial: _Trial | None = None
        self._running: Iterator[float] = iter(())
        self._teacher: str | None = None
        self._bank: deque[Lesson] = deque(maxlen=config.bank_lessons)
        self._rounds = 0
        self._next_trial_at = 0
        self._scouted_at = 0

    @property
    def teacher(self) -> str | None:
        """Whose answers are learned from now."""
        return self._teacher

    @property
    def records(self) -> Mapping[str, TeacherRecord]:
        """What is known of each teacher, those included that left a short while ago."""
        with self._lock:
            return dict(self._records)

    def set_teachers(self, names: Iterable[str]) -> None:
        """Make ``names`` the teachers that can be asked; new ones are scouted first.

        Who left keeps its record for a while: a session that broke is no reason to measure everything again.
        """
        wanted = set(names)
        with self._lock:
            self._left_at |= dict.fromkeys(self._present - wanted, self.steps)
            for name in [one for one, at in self._left_at.items() if self.steps - at >= self.config.remember_steps]:
                del self._left_at[name], self._records[name]
            for name in sorted(wanted - self._present):
                self._left_at.pop(name, None)
                record = self._records.setdefault(name, TeacherRecord())
                if record.complement_bits is None and name not in self._to_scout:
                    self._to_scout.append(name)
            self._present = wanted
            if self._trial is not None and self._trial.teacher not in wanted:
                self._trial = None

    # the caller's side

    def question(self) -> Question | None:
        """What to ask next, or None where nothing is wanted now: while nobody trains, answers pile up unread."""
        with self._lock:
            return self._next_question() if len(self._inbox) < self.config.bank_lessons else None

    def _next_question(self) -> Question | None:
        while self._to_scout:
            name = self._to_scout.popleft()
            if name in self._present:
                return self._ask(name, "scout", self._check)
        trial = self._trial
        if trial is not None and trial.issued < self.config.trial_lessons:
            trial.issued += 1
            return self._ask(trial.teacher, "trial", self.trainer.corpus, trial.round)
        teacher = self._teacher
        if teacher is not None and teacher in self._present:
            return self._ask(teacher, "lesson", self.trainer.corpus)
        return None

    def _ask(self, teacher: str, purpose: Purpose, text: TextSource, number: int = 0) -> Question:
        rows = text.sample("train", self._asking_rng, self.config.rows, self.trainer.config.length + 1)
        self._records[teacher].rows_asked += len(rows)
        return Question(teacher, purpose, rows, number)

    def take(self, question: Question, answer: object) -> None:
        """Hand in what came back: an array, or None where nothing did. What is no valid answer counts as none."""
        self._inbox.append((question, answer))

    # the worker's side

    def step(self) -> float:
        """One step of training, alone or taught; returns its loss in bits per byte. Raises `TrainingDiverged`."""
        loss = next(self._running, None)
        if loss is not None:
            return loss
        with self._lock:
            while self._inbox:
                self._read(*self._inbox.popleft())
            if self._teacher is not None and self._teacher not in self._present:
                self._leave()
            self._choose_candidate()
            trial = self._trial
            if trial is not None and len(trial.lessons) == self.config.trial_lessons:
                self._trial, self._running = None, self._run_trial(trial)
        loss = next(self._running, None)  # by what was begun here: meanwhile the trial's teacher may be gone
        if loss is not None:
            return loss
        lesson = self._bank[self._rng.integers(len(self._bank))] if self._bank else None
        self.steps += 1
        return self.trainer.step(lesson, trust=self.config.trust)

    def _read(self, question: Question, answer: object) -> None:
        if question.teacher not in self._present:
            return  # it left
        record = self._records[question.teacher]
        try:
            lesson = read_lesson(question.rows, answer)
        except InvalidAnswer:
            record.failures += 1
            self._fail(question)
            return
        if question.purpose == "scout":
            record.complement_bits = self._complement(lesson)
        elif question.purpose == "lesson" and question.teacher == self._teacher:
            self._bank.append(lesson)
        elif self._trial is not None and question.round == self._trial.round:
            self._trial.lessons.append(lesson)

    def _fail(self, question: Question) -> None:
        """No answer: somebody else is tried, and a teacher that has gone silent is left."""
        if self._trial is not None and question.round == self._trial.round:
            self._trial = None
            self._next_trial_at = self.steps + self.config.trial_steps
        if question.purpose == "lesson" and question.teacher == self._teacher:
            self._leave()

    def _leave(self) -> None:
        self._teacher = None
        self._bank.clear()

    @torch.no_grad()
    def _complement(self, lesson: Lesson) -> float:
        """By how many bits per byte the even mixture of student and teacher beats the student alone."""
        lesson = lesson.on(device_of(self.trainer.averaged))
        own = self.trainer.averaged(lesson.tokens)
        both = torch.logaddexp(own, lesson.log_probs) - np.log(2)
        gain = next_byte_bits(own, lesson.targets) - next_byte_bits(both, lesson.targets)
        return float(gain.mean())

    def _choose_candidate(self) -> None:
        """Put the next teacher on trial when it is time."""
        if self._trial is not None or self.steps < self._next_trial_at:
            return
        present = {name: self._records[name] for name in sorted(self._present)}
        scouted = {name: one for name, one in present.items() if one.complement_bits is not None}
        if len(scouted) < len(present) and self.steps < self.config.trial_steps:
            return  # the first answers are not all in: who was asked first is not the best for that
        if not scouted or self.steps - self._scouted_at >= self.config.trial_every_steps:
            # who helps changes as the student learns: see again what each has that it lacks
            self._scouted_at = self.steps
            self._to_scout.extend(sorted(self._present - set(self._to_scout)))
            self._next_trial_at = self.steps + self.config.trial_steps
            return
        untried = [name for name, one in scouted.items() if one.trials == 0 and (one.complement_bits or 0) > 0]
        if untried:
            chosen = max(untried, key=lambda name: scouted[name].complement_bits or 0.0)
        elif self._rng.random() < self.config.retry_chance:
            chosen = sorted(scouted)[self._rng.integers(len(scouted))]
        else:
            chosen = max(sorted(scouted), key=lambda name: scouted[name].latest_gain_bits or 0.0)
        self._rounds += 1
        self._trial = _Trial(chosen, self._rounds)

    def _run_trial(self, trial: _Trial) -> Iterator[float]:
        """From the same weights the same steps, alone and taught; the better branch is kept, the difference is credit.

        Yields the loss of each step, so that a request need not wait for the whole of it.
        """
        rng = np.random.default_rng((self._seed, trial.round))
        kept = self._check.sample("train", rng, self.config.check_rows, self.trainer.config.length + 1)
        before = self.trainer.snapshot()
        yield from self._branch([])
        alone, without = evaluate_rows(self.trainer.module, kept), self.trainer.snapshot()
        self.trainer.restore(before)
        yield from self._branch(trial.lessons)
        gain = alone - evaluate_rows(self.trainer.module, kept)
        record = self._records.get(trial.teacher)
        if record is not None:
            record.trials += 1
            record.latest_gain_bits = gain
            record.credit_bits += gain
        if gain > 0:
            self._take_on(trial, gain)
        else:
            self.trainer.restore(without)
            if self._teacher == trial.teacher:
                self._leave()
        # a teacher that helps is gone on with; after one that did not, the next is tried soon
        self._next_trial_at = self.steps + (self.config.trial_every_steps if gain > 0 else self.config.trial_steps)

    def _branch(self, lessons: Sequence[Lesson]) -> Iterator[float]:
        for number in range(self.config.trial_steps):
            lesson = lessons[number % len(lessons)] if lessons else None
            self.steps += 1
            yield self.trainer.step(lesson, trust=self.config.trust)

    def _take_on(self, trial: _Trial, gain: float) -> None:
        """Learn on from the teacher that helped, unless the one we have helps more."""
        best = self._records.get(self._teacher) if self._teacher is not None else None
        if best is not None and self._teacher != trial.teacher and (best.latest_gain_bits or 0.0) >= gain:
            return
        if self._teacher != trial.teacher:
            self._bank.clear()
        self._teacher = trial.teacher
        self._bank.extend(trial.lessons)
