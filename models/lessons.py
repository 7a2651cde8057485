"""What a student learns a teacher's answers by: the rows that were asked, and the loss towards what was said."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .answers import read_answer
from .corpora import Tokens


@dataclass(frozen=True, slots=True)
class Lesson:
    """One answered question: tokens uint8 [R, T], the true next bytes uint8 [R, T], log-probabilities [R, T, 256]."""

    tokens: Tensor
    targets: Tensor
    log_probs: Tensor

    @property
    def rows(self) -> int:
        """The rows that were asked."""
        return len(self.tokens)

    def on(self, device: torch.device) -> Lesson:
        """The same lesson where the student is."""
        return Lesson(self.tokens.to(device), self.targets.to(device), self.log_probs.to(device))


def read_lesson(rows: Tokens, answer: object) -> Lesson:
    """The lesson in an answer to all but the last byte of ``rows`` [R, T + 1]. Raises `InvalidAnswer`."""
    log_probs = read_answer(answer, len(rows), rows.shape[1] - 1)
    own = torch.from_numpy(np.array(rows))
    return Lesson(own[:, :-1], own[:, 1:], log_probs)


def distillation_loss(log_probs: Tensor, lesson: Lesson, trust: float) -> Tensor:
    """Mean loss in bits per byte over a lesson of the student's ``log_probs`` [R, T, 256].

    ``trust`` of it is the cross-entropy to the teacher's distribution, the rest that to the true byte (Hinton,
    Vinyals and Dean, "Distilling the knowledge in a neural network", arXiv 1503.02531, at temperature 1).
    """
    soft = -(lesson.log_probs.exp() * log_probs).sum(dim=-1)
    hard = -log_probs.gather(-1, lesson.targets.long().unsqueeze(-1)).squeeze(-1)
    mean: Tensor = (trust * soft + (1 - trust) * hard).mean()
    return mean / math.log(2)
