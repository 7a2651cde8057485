"""What the blocks under vote do to the chain: each is executed once, where that holds nobody up."""

from __future__ import annotations

import structlog

from moed.consensus.blocks import (
    Block,
    Commit,
    Proposal,
    Vote,
    check_commit_is_for,
    check_signatures,
    decode_block,
    decode_commit,
)
from moed.consensus.effects import Equivocation
from moed.consensus.errors import RuleBroken
from moed.consensus.evidence import Evidence, double_proposal, double_vote
from moed.consensus.rounds import Rounds
from moed.consensus.transition import Executed, Head

from .sync import RunBlocking

logger = structlog.get_logger()

FEW_TRANSACTIONS = 8
"""A block of so few is executed at once: that takes less than the way to a thread and back."""
SMALL_BYTES = 1 << 16
"""A message of no more is parsed at once, a longer one where it holds nobody up."""


class Judge:
    """Executes blocks on ``head`` and keeps what came out until the height is decided."""

    def __init__(self, head: Head, run_blocking: RunBlocking) -> None:
        self._head = head
        self._run_blocking = run_blocking
        self._outcomes: dict[bytes, Executed | RuleBroken] = {}

    def clear(self) -> None:
        """The head has moved; nothing executed on the old one counts."""
        self._outcomes.clear()

    async def examine(self, rounds: Rounds, proposal: Proposal) -> None:
        """Check a proposal, and execute its block if it is soon voted on, so that `holds` need not.

        Raises what `check_proposal` does. Whoever has many turns ahead may propose for all of them at once; those
        blocks wait for `prepare`.
        """
        if len(proposal.block.transactions) <= FEW_TRANSACTIONS:
            rounds.check_proposal(proposal)
            return
        rounds.check_author(proposal)  # here, so that the thread finds the turns counted and changes nothing
        await self._run_blocking(rounds.check_proposal, proposal)
        if proposal.round <= rounds.round + 1:
            await self._execute_once(proposal.block)

    async def prepare(self, rounds: Rounds) -> None:
        """Execute what was proposed early for the round under way and the next one."""
        for round_number in (rounds.round, rounds.round + 1):
            proposal = rounds.proposals.get(round_number)
            if proposal is not None and len(proposal.block.transactions) > FEW_TRANSACTIONS:
                await self._execute_once(proposal.block)

    async def _execute_once(self, block: Block) -> None:
        if block.hash not in self._outcomes:
            self._outcomes[block.hash] = await self.try_execute(block)

    async def try_execute(self, block: Block) -> Executed | RuleBroken:
        """What a block does, or the rule that it breaks."""
        if len(block.transactions) <= FEW_TRANSACTIONS:
            return self._execute(block)
        outcome: Executed | RuleBroken = await self._run_blocking(self._execute, block)
        return outcome

    async def read_final(self, encoded_block: bytes, encoded_commit: bytes) -> tuple[Executed, Commit]:
        """What the next block does, if it is the one that its commit makes final. Raises `RuleBroken` or `Malformed`.

        The signatures come first: without the stake behind it, no block is worth the time to read it.
        """
        is_small = len(encoded_block) + len(encoded_commit) <= SMALL_BYTES
        block, commit = (
            self._parse_final(encoded_block, encoded_commit)
            if is_small
            else await self._run_blocking(self._parse_final, encoded_block, encoded_commit)
        )
        outcome = await self.try_execute(block)
        if isinstance(outcome, RuleBroken):
            raise outcome
        return outcome, commit

    def _parse_final(self, encoded_block: bytes, encoded_commit: bytes) -> tuple[Block, Commit]:
        commit = decode_commit(encoded_commit)
        check_signatures(commit, self._head.validators, self._head.network_id)
        block = decode_block(encoded_block)
        check_commit_is_for(commit, block.header)
        return block, commit

    def holds(self, block: Block) -> bool:
        """Whether a block under vote breaks no rule; what it does is kept for when it is decided."""
        outcome = self._outcomes.get(block.hash)
        if outcome is None:
            outcome = self._outcomes[block.hash] = self._execute(block)
        if isinstance(outcome, RuleBroken):
            logger.warning("chain.block_refused", height=block.height, reason=str(outcome))
            return False
        return True

    def executed(self, block: Block) -> Executed:
        """What a block that `holds` does."""
        outcome = self._outcomes[block.hash]
        if isinstance(outcome, RuleBroken):
            raise TypeError(f"block {block.height} was refused and yet decided")
        return outcome

    def _execute(self, block: Block) -> Executed | RuleBroken:
        try:
            return self._head.execute(block)
        except RuleBroken as error:
            return error


def evidence_of(lie: Equivocation) -> Evidence:
    """What the ledger slashes for."""
    match lie.first, lie.second:
        case Vote() as one, Vote() as other:
            return double_vote(one, other)
        case Proposal() as one, Proposal() as other:
            return double_proposal(lie.validator, one, other)
    raise TypeError("a vote and a proposal do not contradict each other")
