"""What peers send the chain: checked as far as one message can be, then handed to the task that decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
import trio

from moed.consensus.blocks import MAX_BLOCK_RECORD_BYTES, Proposal, Vote
from moed.consensus.errors import InvalidTransaction
from moed.consensus.hindsight import Hindsight
from moed.consensus.mempool import Mempool
from moed.consensus.rounds import Rounds
from moed.consensus.summary import RoundsSummary, lacking, summarise
from moed.consensus.transactions import SignedTransaction, decode_transaction
from moed.consensus.transition import Head
from moed.consensus.turns import power_of
from moed.protocol.codec import convert_record, decode_record, encode_record
from moed.protocol.errors import Malformed, Unexpected
from moed.protocol.identity import NodeId

from .gossip import Gossip, Session
from .judging import SMALL_BYTES
from .network.calls import Call, Handler, Refused, Reply
from .sync import RunBlocking, Sync

logger = structlog.get_logger()

MAX_TRANSACTIONS_HEARD = 1_024
"""Transactions in one notice."""
ANSWER_PAUSE_S = 0.4
"""A peer that says what it holds more often than this is not answered each time."""
MAX_EARLY_MESSAGES = 512
MAX_EARLY_EACH = 8
"""Messages for the next height that are kept until we get there; all are of validators, and of none more than a few, or
one could keep all others from being heard."""
MAX_EARLY_BYTES = 2 * MAX_BLOCK_RECORD_BYTES
"""Of the proposals among them, one of each validator; a vote takes a few hundred."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A message as it came: the record, and the bytes that are passed on."""

    message: Proposal | Vote
    body: bytes


