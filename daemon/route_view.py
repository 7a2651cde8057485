"""What applications ask of a validator's gate beside completions: to see a route, and to teach the gate their text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import trio

from moed.models.errors import NotEnoughAnswers
from moed.models.mixing import RowsAsked, mix_rows, route_rows
from moed.models.teaching import Measured, application_plan, application_rows, measure_application, split_rows
from moed.models.validation import ValidatorBrain
from moed.models.xray import RouteSight, Sight, see_route

from .asking import Candidate, Heard, Panel
from .control.api import ControlRefused
from .sync import RunBlocking

Tokens = npt.NDArray[np.uint8]

MAX_SEEN_MINERS = 16
"""Miners asked about one input for the X-ray: those that the gate scores best."""
MAX_TAUGHT_ROWS = 256
ROWS_A_QUESTION = 16


class RouteView:
    """The gate of one validator, seen and taught from outside. Shares ``brain`` and its lock with the validator."""

    def __init__(
        self,
        panel: Panel,
        brain: ValidatorBrain,
        brain_is_free: trio.Lock,
        meet: Callable[[], Awaitable[Mapping[int, Candidate]]],
        run_blocking: RunBlocking,
    ) -> None:
        self._panel = panel
        self._brain = brain
        self._brain_is_free = brain_is_free
        self._meet = meet
        self._run_blocking = run_blocking

    async def route(self, text: bytes) -> dict[str, Any]:
        """Whom the gate asks about ``text``, and what each answer is worth. Raises `ControlRefused`."""
        context = text[-self._brain.config.length :]
        if len(context) < 2:
            raise ControlRefused(400, "bad_request", "a route needs at least two bytes of text", "give it more text")
        row = np.frombuffer(context, dtype=np.uint8)[None]
        reachable = await self._meet()
        try:
            async with self._brain_is_free:
                asked = await self._run_blocking(self._ask_best, row, frozenset(reachable))
            heard = await self._panel.ask({uid: asked.rows_for(uid) for uid in asked.assignment})
            async with self._brain_is_free:
                seen = await self._run_blocking(see_route, self._brain, asked, heard.answers)
        except NotEnoughAnswers as error:
            raise _not_enough(error) from error
        return _route_answer(seen, heard, reachable, len(context), self._brain.config.gate.k)

    async def answer(self, rows: Tokens) -> npt.NDArray[np.float32]:
        """The mixture's log-probabilities [B, T, 256] for ``rows`` [B, T]. Raises `ControlRefused`."""
        reachable = await self._meet()
        try:
            async with self._brain_is_free:
                asked = route_rows(self._brain, rows, reachable=frozenset(reachable))
            heard = await self._panel.ask({uid: asked.rows_for(uid) for uid in asked.assignment})
            async with self._brain_is_free:
                mixed = await self._run_blocking(mix_rows, self._brain, asked, heard.answers)
        except NotEnoughAnswers as error:
            raise _not_enough(error) from error
        log_probs: npt.NDArray[np.float32] = mixed.log_probs
        return log_probs

    def _ask_best(self, row: Tokens, reachable: frozenset[int]) -> RowsAsked:
        everybody = route_rows(self._brain, row, reachable=reachable, everyone=True)
        if len(everybody.uids) <= MAX_SEEN_MINERS:
            return everybody
        best = everybody.scores[0, -1].argsort(descending=True)[:MAX_SEEN_MINERS].tolist()
        return route_rows(self._brain, row, reachable={everybody.uids[at] for at in best}, everyone=True)

    async def teach(self, texts: Sequence[bytes], *, steps: int) -> dict[str, Any]:
        """Train the gate on an application's texts; some rows are kept to tell what that brought.

        Raises `ControlRefused` where the texts are too short, or no miner answers.
        """
        config = self._brain.config
        rows = application_rows(texts, config.length, config.gate.prefix_bytes)[:MAX_TAUGHT_ROWS]
        if len(rows) < 2:
            raise ControlRefused(
                400, "too_short", f"the texts hold no two rows of {config.length + 1} bytes", "give longer texts"
            )
        reachable = frozenset(await self._meet())
        learned, kept = split_rows(rows)
        try:
            measured = [await self._asked(part, reachable) for part in _parts(kept)]
            before = await self._measure(measured)
            for part in _parts(learned):
                plan, answers = await self._asked(part, reachable)
                for _ in range(steps):
                    async with self._brain_is_free:
                        await self._run_blocking(self._brain.learn, plan, answers)
            after = await self._measure(measured)
        except NotEnoughAnswers as error:
            raise _not_enough(error) from error
        return {
            "rows": len(learned),
            "kept_rows": len(kept),
            "bits_before": before.bits,
            "bits_after": after.bits,
            "share_before": {str(uid): share for uid, share in before.share.items()},
            "share_after": {str(uid): share for uid, share in after.share.items()},
        }

    async def _asked(self, rows: Tokens, reachable: frozenset[int]) -> tuple[Any, Mapping[int, object]]:
        async with self._brain_is_free:
            plan = application_plan(self._brain, rows, reachable)
        heard = await self._panel.ask({uid: plan.rows_for(uid) for uid in plan.assignment})
        return plan, heard.answers

    async def _measure(self, asked: Sequence[tuple[Any, Mapping[int, object]]]) -> Measured:
        """The mean over the kept rows; every part has about as many."""
        async with self._brain_is_free:
            found = [await self._run_blocking(measure_application, self._brain, *one) for one in asked]
        uids = {uid for one in found for uid in one.share}
        share = {uid: float(np.mean([one.share.get(uid, 0.0) for one in found])) for uid in sorted(uids)}
        return Measured(float(np.mean([one.bits for one in found])), share)


def _parts(rows: Tokens) -> list[Tokens]:
    return np.array_split(rows, -(-len(rows) // ROWS_A_QUESTION))


def _not_enough(error: NotEnoughAnswers) -> ControlRefused:
    return ControlRefused(503, "not_enough_answers", str(error), "wait until more miners answer")


def _route_answer(
    seen: RouteSight, heard: Heard, miners: Mapping[int, Candidate], context_bytes: int, k: int
) -> dict[str, Any]:
    return {
        "context_bytes": context_bytes,
        "k": k,
        "mixture_bits": seen.mixture_bits,
        "baseline_bits": seen.baseline_bits,
        "experts": [_expert_row(one, heard.latency_s.get(one.uid), miners.get(one.uid)) for one in seen.miners],
        "next": [{"byte": byte, "text": chr(byte), "chance": chance} for byte, chance in seen.next_bytes],
    }


def _expert_row(one: Sight, latency_s: float | None, miner: Candidate | None) -> dict[str, Any]:
    return {
        "uid": one.uid,
        "name": miner.expert if miner is not None else "",
        "score": one.score,
        "chosen": one.is_chosen,
        "share": one.share,
        "latency_ms": None if latency_s is None else latency_s * 1000,
        "bits": one.bits,
        "leave_one_out_bits": one.leave_one_out_bits,
        "refused": one.refused,
    }
