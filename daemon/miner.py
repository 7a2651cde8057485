"""The miner's role: registers its key, serves its expert to peers, and keeps training it in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
import trio

from moed.consensus.errors import InvalidTransaction
from moed.consensus.state import State, read_account, read_totals, stake_behind
from moed.consensus.transactions import Register

from .chain import Chain
from .exchange import Exchange
from .expert_service import ExpertService
from .gradient_budget import BackwardBudget
from .network.calls import Handler, Method
from .runtime import Runtime

logger = structlog.get_logger()

REGISTER_AGAIN_S = 5.0


class Miner:
    """Serves the experts of ``runtime`` under this node's uid."""

    def __init__(
        self,
        chain: Chain,
        runtime: Runtime,
        public_key: bytes,
        *,
        backward: BackwardBudget | None = None,
        exchanges: Mapping[str, Exchange] | None = None,
    ) -> None:
        self._chain = chain
        self._runtime = runtime
        self._public_key = public_key
        self._exchanges = dict(exchanges or {})
        self._service = ExpertService(runtime, self._stake_share, backward)

    def handlers(self) -> Mapping[str, Handler | Method]:
        """What peers may ask of a miner."""
        return self._service.handlers()

    async def run(self) -> None:
        """Register if need be and serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._runtime.run)
            nursery.start_soon(self._stay_registered)
            for exchange in self._exchanges.values():
                nursery.start_soon(exchange.run)

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

    def work(self) -> Mapping[str, Mapping[str, Any]]:
        """What each expert has done: rows served, training steps and loss, and whom it learns from, by its name."""
        return {
            one.name: {
                "rows_served": one.rows_served,
                "training_steps": one.training_steps,
                "training_loss_bits": one.training_loss_bits,
                "is_training": one.is_training,
                **({"exchange": self._exchanges[one.name].work()} if one.name in self._exchanges else {}),
            }
            for one in self._runtime.load().experts
        }

    def _stake_share(self, public_key: bytes) -> float:
        return stake_share(self._chain.head.state, public_key)


def stake_share(state: State, public_key: bytes) -> float:
    """The part of all credit that ``public_key`` has at stake: what its requests weigh in the queue."""
    supply = read_totals(state).supply
    return stake_behind(state, public_key) / supply if supply else 0.0