class Hearing:
    """The handlers of the chain's notices. ``deliver`` hands what is of this height to the deciding task."""

    def __init__(
        self,
        head: Head,
        mempool: Mempool,
        sync: Sync,
        *,
        rounds: Callable[[], Rounds],
        hindsight: Hindsight,
        gossip: Callable[[], Gossip],
        deliver: Callable[[Heard], Awaitable[None]],
        run_blocking: RunBlocking,
    ) -> None:
        self._head = head
        self._mempool = mempool
        self._sync = sync
        self._rounds = rounds
        self._hindsight = hindsight
        self._gossip = gossip
        self._deliver = deliver
        self._run_blocking = run_blocking
        self.early: list[Heard] = []
        self._answered: dict[NodeId, float] = {}
        self._early_bytes = 0

    def handlers(self) -> Mapping[str, Handler]:
        """Method names and what takes them."""
        return {
            "chain.proposal": self._take_proposal,
            "chain.vote": self._take_vote,
            "chain.have": self._take_summary,
            "chain.transactions": self._take_transactions,
        }

    def take_early(self) -> list[Heard]:
        """A new height has begun: what was kept for it."""
        early, self.early, self._early_bytes = self.early, [], 0
        return early

    def keep_transaction(self, transaction: SignedTransaction, body: bytes, origin: NodeId | None) -> None:
        """Keep a transaction for a block and pass it on. Raises `InvalidTransaction` or `BadSignature`."""
        transaction.check_signature(self._head.network_id)
        self._mempool.add(transaction, self._head.state, self._head.height)
        gossip = self._gossip()
        gossip.transactions.add(body, origin)
        gossip.pass_on_transaction(body)

    async def _take_proposal(self, call: Call) -> Reply:
        """Raises what makes a proposal its bearer's fault: an honest peer passes on none that it did not check."""
        body = _body(call)
        if self._gossip().messages.meet(body, call.peer.node_id):
            return Reply(None)
        is_small = len(body) <= SMALL_BYTES
        proposal = _parse_proposal(body) if is_small else await self._run_blocking(_parse_proposal, body)
        rounds = self._rounds()
        if proposal.height == rounds.height:
            if not rounds.is_in_reach(proposal.round):
                return Reply(None)  # of a peer that is far ahead, and no fault
            rounds.check_author(proposal)
        await self._queue(Heard(proposal, body), call.peer.node_id)
        return Reply(None)

    async def _take_vote(self, call: Call) -> Reply:
        body = _body(call)
        if self._gossip().messages.meet(body, call.peer.node_id):
            return Reply(None)
        vote = decode_record(body, Vote)
        rounds = self._rounds()
        if vote.height == rounds.height:
            if rounds.has_vote(vote):
                return Reply(None)
            # before it waits for the deciding task, so that a forged one is its sender's fault and costs no one else
            if power_of(self._head.validators, vote.validator) == 0:
                raise Unexpected("a vote by a key that is no validator of this height")
            vote.check_signature(self._head.network_id)
        await self._queue(Heard(vote, body), call.peer.node_id)
        return Reply(None)

    async def _take_summary(self, call: Call) -> Reply:
        """A peer whose height stands still says what it holds: it gets what it lacks, or hears that we are further."""
        summary = convert_record(call.body, RoundsSummary)
        peer: Session = call.peer
        self._sync.hear(peer.node_id, summary.height - 1)
        if summary.height < self._rounds().height:
            await self._gossip().tell([peer], "chain.status", status_of(self._head))
        elif summary.height == self._rounds().height and self._may_answer(peer.node_id):
            proposals, votes = lacking(self._rounds(), summary)
            for proposal in proposals:
                await self._gossip().tell([peer], "chain.proposal", encode_record(proposal))
            for vote in votes:
                await self._gossip().tell([peer], "chain.vote", encode_record(vote))
        return Reply(None)

    def _may_answer(self, node_id: NodeId) -> bool:
        """Whether a peer may be given what it lacks now: a short question makes a long answer, so not too often."""
        now_s = trio.current_time()
        self._answered = {peer: at for peer, at in self._answered.items() if at > now_s - ANSWER_PAUSE_S}
        if node_id in self._answered:
            return False
        self._answered[node_id] = now_s
        return True

    async def _take_transactions(self, call: Call) -> Reply:
        if not isinstance(call.body, list) or len(call.body) > MAX_TRANSACTIONS_HEARD:
            raise Refused("malformed", f"transactions travel as a list of at most {MAX_TRANSACTIONS_HEARD}")
        for body in call.body:
            if not isinstance(body, bytes):
                raise Refused("malformed", "a transaction travels as bytes")
            if self._gossip().transactions.meet(body, call.peer.node_id):
                continue
            transaction = decode_transaction(body)
            try:
                self.keep_transaction(transaction, body, call.peer.node_id)
            except InvalidTransaction as error:
                # no fault of the peer's: it may not have the block yet that we have, or the room that we lack
                logger.debug("chain.transaction_dropped", id=transaction.id.hex(), code=error.code)
            # however many come, a vote waits for no more than one of each peer's
            await trio.lowlevel.checkpoint()
        return Reply(None)

    async def _queue(self, heard: Heard, source: NodeId | None) -> None:
        """Hand a message to the deciding task if it is of this height or convicts somebody, keep it if of the next.

        Raises `BadSignature`.
        """
        ahead = heard.message.height - (self._head.height + 1)
        is_late = ahead < 0 and self._hindsight.wants(heard.message)
        if is_late:
            self._hindsight.check(heard.message)
        if ahead == 0 or is_late:
            self._gossip().messages.add(heard.body, source)
            await self._deliver(heard)
        elif ahead == 1 and self._keep_early(heard):
            self._gossip().messages.add(heard.body, source)
        if ahead > 0:
            self._sync.look()

    def _keep_early(self, heard: Heard) -> bool:
        """Keep a message for the next height if one of the present validators signed it, and if there is room.

        Raises `BadSignature`. Who becomes a validator only by the next block is heard when messages are told again.
        """
        message = heard.message
        if isinstance(message, Proposal) and message.valid_round != -1:
            return False  # a block proposed again is signed by somebody whom it does not name
        signer = _signer_of(message)
        if power_of(self._head.validators, signer) == 0 or not self._has_early_room(message, len(heard.body)):
            return False
        if isinstance(message, Vote):
            message.check_signature(self._head.network_id)
        else:
            message.check_signature(self._head.network_id, signer)
        self.early.append(heard)
        if isinstance(message, Proposal):
            self._early_bytes += len(heard.body)
        return True

    def _has_early_room(self, message: Proposal | Vote, size_bytes: int) -> bool:
        signer = _signer_of(message)
        of_signer = [one.message for one in self.early if _signer_of(one.message) == signer]
        if len(self.early) >= MAX_EARLY_MESSAGES or len(of_signer) >= MAX_EARLY_EACH:
            return False
        if isinstance(message, Vote):
            return True
        has_proposed = any(isinstance(one, Proposal) for one in of_signer)
        return not has_proposed and self._early_bytes + size_bytes <= MAX_EARLY_BYTES


def status_of(head: Head) -> dict[str, int]:
    """How far a chain reaches, as it is told."""
    return {"height": head.height}


def summary_of(rounds: Rounds) -> dict[str, Any]:
    """What is held of the height under way, as it is told."""
    summary: dict[str, Any] = msgspec.to_builtins(summarise(rounds), builtin_types=(bytes,))
    return summary


def method_of(message: Proposal | Vote) -> str:
    """The notice in which a message travels."""
    return "chain.vote" if isinstance(message, Vote) else "chain.proposal"


def _signer_of(message: Proposal | Vote) -> bytes:
    """Whose word a message is, if its signature holds: of a proposal its block's proposer, where it is fresh."""
    return message.validator if isinstance(message, Vote) else message.block.header.proposer


def _body(call: Call) -> bytes:
    if not isinstance(call.body, bytes):
        raise Refused("malformed", "proposals and votes travel as bytes")
    return call.body


def _parse_proposal(body: bytes) -> Proposal:
    proposal = decode_record(body, Proposal, max_bytes=MAX_BLOCK_RECORD_BYTES)
    if not proposal.block.is_whole:
        raise Malformed("the proposed block does not hold what its header names")
    return proposal
