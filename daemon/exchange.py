"""A miner learns from others: asks them, within its budget, what the study of its expert wants to know.

The questions are ordinary calls of `expert.forward`, so they are served by stake like anybody's and receipted. Rows of
the miner's own text go out with them. While the expert is new a validator's whole mixture is a teacher too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog
import trio

from moed.consensus.state import read_neurons
from moed.models.study import Question, Study
from moed.protocol.experts import FORWARD, longest_text_answer

from .asking import Panel
from .chain import Chain
from .network.errors import CallError
from .network.peers import Peer, Peers

logger = structlog.get_logger()

MIXTURE = "mixture"
NEWCOMER_STEPS = 500
"""For so many training steps the mixture is asked as well: afterwards a miner should know what others do not."""
QUESTION_DEADLINE_S = 20.0
LOOK_AGAIN_S = 1.0


Teachers = Mapping[str, tuple[Peer, str]]
"""Who can be asked: by name the peer, and the name of its expert there."""


class Exchange:
    """The exchange of one expert; `run` asks for as long as the miner lives. ``teachers`` tells who is there now."""

    def __init__(self, study: Study, teachers: Callable[[], Teachers], *, rows_per_minute: float) -> None:
        self._study = study
        self._teachers = teachers
        self._rows_per_minute = rows_per_minute
        self._told_teacher: str | None = None

    async def run(self) -> None:
        """Ask until cancelled, no more than the budget allows."""
        while True:
            self._study.set_teachers(self._teachers())
            question = self._study.question()
            if question is None:
                await trio.sleep(LOOK_AGAIN_S)
                continue
            asked_s = trio.current_time()
            self._study.take(question, await self._ask(question))
            self._tell()
            await trio.sleep_until(asked_s + len(question.rows) * 60 / self._rows_per_minute)

    async def _ask(self, question: Question) -> Any:
        """The answer, or None: a question that cannot be asked any more has none either."""
        place = self._teachers().get(question.teacher)
        if place is None:
            return None
        peer, expert = place
        body = {"expert": expert, "codec": "float16"}
        try:
            reply = await peer.call(
                FORWARD,
                body,
                [question.tokens],
                deadline_s=QUESTION_DEADLINE_S,
                max_answer_bytes=longest_text_answer(question.tokens.shape),
            )
        except CallError as error:
            logger.info("exchange.no_answer", teacher=question.teacher, reason=str(error))
            return None
        return reply.tensors[0] if len(reply.tensors) == 1 else None

    def _tell(self) -> None:
        teacher = self._study.teacher
        if teacher != self._told_teacher:
            self._told_teacher = teacher
            logger.info("exchange.teacher_changed", teacher=teacher, teachers=self.work()["teachers"])

    def work(self) -> dict[str, Any]:
        """Whom we learn from, and what each was found to be worth, in bits per byte of text kept from training."""
        return {
            "teacher": self._study.teacher,
            "teachers": {
                name: {
                    "complement_bits": one.complement_bits,
                    "credit_bits": one.credit_bits,
                    "trials": one.trials,
                    "rows_asked": one.rows_asked,
                    "failures": one.failures,
                }
                for name, one in self._study.records.items()
            },
        }


def teachers_of(chain: Chain, peers: Peers, panel: Panel, study: Study) -> Teachers:
    """The other miners that we have a session with, and the mixtures of validators while the expert is new."""
    found: dict[str, tuple[Peer, str]] = {}
    for uid, one in panel.candidates().items():
        peer = peers.get(one.node_id)
        if peer is not None:
            found[f"uid {uid}"] = (peer, one.expert)
    if study.trainer.steps < NEWCOMER_STEPS:
        for neuron in read_neurons(chain.head.state):
            peer = peers.get(neuron.node_id) if neuron.has_permit else None
            if peer is not None:
                found[f"{MIXTURE} of uid {neuron.uid}"] = (peer, MIXTURE)
    return found
