"""The miner's role: registers its key, serves its expert to peers, and keeps training it in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import structlog
import trio
from msgspec import Meta

from moed.consensus.errors import InvalidTransaction
from moed.consensus.state import read_account, read_totals
from moed.consensus.transactions import Register
from moed.models.errors import ExpertError, RequestRefused
from moed.protocol.codec import Record, convert_record
from moed.protocol.tensors import Codec

from .chain import Chain
from .network.calls import Call, Handler, Refused, Reply
from .runtime import Runtime

logger = structlog.get_logger()

REGISTER_AGAIN_S = 5.0


class ForwardRequest(Record, frozen=True, kw_only=True):
    """Asks one expert for the next-byte log-probabilities of the rows that travel beside it, uint8 ``[B, T]``."""

    expert: Annotated[str, Meta(max_length=64)]
    codec: Literal["float32", "float16"] = "float32"


class Miner:
    """Serves the experts of ``runtime`` under this node's uid."""

    def __init__(self, chain: Chain, runtime: Runtime, public_key: bytes) -> None:
        self._chain = chain
        self._runtime = runtime
        self._public_key = public_key

    def handlers(self) -> Mapping[str, Handler]:
        """What peers may ask of a miner."""
        return {"expert.forward": self._forward, "expert.info": self._info}

    async def run(self) -> None:
        """Register if need be and serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._runtime.run)
            nursery.start_soon(self._stay_registered)

    async def _stay_registered(self) -> None:
        """See to it that our key has a uid, from the first sync on and again if we were pruned."""
        while True:
            state = self._chain.head.state
            is_synced = self._chain.height >= self._chain.best_known_height
            is_unknown = read_account(state, self._public_key).uid is None
            if is_synced and is_unknown and not self._chain.has_waiting:
                try:
                    await self._chain.submit(Register())
                except InvalidTransaction as error:
                    logger.info("miner.registration_waits", code=error.code, reason=str(error))
            with trio.move_on_after(REGISTER_AGAIN_S):
                await self._chain.wait_block()

    async def _forward(self, call: Call) -> Reply:
        request = convert_record(call.body, ForwardRequest)
        if len(call.tensors) != 1:
            raise Refused("wrong_tensors", f"one tensor of tokens is expected, not {len(call.tensors)}")
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
        codec = Codec.FLOAT16 if request.codec == "float16" else Codec.NONE
        return Reply({"queue_delay_ms": self._runtime.load().queue_delay_ms}, [answer], codec)

    async def _info(self, _call: Call) -> Reply:
        return Reply({name: dict(work) for name, work in self.work().items()})

    def work(self) -> Mapping[str, Mapping[str, Any]]:
        """What each expert has done: rows served, training steps and loss, by its name."""
        return {
            one.name: {
                "rows_served": one.rows_served,
                "training_steps": one.training_steps,
                "training_loss_bits": one.training_loss_bits,
                "is_training": one.is_training,
            }
            for one in self._runtime.load().experts
        }

    def _stake_share(self, public_key: bytes) -> float:
        state = self._chain.head.state
        supply = read_totals(state).supply
        return read_account(state, public_key).stake / supply if supply else 0.0
