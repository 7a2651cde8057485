"""Validators that lie: the honest chain with its signing or its sending replaced, keys and all."""

from __future__ import annotations

import random
from typing import Any

from moed.consensus.blocks import NO_BLOCK, Proposal, sign_proposal, sign_vote
from moed.consensus.rounds import CastVote, Effect, Propose
from moed.daemon.chain import Chain
from moed.daemon.network.errors import CallError
from moed.daemon.network.peers import Priority
from moed.protocol.codec import encode_record
from moed.protocol.identity import NodeId

from .faults import Lie


class LyingChain(Chain):
    """A chain whose owner wants the others to disagree."""

    lie: Lie
    generator: random.Random

    def corrupt(self, lie: Lie, generator: random.Random) -> None:
        """Choose how to lie; before `run`."""
        self.lie = lie
        self.generator = generator
        self._old: list[bytes] = []

    async def _cast(self, vote: CastVote) -> list[Effect]:
        if self.lie is not Lie.EQUIVOCATE:
            return await super()._cast(vote)
        candidates = [proposal.block.hash for proposal in self._rounds.proposals.values()] + [NO_BLOCK]
        height, network_id = self._rounds.height, self.head.network_id
        for peer in self._peers.connected() if self._peers is not None else ():
            chosen = self.generator.choice(candidates)
            signed = sign_vote(self._identity, network_id, vote.kind, height, vote.round, chosen)
            await self._send_to(peer.node_id, "chain.vote", encode_record(signed))
        own = sign_vote(self._identity, network_id, vote.kind, height, vote.round, vote.block_hash)
        return self._rounds.on_vote(own)

    async def _propose(self, turn: Propose) -> list[Effect]:
        if self.lie is not Lie.TWO_BLOCKS:
            return await super()._propose(turn)
        proposals = []
        for number in range(2):
            block, _ = self.head.build(
                [], proposer=self._identity.public_key, now_ms=max(self._now_ms(), self.head.time_ms) + number
            )
            proposals.append(sign_proposal(self._identity, self.head.network_id, turn.round, -1, block))
        for peer in self._peers.connected() if self._peers is not None else ():
            chosen: Proposal = self.generator.choice(proposals)
            await self._send_to(peer.node_id, "chain.proposal", encode_record(chosen))
        return self._rounds.on_proposal(proposals[0])

    async def _broadcast(self, method: str, body: Any, origin: NodeId | None) -> None:
        if self.lie is Lie.WITHHOLD and method != "chain.status" and self.generator.random() < 0.5:
            return
        if self.lie is Lie.GARBAGE and self.generator.random() < 0.5:
            await super()._broadcast(method, self.generator.randbytes(self.generator.randint(0, 200)), None)
        if self.lie is Lie.REPLAY and isinstance(body, bytes):
            self._old = [*self._old[-50:], body]
            await super()._broadcast(method, self.generator.choice(self._old), None)
        await super()._broadcast(method, body, origin)

    async def _send_to(self, node_id: NodeId, method: str, body: Any) -> None:
        for peer in self._peers.connected() if self._peers is not None else ():
            if peer.node_id == node_id:
                try:
                    await peer.notify(method, body, priority=Priority.HIGH)
                except CallError:
                    self.forget(node_id)
