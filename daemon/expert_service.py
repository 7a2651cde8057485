"""What peers may ask of the experts that one device serves, checked before it costs anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import trio

from moed.models.errors import ExpertError, NoBackward, RequestRefused, UnknownExpert
from moed.protocol.codec import convert_record
from moed.protocol.experts import (
    BACKWARD,
    FORWARD,
    INFO,
    BackwardRequest,
    ForwardRequest,
    InfoAnswer,
    InfoRequest,
    check_batches,
)
from moed.protocol.tensors import Codec

from .gradient_budget import BackwardBudget
from .network.calls import Call, Handler, Method, Refused, Reply
from .runtime import Runtime

if TYPE_CHECKING:
    from moed.protocol.messages import Announced
    from moed.protocol.tensors import Array

_CODECS = {"float32": Codec.NONE, **{codec.wire_name: codec for codec in Codec if codec is not Codec.NONE}}


class ExpertService:
    """The handlers of ``runtime``'s experts; ``stake_share`` tells a caller's part of all stake by its public key."""

    def __init__(
        self, runtime: Runtime, stake_share: Callable[[bytes], float], budget: BackwardBudget | None = None
    ) -> None:
        self._runtime = runtime
        self._stake_share = stake_share
        self._budget = budget or BackwardBudget()

    def handlers(self) -> Mapping[str, Handler | Method]:
        """What peers may call."""
        return {
            FORWARD: Method(self._forward, screen=self._screen, at_once=self._forward_at_once, is_receipted=True),
            BACKWARD: Method(self._backward, screen=self._screen, is_receipted=True),
            INFO: self._info,
        }

    def _screen(self, announced: Announced) -> None:
        """Refuse a large batch by its first bytes, before there is memory for the rest. Raises `Malformed`."""
        request = convert_record(announced.head.body, _SCREENED[announced.head.method])
        schema = self._runtime.takes(request.expert)
        if schema is None:
            raise Refused(UnknownExpert.code, f"no expert {request.expert!r} is served here")
        check_batches([schema], [announced.tensor], request.expert)

    def _check(self, call: Call, expert: str, *, with_gradients: bool = False) -> None:
        schema = self._runtime.takes(expert)
        if schema is None:
            raise Refused(UnknownExpert.code, f"no expert {expert!r} is served here")
        gradients = self._runtime.takes_gradients(expert) if with_gradients else None
        if with_gradients and gradients is None:
            raise Refused(NoBackward.code, f"expert {expert!r} gives no gradients")
        check_batches([schema] if gradients is None else [schema, gradients], call.wire_tensors, expert)

    def _forward_at_once(self, call: Call) -> Reply | None:
        request = convert_record(call.body, ForwardRequest)
        self._check(call, request.expert)
        try:
            answer = self._runtime.forward_at_once(request.expert, call.tensors[0])
        except ExpertError as error:
            raise Refused(error.code, str(error)) from error
        return None if answer is None else self._reply(answer, request.codec)

    async def _forward(self, call: Call) -> Reply:
        request = convert_record(call.body, ForwardRequest)
        self._check(call, request.expert)
        try:
            answer = await self._runtime.forward(
                request.expert,
                call.tensors[0],
                caller=call.peer.node_id,
                stake_share=self._stake_share(call.peer.public_key),
                deadline=call.deadline,
            )
        except (ExpertError, RequestRefused) as error:
            raise Refused(error.code, str(error)) from error
        return self._reply(answer, request.codec)

    async def _backward(self, call: Call) -> Reply:
        request = convert_record(call.body, BackwardRequest)
        self._check(call, request.expert, with_gradients=True)
        inputs, gradients = call.tensors
        share = self._stake_share(call.peer.public_key)
        try:
            self._budget.check(call.peer.public_key, share, trio.current_time())
            at_inputs = await self._runtime.backward(
                request.expert,
                inputs,
                gradients,
                caller=call.peer.node_id,
                stake_share=share,
                deadline=call.deadline,
                charge=partial(self._budget.charge, call.peer.public_key, share),
            )
        except (ExpertError, RequestRefused) as error:
            raise Refused(error.code, str(error)) from error
        return self._reply(at_inputs, request.codec)

    async def _info(self, call: Call) -> Reply:
        request = convert_record(call.body or {}, InfoRequest)
        await trio.lowlevel.checkpoint()
        infos = tuple(one for one in self._runtime.infos() if request.expert in (None, one.name))
        if not infos:
            raise Refused(UnknownExpert.code, f"no expert {request.expert!r} is served here")
        return Reply(msgspec.to_builtins(InfoAnswer(experts=infos, load=self._runtime.brief_load())))

    def _reply(self, answer: Array, codec: str) -> Reply:
        return Reply(msgspec.structs.asdict(self._runtime.brief_load()), [answer], _CODECS[codec])


_SCREENED: Mapping[str, type[ForwardRequest | BackwardRequest]] = {FORWARD: ForwardRequest, BACKWARD: BackwardRequest}
