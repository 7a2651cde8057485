"""Validators that lie: the honest chain with its signing or its sending replaced, keys and all."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from moed.consensus.blocks import NO_BLOCK, Commit, Proposal, Vote, VoteKind, sign_proposal, sign_vote
from moed.consensus.effects import CastVote, Effect, Propose
from moed.consensus.transition import Executed
from moed.daemon.chain import Chain
from moed.daemon.gossip import Gossip, Session, Sessions
from moed.protocol.codec import encode_record
from moed.protocol.identity import NodeId

from .faults import Lie


class LyingGossip(Gossip):
    """Gossip that keeps silent, talks nonsense or repeats itself, as its owner wants it to."""

    lie: Lie
    generator: random.Random
    sessions: Sessions
    old: list[bytes]

    async def run(self, peers: Sessions) -> None:
        self.sessions = peers
        self.old = []
        await super().run(peers)

    async def tell_all(self, method: str, body: Any) -> None:
        is_message = method in ("chain.vote", "chain.proposal")
        if self.lie is Lie.WITHHOLD and is_message and self.generator.random() < 0.5:
            return
        if self.lie is Lie.GARBAGE and self.generator.random() < 0.5:
            await super().tell_all(method, self.generator.randbytes(self.generator.randint(0, 200)))
        if self.lie is Lie.REPLAY and method == "chain.vote":
            self.old = [*self.old[-50:], body]
            await super().tell_all(method, self.generator.choice(self.old))
        await super().tell_all(method, body)


class LyingChain(Chain):
    """A chain whose owner wants the others to disagree."""

    def corrupt(self, lie: Lie, generator: random.Random, halves: Callable[[int], frozenset[NodeId]]) -> None:
        """Choose how to lie; before `run`. ``halves`` says who is on one side of the network at a height."""
        self._lie, self._random, self._halves = lie, generator, halves
        self._lying_gossip = self._gossip = LyingGossip(self.forget, self.head.validators)
        self._lying_gossip.lie, self._lying_gossip.generator = lie, generator
        self._told: set[int] = set()

    async def _cast(self, vote: CastVote) -> list[Effect]:
        if self._lie is Lie.EQUIVOCATE:
            stories = [proposal.block.hash for proposal in self._rounds.proposals.values()] + [NO_BLOCK]
            for peer in self._peers():
                await self._tell(peer, "chain.vote", self._sign(vote.kind, vote.round, self._random.choice(stories)))
        elif self._lie is not Lie.SPLIT:
            return await super()._cast(vote)
        elif vote.round not in self._told:  # else each half has its votes already
            await self._tell_all_peers(vote)
        return self._rounds.on_vote(self._sign(vote.kind, vote.round, vote.block_hash))

    async def _propose(self, turn: Propose) -> list[Effect]:
        """A block for each half, and at once the votes of both kinds that help it to become final there."""
        if self._lie is not Lie.SPLIT:
            return await super()._propose(turn)
        height = self._rounds.height
        stories = []
        for number in range(2):
            block, _ = self.head.build(
                [], proposer=self._identity.public_key, now_ms=max(self._now_ms(), self.head.time_ms + 1) + number
            )
            stories.append(sign_proposal(self._identity, self.head.network_id, turn.round, -1, block))
        self._told.add(turn.round)
        for peer in self._peers():
            story = stories[peer.node_id in self._halves(height)]
            await self._tell(peer, "chain.proposal", story)
            for kind in VoteKind:
                await self._tell(peer, "chain.vote", self._sign(kind, turn.round, story.block.hash))
        return self._rounds.on_proposal(stories[0])

    async def _tell_all_peers(self, vote: CastVote) -> None:
        """One half hears a vote for the first block that we know of, the other for the last one."""
        known = [proposal.block.hash for proposal in self._rounds.proposals.values()] or [NO_BLOCK]
        for peer in self._peers():
            side = 0 if peer.node_id in self._halves(self._rounds.height) else -1
            await self._tell(peer, "chain.vote", self._sign(vote.kind, vote.round, known[side]))

    async def _commit(self, executed: Executed, commit: Commit) -> None:
        self._told.clear()
        await super()._commit(executed, commit)

    def _sign(self, kind: VoteKind, round_number: int, block_hash: bytes) -> Vote:
        return sign_vote(self._identity, self.head.network_id, kind, self._rounds.height, round_number, block_hash)

    def _peers(self) -> list[Session]:
        return list(self._lying_gossip.sessions.connected())

    async def _tell(self, peer: Session, method: str, message: Vote | Proposal) -> None:
        await self._gossip.tell([peer], method, encode_record(message))
