"""Reads what miners answered to a plan: what it is worth to each lock, and whose answers count as none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .answers import LEAST_LOG_PROB, ReadAnswers, read_answers
from .decoys import DecoyWatch
from .errors import CopiedAnswer, InvalidAnswer, PeekedAhead
from .likeness import LikenessWatch
from .locks import Lock, NextByte, next_byte_judgement
from .plans import Plan


class Judging:
    """What one validator knows of its miners' honesty, and how it reads their answers.

    ``first_scored`` is the first position whose miners were chosen by earlier bytes alone.
    """

    def __init__(self, locks: Sequence[Lock], *, first_scored: int) -> None:
        self.decoys = DecoyWatch()
        self.likeness = LikenessWatch()
        self._locks = tuple(locks)
        self._first_scored = first_scored
        self._seniority: dict[int, int] = {}

    def keep_only(self, uids: Iterable[int], seniority: Mapping[int, int]) -> None:
        """Forget every miner that is not in ``uids``; ``seniority`` is when each came."""
        kept = set(uids)
        self.decoys.keep_only(kept)
        self.likeness.keep_only(kept)
        self._seniority = dict(seniority)

    def read(self, plan: Plan, answers: Mapping[int, object]) -> ReadAnswers:
        """Check the answers to ``plan``; those of miners that read ahead of what they predict count as invalid."""
        read = read_answers(answers, plan.uids, plan.assignment, plan.targets, partial(self.judge, plan))
        self.decoys.observe(plan.tokens, plan.decoys, plan.targets, plan.assignment, read.log_probs)
        self._observe_canaries(plan, read)
        errors = self.findings(read.log_probs)
        if not errors:
            return read
        answered = read.answered.clone()
        answered[:, [at for at, uid in enumerate(plan.uids) if uid in errors]] = False
        return ReadAnswers(read.target_log_probs, answered, read.log_probs, {**read.invalid, **errors})

    def judge(self, plan: Plan, log_probs: Tensor, rows: Tensor) -> Tensor:
        """What answers [R, T, 256] to the ``rows`` [R] of a plan are worth to the lock of each, [R, T]."""
        targets = torch.from_numpy(plan.targets)[rows]
        judged = next_byte_judgement(log_probs, targets)
        names = np.array(plan.domains)[rows.numpy()]
        for lock in self._locks:
            own = torch.from_numpy(names == lock.name)
            if bool(own.any()) and not isinstance(lock, NextByte):
                # an answer may be worth nothing at all, and the log of that would spoil every sum
                judged[own] = lock.judge(log_probs[own], targets[own]).clamp(min=LEAST_LOG_PROB)
        return judged

    def _observe_canaries(self, plan: Plan, read: ReadAnswers) -> None:
        if plan.purpose == "probe" and plan.canaries:
            shown = {
                uid: answer[-plan.canaries :, self._first_scored :].flatten(0, 1)
                for uid, answer in read.log_probs.items()
            }
            self.likeness.observe(shown, plan.canaries)

    def findings(self, uids: Iterable[int]) -> dict[int, InvalidAnswer]:
        """Those of ``uids`` that were found out, and for what."""
        errors: dict[int, InvalidAnswer] = {}
        copies = self.likeness.copies(self._seniority)
        for uid in sorted(uids):
            if self.decoys.peeks(uid):
                errors[uid] = PeekedAhead(f"uid {uid}: {self.decoys.evidence(uid)}")
            elif uid in copies:
                original = copies[uid]
                alike, missing = self.likeness.likeness(uid, original), self.likeness.missing(original, uid)
                errors[uid] = CopiedAnswer(
                    f"uid {uid} answers canaries as uid {original} does (likeness {alike:.3f}, missing {missing:.3f})"
                )
        return errors
