"""Following the validators by what peers tell: steps are checked one by one, kept, and given to others later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from moed.consensus.errors import RuleBroken
from moed.consensus.light import Checkpoint, LightChain
from moed.consensus.params import ChainParams
from moed.consensus.proofs import StateProof
from moed.consensus.state import ValidatorSet
from moed.protocol.errors import Malformed, RemoteProtocolError

from .errors import ConfigError
from .gossip import Session
from .network.errors import AnswerTooLarge, CallError
from .store import Store

if TYPE_CHECKING:
    from .sync import RunBlocking

logger = structlog.get_logger()

MAX_STEPS = 256
KEPT_BLOCKS = 4
"""Believed blocks at which a snapshot may be: peers have those of the last epochs alone."""
ASK_DEADLINE_S = 20.0
MAX_ANSWER_BYTES = 1 << 21
"""Of pieces, manifests and steps: each is a MiB at most, and steps one proof longer."""


def checkpoint_of(text: str | None, params: ChainParams) -> Checkpoint | None:
    """The checkpoint in a configuration, if there is one. Raises `ConfigError` if it is not at the end of an epoch."""
    if text is None:
        return None
    checkpoint = Checkpoint.parse(text)
    if checkpoint.height % params.tempo:
        raise ConfigError(
            f"the checkpoint in block {checkpoint.height} is not at the end of an epoch of {params.tempo} blocks",
            "take what `moed chain checkpoint` prints on a node that you trust",
        )
    return checkpoint


@dataclass(frozen=True, slots=True)
class Believed:
    """A block that the validators signed, and who they were."""

    step: StateProof
    decided_by: ValidatorSet


class StepSync:
    """The validators as far as they are known, and the last blocks at which they signed a step; `start` it first."""

    def __init__(self, store: Store, checkpoint: Checkpoint | None, run_blocking: RunBlocking) -> None:
        self._store = store
        self._checkpoint = checkpoint
        self._run_blocking = run_blocking
        self._light: LightChain | None = None
        self.believed: dict[int, Believed] = {}

    @property
    def has_passed_checkpoint(self) -> bool:
        return self._light is not None and self._light.has_passed_checkpoint

    async def start(self) -> LightChain:
        """Go over the steps that are on the disk, unless that was done."""
        if self._light is None:
            self._light = await self._run_blocking(self._resume)
        return self._light

    async def climb(self, peer: Session, height: int) -> None:
        """Follow the validators up to ``height`` by what a peer tells, or as far as that holds.

        Before the checkpoint is passed, what does not follow may as well be the fault of who told the steps before; so
        it is tried from the genesis again.
        """
        for _ in range(2):
            light = await self.start()
            try:
                await self._climb_on(light, peer, height)
            except (RuleBroken, RemoteProtocolError) as error:
                if light.has_passed_checkpoint:
                    refuse(peer, str(error))
                    return
                self._light = await self._run_blocking(self._restart, light, error)
            else:
                return
        refuse(peer, "what it tells of the validators leads past the checkpoint")

    def _resume(self) -> LightChain:
        light = LightChain(self._store.genesis, self._checkpoint)
        tempo = self._store.genesis.params.tempo
        try:
            while steps := self._store.steps(light.next_height, tempo, MAX_STEPS, 1 << 22):
                for step in steps:
                    self._step(light, step)
        except (RuleBroken, RemoteProtocolError) as error:
            return self._restart(light, error)
        return light

    def _restart(self, light: LightChain, error: Exception) -> LightChain:
        """Those who told the steps so far led past the checkpoint, or somebody else does now: begin at the genesis."""
        logger.warning("snapshot.steps_dropped", height=light.next_height, reason=str(error))
        self._store.drop_steps()
        self.believed.clear()
        return LightChain(self._store.genesis, self._checkpoint)

    async def _climb_on(self, light: LightChain, peer: Session, height: int) -> None:
        while light.next_height <= height:
            steps = await ask(peer, "chain.steps", {"start": light.next_height})
            if not isinstance(steps, list):
                raise Malformed("steps travel as a list")
            if not steps:
                return
            await self._run_blocking(self._take, light, steps[:MAX_STEPS])

    def _take(self, light: LightChain, steps: Sequence[Any]) -> None:
        kept: list[tuple[int, bytes]] = []
        try:
            for step in steps:
                if not isinstance(step, bytes):
                    raise Malformed("a step travels as bytes")
                self._step(light, step)
                kept.append((light.height, step))
        finally:
            self._store.keep_steps(kept)

    def _step(self, light: LightChain, encoded: bytes) -> None:
        decided_by = light.validators
        light.take(encoded)
        assert light.last is not None
        self.believed[light.height] = Believed(light.last, decided_by)
        for height in list(self.believed)[:-KEPT_BLOCKS]:
            del self.believed[height]


async def ask(peer: Session, method: str, body: Mapping[str, Any] | None) -> Any:
    """The body of a peer's answer, or an empty list if it gives none; one that is too long ends its session."""
    try:
        reply = await peer.call(method, body, deadline_s=ASK_DEADLINE_S, max_answer_bytes=MAX_ANSWER_BYTES)
    except AnswerTooLarge as error:
        refuse(peer, str(error))
        return []
    except CallError as error:
        logger.info("snapshot.ask_failed", peer=peer.node_id.hex(), method=method, reason=str(error))
        return []
    return reply.body


def refuse(peer: Session, reason: str) -> None:
    """End the session of a peer whose word does not hold."""
    logger.warning("snapshot.refused", peer=peer.node_id.hex(), reason=reason)
    peer.drop()
