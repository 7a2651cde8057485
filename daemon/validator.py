"""The validator's role: asks miners what its gate wants to know, learns from the answers, and ranks them.

The brain (`moed.models.validation`) decides whom to ask and what follows; this file asks over the network, runs the
brain in a worker thread, and writes the weights to the chain once in each epoch.
"""

from __future__ import annotations

import codecs
import secrets
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
import trio

from moed.consensus.state import read_neurons
from moed.models.errors import ModelRefused, NotEnoughAnswers
from moed.models.evaluation import held_out_losses, held_out_plans
from moed.models.experts import BYTE_VALUES
from moed.models.generation import Completion, SamplingConfig
from moed.models.plans import Mixed, Plan
from moed.models.validation import ValidatorBrain
from moed.protocol.codec import convert_record
from moed.protocol.experts import FORWARD, ForwardRequest
from moed.protocol.identity import NodeId
from moed.protocol.tensors import Codec

from .asking import ANSWER_DEADLINE_S, Candidate, Heard, Panel
from .chain import Chain
from .control.api import ControlRefused
from .control.tensors import MAX_FORWARD_ROWS
from .discovery import Discovery
from .exchange import MIXTURE
from .forwarding import CompletionRequest
from .gate_memory import GateMemory, remember
from .network.calls import Call, Handler, Refused, Reply
from .network.peers import Peers
from .route_view import RouteView
from .sync import RunBlocking
from .weights_writer import WeightsWriter

logger = structlog.get_logger()

IDLE_S = 0.5
"""Pause while no miner is there to ask."""
HELD_OUT_ROWS = 24
"""Rows of each domain in the held-out comparison."""
MAX_PEERS_COMPLETIONS = 4
"""Completions that we make for other nodes at the same time: each costs two calls for every byte."""
REPORT_EVERY = 20
"""Batches between two lines in the log about how the gate is doing."""

Tokens = npt.NDArray[np.uint8]


