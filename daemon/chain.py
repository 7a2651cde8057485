"""Drives the agreement: takes what peers send, lets the rounds decide, persists, then sends.

One task changes the chain; everything else hands it messages through a small channel. A vote is on disk before it
is on the wire, a block before anybody is told of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import structlog
import trio

from moed.consensus.blocks import (
    MAX_BLOCK_RECORD_BYTES,
    Block,
    Commit,
    Proposal,
    Vote,
)
from moed.consensus.errors import InvalidTransaction, RuleBroken, TooManyRegistrations
from moed.consensus.mempool import Mempool
from moed.consensus.rounds import (
    CastVote,
    Decide,
    Effect,
    Equivocation,
    Propose,
    Rounds,
    ScheduleTimeout,
    Step,
    Timeout,
)
from moed.consensus.state import read_account
from moed.consensus.transactions import Body, SignedTransaction, decode_transaction, sign_transaction
from moed.consensus.transition import Executed, Head
from moed.consensus.turns import power_of
from moed.protocol.codec import Record, decode_record, encode_record
from moed.protocol.errors import RemoteProtocolError
from moed.protocol.identity import Identity, NodeId

from .network.calls import Call, Handler, Refused, Reply
from .network.errors import CallError
from .network.peers import Priority
from .signer import Signer
from .store import Store
from .sync import RunBlocking, Session, Sessions, Sync

logger = structlog.get_logger()

T = TypeVar("T")
REGOSSIP_S = 1.0
"""How long a height may stand still before we say again what we know of it."""
MAX_TRANSACTIONS_TOLD = 100
"""Waiting transactions that a new peer is told of; the rest reach it in blocks."""
MAX_EARLY_MESSAGES = 256
MAX_EARLY_BYTES = 2 * MAX_BLOCK_RECORD_BYTES
"""Messages for the next height that are kept until we get there; all are of validators."""


@dataclass(frozen=True, slots=True)
class _Start:
    """The block interval has passed: begin this height."""

    height: int


@dataclass(frozen=True, slots=True)
class _Batch:
    """Final blocks that a peer gave us, lowest first; ``done`` is set when they were taken or refused."""

    peer: Session
    blocks: list[tuple[Block, Commit]]
    done: trio.Event


_Input = Proposal | Vote | Timeout | _Start | _Batch


class Chain:
    """This node's copy of the chain, and its part in deciding the next block.

    ``signer`` is None for a node that only follows. Give `handlers` to the peers, then `run`.
    """

    def __init__(
        self,
        head: Head,
        store: Store,
        identity: Identity,
        signer: Signer | None,
        *,
        now_ms: Callable[[], int],
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self.head = head
        self.mempool = Mempool(head.params)
        self._store = store
        self._identity = identity
        self._signer = signer
        self._now_ms = now_ms
        self._run_blocking = run_blocking
        self._peers: Sessions | None = None
        # written by the handlers and timers, read by `_decide`; full means wait, so a flood slows its sender
        self._send, self._receive = trio.open_memory_channel[_Input](256)
        self._rounds = self._new_rounds()
        self._executed: dict[bytes, Executed] = {}
        self._early: list[Proposal | Vote] = []
        self._early_bytes = 0
        self._sync = Sync(store, height=lambda: self.head.height, take=self._take_fetched, run_blocking=run_blocking)
        self._new_block = trio.Event()
        self._progress = 0

    # what others ask of it

    @property
    def height(self) -> int:
        return self.head.height

    @property
    def is_validator(self) -> bool:
        """Whether our key signs blocks now."""
        return self._signer is not None and power_of(self.head.validators, self._identity.public_key) > 0

    async def wait_block(self) -> int:
        """Wait for the next final block; returns its height."""
        await self._new_block.wait()
        return self.head.height

    async def wait_height(self, height: int) -> None:
        """Wait until the block at ``height`` is final."""
        while self.head.height < height:
            await self._new_block.wait()

    @property
    def best_known_height(self) -> int:
        """The greatest height that we have or have reason to believe in."""
        return self._sync.best_known_height

    async def submit(self, body: Body) -> SignedTransaction:
        """Sign ``body`` as this node's next transaction and send it to the network; returns it.

        Raises `InvalidTransaction` if it cannot wait for a block. Being taken here is not yet being final.
        """
        nonce = self.mempool.next_nonce(self._identity.public_key, self.head.state)
        transaction = sign_transaction(self._identity, self.head.network_id, nonce, body)
        await self.add_transaction(transaction, origin=None)
        return transaction

    async def add_transaction(self, transaction: SignedTransaction, origin: NodeId | None) -> None:
        """Keep a transaction for a block and pass it on. Raises `InvalidTransaction` or `BadSignature`."""
        transaction.check_signature(self.head.network_id)
        self.mempool.add(transaction, self.head.state, self.height)
        await self._broadcast("chain.transaction", encode_record(transaction), origin)

    async def remember(self, name: str, value: bytes) -> None:
        """Put a small note of this node's own on disk; it replaces the one of that name."""
        await self._run_blocking(self._store.remember, name, value)

    async def recall(self, name: str) -> bytes | None:
        """The note of that name, if there is one."""
        note: bytes | None = await self._run_blocking(self._store.recall, name)
        return note

    async def read(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a blocking read of the store where it does not hold anybody up."""
        result: T = await self._run_blocking(function, *arguments)
        return result

    @property
    def has_waiting(self) -> bool:
        """Whether a transaction of ours waits for a block."""
        mine = self._identity.public_key
        return self.mempool.next_nonce(mine, self.head.state) > read_account(self.head.state, mine).nonce

    def handlers(self) -> Mapping[str, Handler]:
        """What peers may send: method names and what takes them."""
        return {
            "chain.proposal": self._take_proposal,
            "chain.vote": self._take_vote,
            "chain.transaction": self._take_transaction,
            **self._sync.handlers(),
        }

    async def run(self, peers: Sessions, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Decide and follow until cancelled. Raises `StoreFailed` when a block cannot be kept: then the node stops."""
        self._peers = peers
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._decide)
            nursery.start_soon(self._regossip)
            nursery.start_soon(self._sync.run, peers)
            self._schedule_start()
            task_status.started()

    async def greet(self, peer: Session) -> None:
        """Tell a new peer how far we are, and what we know of the height under way."""
        await self._tell(peer, "chain.status", self._status())
        await self._tell_round(peer)
        # taken at once: while we send, blocks change the pool
        for transaction in list(islice(self.mempool.candidates(self.head.state), MAX_TRANSACTIONS_TOLD)):
            await self._tell(peer, "chain.transaction", encode_record(transaction))

    def forget(self, node_id: NodeId) -> None:
        """A peer is gone; its claims go with it."""
        self._sync.forget(node_id)

    # what peers send

    async def _take_proposal(self, call: Call) -> Reply:
        await self._queue(_parse(call, Proposal), len(call.body))
        return Reply(None)

    async def _take_vote(self, call: Call) -> Reply:
        vote = _parse(call, Vote)
        if vote.height == self._rounds.height and not self._rounds.has_vote(vote):
            # before it waits for the deciding task, so that a forged one is its sender's fault and costs no one else
            vote.check_signature(self.head.network_id)
            await self._queue(vote, len(call.body))
        elif vote.height > self._rounds.height:
            await self._queue(vote, len(call.body))
        return Reply(None)

    async def _take_transaction(self, call: Call) -> Reply:
        if not isinstance(call.body, bytes):
            raise Refused("malformed", "a transaction travels as bytes")
        transaction = decode_transaction(call.body)
        if transaction not in self.mempool:
            try:
                await self.add_transaction(transaction, origin=call.peer.node_id)
            except InvalidTransaction as error:
                # no fault of the peer's: it may not have the block yet that we have, or the room that we lack
                logger.debug("chain.transaction_dropped", id=transaction.id.hex(), code=error.code)
        return Reply(None)

    async def _queue(self, message: Proposal | Vote, size_bytes: int) -> None:
        """Hand a message to the deciding task if it is of this height, keep it if of the next, else drop it."""
        ahead = message.height - (self.height + 1)
        if ahead == 0:
            await self._send.send(message)
        elif ahead == 1:
            self._keep_early(message, size_bytes)
        if ahead > 0:
            self._sync.look()

    def _keep_early(self, message: Proposal | Vote, size_bytes: int) -> None:
        """Keep a message for the next height if one of the present validators signed it, and if there is room.

        Raises `BadSignature`. Who becomes a validator only by the next block is heard when messages are told again.
        """
        if isinstance(message, Proposal) and message.valid_round != -1:
            return  # a block proposed again is signed by somebody whom it does not name
        signer = message.validator if isinstance(message, Vote) else message.block.header.proposer
        if power_of(self.head.validators, signer) == 0:
            return
        if len(self._early) == MAX_EARLY_MESSAGES or self._early_bytes + size_bytes > MAX_EARLY_BYTES:
            return
        if isinstance(message, Vote):
            message.check_signature(self.head.network_id)
        else:
            message.check_signature(self.head.network_id, signer)
        self._early.append(message)
        self._early_bytes += size_bytes

    # the one task that changes the chain

    async def _decide(self) -> None:
        async for message in self._receive:
            try:
                effects = self._handle(message)
            except RemoteProtocolError as error:
                logger.warning("chain.message_refused", code=error.code, reason=str(error))
                continue
            if isinstance(message, _Batch):
                await self._take_batch(message)
            elif effects and isinstance(message, Proposal | Vote):
                self._progress += 1
            await self._carry_out(effects)

    def _handle(self, message: _Input) -> list[Effect]:
        if isinstance(message, _Start):
            return self._rounds.start() if message.height == self._rounds.height else []
        if isinstance(message, Timeout):
            return self._rounds.on_timeout(message)
        if isinstance(message, _Batch) or message.height != self._rounds.height:
            return []
        if isinstance(message, Proposal):
            if message.round in self._rounds.proposals:
                return []
            effects = self._rounds.on_proposal(message)
            self._nursery.start_soon(self._broadcast, "chain.proposal", encode_record(message), None)
            return effects
        if self._rounds.has_vote(message):
            return self._rounds.on_vote(message)
        effects = self._rounds.on_vote(message)
        self._nursery.start_soon(self._broadcast, "chain.vote", encode_record(message), None)
        return effects

    async def _carry_out(self, effects: Iterable[Effect]) -> None:
        waiting = list(effects)
        while waiting:
            match waiting.pop(0):
                case CastVote() as vote:
                    waiting += await self._cast(vote)
                case Propose() as turn:
                    waiting += await self._propose(turn)
                case ScheduleTimeout() as effect:
                    self._nursery.start_soon(self._send_later, effect.after_ms / 1000, effect.timeout)
                case Equivocation() as lie:
                    logger.error("chain.equivocation", validator=lie.first.validator.hex(), height=lie.first.height)
                case Decide() as decision:
                    await self._commit(self._executed[decision.block.hash], decision.commit)
                    return

    async def _cast(self, vote: CastVote) -> list[Effect]:
        if self._signer is None:
            return []
        height = self._rounds.height
        signed = await self._run_blocking(
            self._signer.vote, vote.kind, height, vote.round, vote.block_hash, vote.locks_on
        )
        if signed is None:
            logger.warning("chain.vote_withheld", height=height, round=vote.round, kind=vote.kind.name.lower())
            return []
        self._nursery.start_soon(self._broadcast, "chain.vote", encode_record(signed), None)
        return self._rounds.on_vote(signed)

    async def _propose(self, turn: Propose) -> list[Effect]:
        if self._signer is None:
            return []
        block = turn.block or self._build()
        signed = await self._run_blocking(self._signer.proposal, turn.round, turn.valid_round, block)
        if signed is None:
            logger.warning("chain.proposal_withheld", height=block.height, round=turn.round)
            return []
        self._nursery.start_soon(self._broadcast, "chain.proposal", encode_record(signed), None)
        return self._rounds.on_proposal(signed)

    def _build(self) -> Block:
        block, refused = self.head.build(
            self.mempool.candidates(self.head.state), proposer=self._identity.public_key, now_ms=self._now_ms()
        )
        for transaction, error in refused:
            logger.info("chain.transaction_refused", id=transaction.id.hex(), code=error.code, reason=str(error))
            if not isinstance(error, TooManyRegistrations):  # the next block has room for those
                self.mempool.discard(transaction)
        return block

    def _judge(self, block: Block) -> bool:
        """Whether a block under vote holds; what it changes is kept for when it is decided."""
        try:
            self._executed[block.hash] = self.head.execute(block)
        except RuleBroken as error:
            logger.warning("chain.block_refused", height=block.height, reason=str(error))
            return False
        return True

    async def _commit(self, executed: Executed, commit: Commit) -> None:
        """Make a block final here: on disk, then in memory, then known to others."""
        await self._run_blocking(self._store.append, executed, commit)
        self.head.advance(executed, commit)
        self.mempool.prune(self.head.state, self.height)
        self._executed.clear()
        self._rounds = self._new_rounds()
        self._progress += 1
        logger.debug("chain.block_final", height=self.height, transactions=len(executed.block.transactions))
        reached, self._new_block = self._new_block, trio.Event()
        reached.set()
        self._schedule_start()
        if self.height >= self.best_known_height:  # while catching up nobody waits for word of us
            self._nursery.start_soon(self._broadcast, "chain.status", self._status(), None)
        early, self._early, self._early_bytes = self._early, [], 0
        for message in early:
            self._nursery.start_soon(self._queue, message, 0)

    async def _take_fetched(self, peer: Session, blocks: list[tuple[Block, Commit]]) -> None:
        """Hand fetched blocks to the deciding task, and wait until it took or refused them."""
        batch = _Batch(peer, blocks, trio.Event())
        await self._send.send(batch)
        await batch.done.wait()

    async def _take_batch(self, batch: _Batch) -> None:
        """Follow final blocks from a peer; one that lies is cut off."""
        for block, commit in batch.blocks:
            if block.height != self.height + 1:
                continue
            try:
                self.head.check_final(block, commit)
                executed = self.head.execute(block)
            except RuleBroken as error:
                logger.warning("chain.sync_refused", peer=batch.peer.node_id.hex(), reason=str(error))
                batch.peer.drop()
                break
            await self._commit(executed, commit)
        batch.done.set()

    def _new_rounds(self) -> Rounds:
        rounds = Rounds(
            self.head.height + 1,
            self.head.validators,
            self._identity.public_key if self._signer is not None else None,
            params=self.head.params,
            network_id=self.head.network_id,
            is_valid=self._judge,
            is_timely=lambda block: self.head.is_timely(block, self._now_ms()),
        )
        if self._signer is not None:
            before = self._signer.signed_at(rounds.height)
            rounds.resume(before.proposals, before.votes)
        return rounds

    def _schedule_start(self) -> None:
        due_ms = self.head.time_ms + self.head.params.block_interval_ms
        if self.head.height == 0:
            due_ms = 0
        wait_s = max(0, due_ms - self._now_ms()) / 1000
        # a clock that was set back must not stop the chain for longer than one interval
        wait_s = min(wait_s, self.head.params.block_interval_ms / 1000)
        self._nursery.start_soon(self._send_later, wait_s, _Start(self._rounds.height))

    async def _send_later(self, after_s: float, message: _Input) -> None:
        await trio.sleep(after_s)
        await self._send.send(message)

    # telling others

    def _status(self) -> dict[str, int]:
        return {"height": self.height}

    async def _broadcast(self, method: str, body: Any, origin: NodeId | None) -> None:
        if self._peers is None:
            return
        for peer in self._peers.connected():
            if peer.node_id != origin:
                await self._tell(peer, method, body)

    async def _tell(self, peer: Session, method: str, body: Any) -> None:
        try:
            await peer.notify(method, body, priority=Priority.HIGH)
        except CallError:
            # the session's own task closes it and says so
            self.forget(peer.node_id)

    async def _tell_round(self, peer: Session) -> None:
        """Send all that we know of the height under way."""
        proposals, votes = self._rounds.news()
        for proposal in proposals:
            await self._tell(peer, "chain.proposal", encode_record(proposal))
        for vote in votes:
            await self._tell(peer, "chain.vote", encode_record(vote))

    async def _regossip(self) -> None:
        """Say again what we know while a height stands still: a message may have been lost with a session."""
        seen = -1
        while True:
            await trio.sleep(REGOSSIP_S)
            if seen == self._progress and self._rounds.step != Step.WAITING and self._peers is not None:
                for peer in self._peers.connected():
                    # one that asked us in vain has forgotten how far we are
                    await self._tell(peer, "chain.status", self._status())
                    await self._tell_round(peer)
            seen = self._progress


RecordT = TypeVar("RecordT", bound=Record)


def _parse(call: Call, kind: type[RecordT]) -> RecordT:
    if not isinstance(call.body, bytes):
        raise Refused("malformed", f"a {kind.__name__.lower()} travels as bytes")
    return decode_record(call.body, kind, max_bytes=MAX_BLOCK_RECORD_BYTES)
