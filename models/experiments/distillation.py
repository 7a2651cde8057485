"""Does learning from others help? A student with little text of its own, alone, with the exchange, and a newcomer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moed.models.corpora import Corpus, Tokens, excerpt, load_corpus, set_apart
from moed.models.experts import ExpertSpec, build_expert
from moed.models.mixing import mix_rows, route_rows
from moed.models.plans import ValidatorConfig
from moed.models.study import Study, StudyConfig
from moed.models.training import Trainer, TrainingConfig
from moed.models.validation import ValidatorBrain

from .members import Answering, Member, Say, train_member
from .mixture import train_gate

DOMAINS = ("prose", "python", "tables", "c")
STUDENT_DOMAIN = "python"
TARGET_STEPS_SHARE = 0.6
USELESS = "untrained"
MAX_USELESS_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to train: the defaults are the experiment's, a test takes less. ``own_bytes`` is the student's text."""

    domains: Sequence[str] = DOMAINS
    student_domain: str = STUDENT_DOMAIN
    teacher_steps: int = 500
    student_steps: int = 240
    own_bytes: int = 160 << 10
    ask_every_steps: int = 2
    measure_every_steps: int = 10
    plans: int = 100
    validator: ValidatorConfig = field(default_factory=ValidatorConfig)
    options: Mapping[str, int] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    study: StudyConfig = field(default_factory=StudyConfig)


@dataclass(frozen=True, slots=True)
class MixtureTeacher:
    """The mixture as somebody to ask: the gate picks for each row, the answers are mixed."""

    brain: ValidatorBrain
    members: Mapping[int, Answering]

    def answer(self, tokens: Tokens) -> npt.NDArray[np.float32]:
        """Log-probabilities [B, T, 256] of the mixture for rows [B, T]."""
        asked = route_rows(self.brain, tokens)
        answers = {uid: self.members[uid].answer(asked.rows_for(uid)) for uid in asked.assignment}
        return mix_rows(self.brain, asked, answers).log_probs


def run_distillation(*, seed: int, say: Say, scale: Scale | None = None) -> dict[str, Any]:
    """Teachers first, then three students from the same first weights on the same text, measured as they learn."""
    scale = scale or Scale()
    corpora = {name: load_corpus(name) for name in scale.domains}
    teachers = _teachers(corpora, scale, seed, say)
    members = {uid: teachers[name] for uid, name in enumerate(corpora)}
    brain = train_gate(corpora, members, scale.plans, seed, say, scale.validator)
    own = excerpt(corpora[scale.student_domain], scale.own_bytes)
    peers: dict[str, Answering] = dict(teachers)
    students = {
        "alone": _learn("alone", own, {}, scale, seed, say),
        "exchange": _learn("exchange", own, peers, scale, seed, say),
        "newcomer": _learn("newcomer", own, {"mixture": MixtureTeacher(brain, members)}, scale, seed, say),
    }
    return {
        "experiment": "distillation",
        "seed": seed,
        "own_bytes": own.size_bytes("train"),
        "student_domain": scale.student_domain,
        "students": students,
        **_verdict(students),
    }


def _teachers(corpora: Mapping[str, Corpus], scale: Scale, seed: int, say: Say) -> dict[str, Member]:
    teachers = {
        name: train_member(
            name,
            corpus,
            steps=scale.teacher_steps,
            seed=seed + at,
            say=say,
            options=scale.options,
            training=scale.training,
        )
        for at, (name, corpus) in enumerate(corpora.items())
    }
    teachers[USELESS] = train_member(
        USELESS, corpora[scale.student_domain], steps=0, seed=seed + 50, say=say, options=scale.options
    )
    return teachers


def _learn(
    name: str, own: Corpus, teachers: Mapping[str, Answering], scale: Scale, seed: int, say: Say
) -> dict[str, Any]:
    """One student's losses on held-out text as its steps go on, and what it says of its teachers."""
    learned, check = set_apart(own, 0.1)
    # alone there is nobody to measure, so all of the text is there to learn from
    text = learned if teachers else own
    module = build_expert(ExpertSpec(name="student", options=dict(scale.options)), seed + 77).module
    study = Study(Trainer(module, text, scale.training, seed), check, scale.study, seed)
    study.set_teachers(teachers)
    curve = [[0, study.trainer.evaluate()]]
    while study.steps < scale.student_steps:
        if study.steps % scale.ask_every_steps == 0 and (question := study.question()) is not None:
            study.take(question, teachers[question.teacher].answer(question.tokens))
        study.step()
        if study.steps % scale.measure_every_steps == 0:
            curve.append([study.steps, study.trainer.evaluate()])
    say(f"  {name}: {curve[-1][1]:.2f} bits per byte after {study.steps} steps, best {_best(curve):.2f}")
    records = study.records
    return {
        "curve": curve,
        "final": curve[-1][1],
        "best": _best(curve),
        "teacher": study.teacher,
        "rows_asked": sum(one.rows_asked for one in records.values()),
        "teachers": {
            one: {
                "complement_bits": record.complement_bits,
                "credit_bits": record.credit_bits,
                "trials": record.trials,
                "rows_asked": record.rows_asked,
            }
            for one, record in records.items()
        },
    }


def _best(curve: Sequence[Sequence[float]]) -> float:
    return min(loss for _, loss in curve)


def steps_to(curve: Sequence[Sequence[float]], loss: float) -> float | None:
    """After how many steps a curve is at ``loss`` or below; None if never."""
    return next((step for step, at in curve if at <= loss), None)


def _verdict(students: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How many steps each student took to the best loss that the lone one ever had, and what teachers were worth.

    The best and not the last: a student with little text gets worse again in the end, and that would be easy to reach.
    """
    alone = students["alone"]["curve"]
    goal = _best(alone)
    own = steps_to(alone, goal)
    shares = {}
    for name in ("exchange", "newcomer"):
        steps = steps_to(students[name]["curve"], goal)
        shares[name] = None if steps is None or not own else steps / own
    measured = {name: one["credit_bits"] for name, one in students["exchange"]["teachers"].items()}
    earned = {name: max(0.0, credit) for name, credit in measured.items()}
    total = sum(earned.values())
    credit = {name: one / total if total else 0.0 for name, one in earned.items()}
    return {
        "lone_best": goal,
        "lone_steps": own,
        "steps_share": shares,
        "credit_share": credit,
        "held": {
            "exchange": _within(shares["exchange"]),
            "newcomer": _within(shares["newcomer"]),
            "useless_earns_nothing": credit[USELESS] <= MAX_USELESS_SHARE,
        },
    }


def _within(share: float | None) -> bool:
    return share is not None and share <= TARGET_STEPS_SHARE