class Validator:
    """Trains a gate over the miners of the network, answers through the mixture, and ranks the miners.

    ``run_blocking`` runs the brain, which one caller at a time may use: `_brain_is_free` sees to that. What it learns
    is stored at ``path``, if there is one; ``remembered`` are the keys of the miners that it knows from before.
    """

    def __init__(
        self,
        chain: Chain,
        peers: Peers,
        discovery: Discovery,
        brain: ValidatorBrain,
        public_key: bytes,
        *,
        path: Path | None = None,
        remembered: Mapping[int, bytes] | None = None,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._chain = chain
        self.panel = Panel(chain, peers, discovery, public_key)
        self._brain = brain
        self._run_blocking = run_blocking
        self._brain_is_free = trio.Lock()
        self._view = RouteView(self.panel, brain, self._brain_is_free, self._meet, run_blocking)
        self._writer = WeightsWriter(chain, public_key)
        self._memory = GateMemory(path, brain, self.panel, self._brain_is_free, run_blocking) if path else None
        if remembered:
            remember(brain, self.panel, chain, remembered)
        self._completing: set[NodeId] = set()
        self.batches = 0
        self.loss_bits: float | None = None

    def handlers(self) -> Mapping[str, Handler]:
        """What peers may ask of a validator."""
        return {
            "mixture.complete": self._serve_completion,
            "mixture.forward": self._serve_forward,
            FORWARD: self._serve_as_expert,
        }

    async def run(self) -> None:
        """Learn and rank until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._learn)
            nursery.start_soon(self._writer.run, self._weights)
            if self._memory is not None:
                nursery.start_soon(self._memory.run)

    # who is there to ask

    async def _meet(self) -> dict[int, Candidate]:
        """Tell the brain who is there; a uid under a new key starts anew."""
        now = self.panel.candidates()
        registered = {neuron.uid: neuron.key for neuron in read_neurons(self._chain.head.state)}
        # one that is out of reach for a moment is still known, one that lost its uid is not
        kept = {
            uid: one
            for uid, one in self.panel.miners.items()
            if registered.get(uid) == one.public_key and uid not in now
        }
        changed = [
            uid
            for uid, one in now.items()
            if uid in self.panel.miners and self.panel.miners[uid].public_key != one.public_key
        ]
        if set(now) | set(kept) != set(self.panel.miners) or changed:
            async with self._brain_is_free:
                for uid in changed:
                    self._brain.forget_miner(uid)
                seniority = {uid: one.registered_block for uid, one in {**kept, **now}.items()}
                self._brain.set_miners({*now, *kept}, seniority)
            logger.info("validator.miners_changed", uids=sorted({*now, *kept}), reachable=sorted(now))
        self.panel.miners = {**kept, **now}
        return now

    # asking and learning

    async def _learn(self) -> None:
        while True:
            reachable = await self._meet()
            if not reachable:
                await trio.sleep(IDLE_S)
                continue
            try:
                async with self._brain_is_free:
                    plan: Plan = await self._run_blocking(
                        lambda now=frozenset(reachable): self._brain.plan(reachable=now)
                    )
            except NotEnoughAnswers:  # they lost their uids while a completion or a comparison held the brain
                continue
            heard = await self._ask_plan(plan)
            async with self._brain_is_free:
                # under the lock, because only who has it tells the brain of a new key
                heard = self.panel.still_held(heard)
                plan = _without(plan, set(plan.assignment) - set(heard.keys))
                report = await self._run_blocking(self._brain.learn, plan, heard.answers)
                for uid, latency_s in heard.latency_s.items():
                    in_time_s = None if uid in report.invalid else latency_s
                    self._brain.promptness.record(uid, in_time_s, ANSWER_DEADLINE_S)
            self.batches += 1
            if report.loss_bits is not None:
                self.loss_bits = report.loss_bits
            for uid, code in report.invalid.items():
                logger.warning("validator.answer_refused", uid=uid, code=code)
            if self.batches % REPORT_EVERY == 0:
                logger.info(
                    "validator.gate_trained",
                    batches=self.batches,
                    loss_bits=round(self.loss_bits or 0.0, 3),
                    share={str(uid): round(share, 3) for uid, share in report.share.items()},
                )

    async def _ask_plan(self, plan: Plan) -> Heard:
        """The answers to a plan from all that give one in time; all are asked at once."""
        return await self.panel.ask({uid: plan.rows_for(uid) for uid in plan.assignment})

    # ranking

    async def _weights(self) -> dict[int, int]:
        """What the brain thinks of the miners."""
        async with self._brain_is_free:
            return dict(self._brain.weights())

    # answering

    async def losses(self) -> dict[str, Any]:
        """The mixture beside its members on held-out text, in bits per byte. Raises `ControlRefused`."""
        reachable = await self._meet()
        if not reachable:
            raise _nobody()
        try:
            async with self._brain_is_free:
                plans = await self._run_blocking(held_out_plans, self._brain, HELD_OUT_ROWS)
            asked = [(plan, await self._ask_plan(plan)) for plan in plans]
            async with self._brain_is_free:
                answered = [(plan, self.panel.still_held(heard).answers) for plan, heard in asked]
                report = await self._run_blocking(held_out_losses, self._brain, answered)
        except NotEnoughAnswers as error:
            raise ControlRefused(503, "not_enough_answers", str(error), "wait until more miners answer") from error
        return {
            "mixture": report.mixture,
            "best_single": report.best_single,
            "uniform_average": report.uniform_average,
            "oracle": report.oracle,
            "best_uid": report.best_uid,
            "rows": report.rows,
            "share": {name: _by_text(shares) for name, shares in report.share.items()},
            "member_losses": {str(uid): dict(losses) for uid, losses in report.member_losses.items()},
        }

    async def route(self, text: bytes) -> dict[str, Any]:
        """One input under the X-ray. Raises `ControlRefused`."""
        return await self._view.route(text)

    async def teach(self, texts: Sequence[bytes], *, steps: int) -> dict[str, Any]:
        """Train the gate on an application's texts. Raises `ControlRefused`."""
        return await self._view.teach(texts, steps=steps)

    async def complete(
        self, prompt: bytes, *, max_bytes: int, temperature: float, seed: int | None
    ) -> AsyncIterator[dict[str, Any]]:
        """Continue ``prompt`` byte by byte through the mixture; yields pieces {text, experts: {uid: share}}.

        Raises `ControlRefused` if no miner answers.
        """
        try:
            completion = Completion(
                prompt,
                SamplingConfig(
                    max_bytes=max_bytes,
                    temperature=temperature,
                    seed=secrets.randbits(32) if seed is None else seed,
                    context_bytes=self._brain.config.length,
                ),
            )
        except (ModelRefused, ValueError) as error:
            raise ControlRefused(400, "bad_request", str(error), "correct the request") from error
        # a byte is not yet a character: pieces hold whole ones
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        await self._meet()
        while not completion.done:
            mixed = await self._mix_next(completion.context())
            byte = completion.step(mixed.log_probs)
            yield {"text": decoder.decode(bytes([byte]), final=completion.done), "experts": _by_text(mixed.weights)}

    async def forward(self, inputs: Tokens) -> tuple[npt.NDArray[np.float32], list[dict[str, float]]]:
        """Log-probabilities [B, 256] of the byte after each row of ``inputs`` [B, T], and {uid: share} of each row.

        Of long rows the last bytes count, as many as a plan has. Raises `ControlRefused` if no miner answers.
        """
        log_probs = np.empty((len(inputs), BYTE_VALUES), dtype=np.float32)
        shares: list[dict[str, float]] = [{} for _ in inputs]
        await self._meet()

        refused: list[ControlRefused] = []

        async def one(row: int) -> None:
            try:
                mixed = await self._mix_next(inputs[row, -self._brain.config.length :])
            except ControlRefused as error:
                refused.append(error)
                nursery.cancel_scope.cancel()
                return
            log_probs[row], shares[row] = mixed.log_probs, _by_text(mixed.weights)

        async with trio.open_nursery() as nursery:
            for row in range(len(inputs)):
                nursery.start_soon(one, row)
        if refused:
            raise refused[0]
        return log_probs, shares

    async def _mix_next(self, context: Tokens) -> Mixed:
        """The mixture's distribution of the byte after ``context``. Raises `ControlRefused` if no miner answers."""
        async with self._brain_is_free:
            try:
                route = self._brain.route(context, reachable=set(self.panel.candidates()))
            except NotEnoughAnswers as error:
                raise _nobody() from error
        heard = await self.panel.ask(dict.fromkeys(route.uids, context[None]))
        async with self._brain_is_free:
            try:
                mixed = self._brain.mix(route, context, heard.answers)
            except NotEnoughAnswers as error:
                raise ControlRefused(503, "not_enough_answers", str(error), "try again") from error
        for uid, code in mixed.refused.items():
            logger.warning("validator.answer_refused", uid=uid, code=code)
        return mixed

    async def _serve_forward(self, call: Call) -> Reply:
        """A forward of the mixture for a peer that has no gate of its own, with the bounds of completions."""
        inputs = _rows_of(call)
        with self._completing_for(call.peer.node_id):
            try:
                log_probs, shares = await self.forward(inputs)
            except ControlRefused as error:
                raise Refused(error.code, error.message) from error
        return Reply(shares, [log_probs])

    async def _serve_as_expert(self, call: Call) -> Reply:
        """The mixture as an expert called `MIXTURE`: log-probabilities [B, T, 256], with the bounds of completions."""
        if convert_record(call.body, ForwardRequest).expert != MIXTURE:
            raise Refused("unknown_expert", f"a validator serves one expert, {MIXTURE!r}")
        inputs = _rows_of(call)
        if inputs.shape[1] > self._brain.config.length:
            raise Refused("bad_tensor", f"rows are 1 to {self._brain.config.length} bytes here")
        with self._completing_for(call.peer.node_id):
            try:
                return Reply({}, [await self._view.answer(inputs)], Codec.FLOAT16)
            except ControlRefused as error:
                raise Refused(error.code, error.message) from error

    @contextmanager
    def _completing_for(self, asker: NodeId) -> Iterator[None]:
        """One of the few places for other nodes' questions; one at a time for each."""
        if asker in self._completing or len(self._completing) >= MAX_PEERS_COMPLETIONS:
            raise Refused("busy", "a completion is under way; ask again when it is done")
        self._completing.add(asker)
        try:
            yield
        finally:
            self._completing.discard(asker)

    async def _serve_completion(self, call: Call) -> Reply:
        """A completion for a peer that has no gate of its own."""
        request = convert_record(call.body, CompletionRequest)
        with self._completing_for(call.peer.node_id):
            return await self._complete_for_peer(request)

    async def _complete_for_peer(self, request: CompletionRequest) -> Reply:
        answer = self.complete(
            request.prompt, max_bytes=request.max_bytes, temperature=request.temperature, seed=request.seed
        )
        try:
            pieces = [piece async for piece in answer]
        except ControlRefused as error:
            raise Refused(error.code, error.message) from error
        return Reply(pieces)


def _without(plan: Plan, gone: Collection[int]) -> Plan:
    """``plan`` without the miners that it was not put to: silence would be held against whoever has their uids now."""
    if not gone:
        return plan
    assignment = {uid: rows for uid, rows in plan.assignment.items() if uid not in gone}
    return replace(plan, uids=tuple(uid for uid in plan.uids if uid not in gone), assignment=assignment)


def _rows_of(call: Call) -> Tokens:
    """The rows [B, T] that a call is about. Raises `Refused`."""
    inputs = call.tensors[0] if len(call.tensors) == 1 else None
    if inputs is None or inputs.dtype != np.uint8 or inputs.ndim != 2 or not 1 <= len(inputs) <= MAX_FORWARD_ROWS:
        raise Refused("bad_tensor", f"inputs are one uint8 tensor [B, T] of at most {MAX_FORWARD_ROWS} rows")
    if inputs.shape[1] < 1:
        raise Refused("bad_tensor", "there is no byte to go on from in rows of no bytes")
    return inputs


def _by_text(shares: Mapping[int, float]) -> dict[str, float]:
    return {str(uid): share for uid, share in shares.items()}


def _nobody() -> ControlRefused:
    return ControlRefused(
        503,
        "no_miner",
        "no miner is reachable that could answer",
        "wait until miners have joined (see `moectl experts`)",
    )
