"""Asks the experts of other nodes: one at a time with a hedge, or many at once until enough have answered."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

from moed.protocol.codec import RecordT, convert_record
from moed.protocol.errors import RemoteProtocolError
from moed.protocol.experts import BACKWARD, FORWARD, INFO, MAX_VALUE_BYTES, InfoAnswer, Load
from moed.protocol.tensors import Codec

from .network.calls import SMALL_ANSWER_BYTES, Reply
from .network.errors import CallError, DeadlineExceeded, PeerLost, RemoteRefusal
from .network.peers import Peer

if TYPE_CHECKING:
    from moed.protocol.tensors import Array

AnswerT = TypeVar("AnswerT")

MAX_INFO_BYTES = 4 << 20
"""What one node says of all its experts; each is a few hundred bytes."""

# Refusals that another place, or the same one later, would not repeat.
_ELSEWHERE = frozenset(
    {"queue_full", "stopping", "busy", "unknown_expert", "expert_failed", "unknown_method", "strange_answer"}
)
_CODEC_WORD = {codec: "float32" if codec is Codec.NONE else codec.wire_name for codec in Codec}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to one expert; with ``gradients`` it asks for the gradient at the inputs."""

    expert: str
    inputs: Array
    gradients: Array | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer, who gave it, and how busy that node is."""

    rows: Array
    peer: Peer
    load: Load


class ExpertClient:
    """Calls experts by name on the peers that ``locate`` gives, best first.

    ``codec`` is how tensors travel, both ways. ``hedge_after_s``: if a place has not answered by then the next one is
    asked as well, and the first answer wins; a place that is lost or full is given up at once. Backward passes are
    never hedged: the expert learns from each. ``hashed`` asks for hashes in the receipts, which both ends pay for.
    """

    def __init__(
        self,
        locate: Callable[[str], Sequence[Peer]],
        *,
        codec: Codec = Codec.NONE,
        hedge_after_s: float = math.inf,
        hashed: bool = False,
    ) -> None:
        self._locate = locate
        self._hashed = hashed
        self._codec = codec
        self._hedge_after_s = hedge_after_s

    async def forward(self, expert: str, inputs: Array, *, deadline_s: float) -> Answered:
        """The answer to ``inputs``. Raises `CallError` subclasses, `PeerLost` where nobody serves it now."""
        return await self.ask(Asked(expert, inputs), deadline_s=deadline_s)

    async def backward(self, expert: str, inputs: Array, gradients: Array, *, deadline_s: float) -> Answered:
        """The gradient at ``inputs``. Raises as `forward` does."""
        return await self.ask(Asked(expert, inputs, gradients), deadline_s=deadline_s)

    async def info(self, peer: Peer, *, deadline_s: float) -> InfoAnswer:
        """What ``peer`` serves. Raises `CallError` subclasses."""
        reply = await peer.call(INFO, {}, deadline_s=deadline_s, max_answer_bytes=MAX_INFO_BYTES)
        return _converted(reply.body, InfoAnswer)

    async def ask(self, asked: Asked, *, deadline_s: float) -> Answered:
        """One request, to as many places as it takes. Raises the last place's `CallError`."""
        places = list(self._locate(asked.expert))
        if not places:
            raise PeerLost(f"no peer that serves {asked.expert!r} is in session")
        if asked.gradients is not None or len(places) == 1:
            return await self._ask_one(places[0], asked, deadline_s)
        return await self._ask_hedged(places, asked, trio.current_time() + deadline_s)

    async def ask_many(
        self,
        asks: Sequence[Asked],
        *,
        deadline_s: float,
        grace_s: float = math.inf,
        is_enough: Callable[[Collection[int]], bool] = lambda _answered: False,
    ) -> list[Answered | CallError]:
        """All of ``asks`` at once, an answer or an error for each.

        From the moment ``is_enough`` holds for the indexes that were answered, the others have ``grace_s`` left.
        """
        return await ask_all(asks, partial(self.ask, deadline_s=deadline_s), grace_s=grace_s, is_enough=is_enough)

    async def _ask_hedged(self, places: Sequence[Peer], asked: Asked, deadline: float) -> Answered:
        """Start with the first place; the next one joins when one fails or is late. The first answer wins."""
        answers: list[Answered] = []
        failures: list[CallError] = []

        async def run(peer: Peer, settled: trio.Event, scope: trio.CancelScope) -> None:
            try:
                answers.append(await self._ask_one(peer, asked, deadline - trio.current_time()))
                scope.cancel()
            except CallError as error:
                failures.append(error)
                settled.set()
                if isinstance(error, RemoteRefusal) and error.code not in _ELSEWHERE:
                    scope.cancel()  # every place would say so

        async with trio.open_nursery() as nursery:
            for peer in places:
                settled = trio.Event()
                nursery.start_soon(run, peer, settled, nursery.cancel_scope)
                with trio.move_on_after(self._hedge_after_s):
                    await settled.wait()
                if nursery.cancel_scope.cancel_called:  # waking up for the failure hid it
                    break
        if answers:
            return answers[0]
        raise failures[-1]

    async def _ask_one(self, peer: Peer, asked: Asked, deadline_s: float) -> Answered:
        body = {"expert": asked.expert, "codec": _CODEC_WORD[self._codec]}
        if asked.gradients is None:
            # how long a forward answer may be is the expert's own affair
            method, tensors, longest = FORWARD, [asked.inputs], None
        else:
            method, tensors = BACKWARD, [asked.inputs, asked.gradients]
            longest = asked.inputs.size * MAX_VALUE_BYTES + SMALL_ANSWER_BYTES
        reply = await peer.call(
            method,
            body,
            tensors,
            deadline_s=deadline_s,
            codec=self._codec,
            hashed=self._hashed,
            max_answer_bytes=longest,
        )
        return _answered(reply, peer, asked)


async def ask_all(
    asks: Sequence[Asked],
    ask: Callable[[Asked], Awaitable[AnswerT]],
    *,
    grace_s: float = math.inf,
    is_enough: Callable[[Collection[int]], bool] = lambda _answered: False,
) -> list[AnswerT | CallError]:
    """``ask`` all at once, an answer or an error for each.

    From the moment ``is_enough`` holds for the indexes that were answered, the others have ``grace_s`` left.
    """
    outcomes: list[AnswerT | CallError] = [DeadlineExceeded("given up: enough others had answered")] * len(asks)
    answered: set[int] = set()

    async def one(index: int, scope: trio.CancelScope) -> None:
        try:
            outcomes[index] = await ask(asks[index])
        except CallError as error:
            outcomes[index] = error
            return
        answered.add(index)
        if math.isinf(scope.deadline) and is_enough(answered):
            scope.deadline = trio.current_time() + grace_s

    async with trio.open_nursery() as nursery:
        for index in range(len(asks)):
            nursery.start_soon(one, index, nursery.cancel_scope)
    return outcomes


def _answered(reply: Reply, peer: Peer, asked: Asked) -> Answered:
    """The reply as an answer to ``asked``. Raises `RemoteRefusal` for one that is none."""
    rows = len(asked.inputs)
    if len(reply.tensors) != 1 or reply.tensors[0].ndim < 1 or len(reply.tensors[0]) != rows:
        raise RemoteRefusal("strange_answer", f"one tensor of {rows} rows was expected")
    return Answered(reply.tensors[0], peer, _converted(reply.body, Load))


def _converted(value: object, kind: type[RecordT]) -> RecordT:
    try:
        return convert_record(value, kind)
    except RemoteProtocolError as error:
        raise RemoteRefusal("strange_answer", str(error)) from error
