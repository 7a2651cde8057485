"""Drives the agreement: takes what peers send, lets the rounds decide, persists, then sends.

One task changes the chain; everything else hands it messages through a small channel. A vote is on disk before it
is on the wire, a block before anybody is told of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import structlog
import trio

from moed.consensus.blocks import Block, Commit, Vote
from moed.consensus.effects import CastVote, Decide, Effect, Equivocation, Propose, ScheduleTimeout, Step, Timeout
from moed.consensus.errors import RuleBroken, TooManyRegistrations
from moed.consensus.hindsight import Hindsight
from moed.consensus.light import Checkpoint
from moed.consensus.mempool import Mempool
from moed.consensus.rounds import Rounds
from moed.consensus.state import read_account
from moed.consensus.transactions import Body, SignedTransaction, sign_transaction
from moed.consensus.transition import Executed, Head
from moed.consensus.turns import power_of
from moed.protocol.codec import encode_record
from moed.protocol.errors import RemoteProtocolError
from moed.protocol.identity import Identity, NodeId

from .accuser import Accuser
from .gossip import Gossip, Session, Sessions
from .hearing import Heard, Hearing, method_of, status_of, summary_of
from .judging import FEW_TRANSACTIONS, Judge
from .network.calls import Handler
from .signer import Signer
from .snapshot_shelf import Shelf
from .snapshot_sync import SnapshotSync
from .store import Store
from .sync import Batch, RunBlocking, Sync

logger = structlog.get_logger()

T = TypeVar("T")
REGOSSIP_S = 1.0
"""How long a height may stand still before we ask a few peers what we lack."""
ASKED_AT_ONCE = 3
"""Peers that are told what we hold when a height stands still; others each time."""
LATENESS_SHARE = 4
"""A height begins this part of an interval sooner than one interval after the one before, if its block says so."""
MAX_TRANSACTIONS_TOLD = 100
"""Waiting transactions that a new peer is told of; the rest reach it in blocks."""


@dataclass(frozen=True, slots=True)
class _Start:
    """The block interval has passed: begin this height."""

    height: int


@dataclass(frozen=True, slots=True)
class _Fetched:
    """A batch to take; ``done`` is set when it was taken or refused."""

    batch: Batch
    done: trio.Event


@dataclass(frozen=True, slots=True)
class _Begun:
    """A head that others have reached, where an empty chain may begin; ``done`` is set when it did, or did not."""

    head: Head
    done: trio.Event


_Input = Heard | Timeout | _Start | _Fetched | _Begun


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the agreement on the next block stands. ``missing`` are validators not heard of in the round under way."""

    height: int
    round: int
    step: str
    since_s: float
    missing: tuple[bytes, ...]


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
        shelf: Shelf | None = None,
        snapshots: SnapshotSync | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Stand on ``head``, which ``store`` ends with.

        ``shelf`` keeps snapshots for others; with ``snapshots`` an empty chain begins at one of theirs; no chain is
        followed that has another block at the ``checkpoint``.
        """
        self.head = head
        self.mempool = Mempool(head.params)
        self._store = store
        self._identity = identity
        self._signer = signer
        self._now_ms = now_ms
        self._run_blocking = run_blocking
        self._shelf = shelf
        self._checkpoint = checkpoint
        self._gossip = Gossip(self.forget, head.validators)
        self._judge = Judge(head, run_blocking)
        self._hindsight = Hindsight(head.network_id)
        # written by the handlers and timers, read by `_decide`; full means wait, so a flood slows its sender
        self._send, self._receive = trio.open_memory_channel[_Input](256)
        self._rounds = self._new_rounds()
        self._rounds_since_ms = now_ms()
        self._began_ms = 0
        self._accuser = Accuser(head, self.mempool, self.submit)
        self._sync = Sync(
            store,
            height=lambda: self.head.height,
            take=self._take_fetched,
            run_blocking=run_blocking,
            snapshots=snapshots,
            begin=self._begin_late,
        )
        self._hearing = Hearing(
            head,
            self.mempool,
            self._sync,
            rounds=lambda: self._rounds,
            hindsight=self._hindsight,
            gossip=lambda: self._gossip,
            deliver=self._send.send,
            run_blocking=run_blocking,
        )
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
    def standing(self) -> Standing:
        """Where the agreement on the next block stands, and who is missing when it does not move."""
        rounds = self._rounds
        since_s = max(0, self._now_ms() - self._rounds_since_ms) / 1000
        missing = tuple(rounds.missing()) if rounds.step != Step.WAITING else ()
        return Standing(rounds.height, rounds.round, rounds.step.name.lower(), since_s, missing)

    @property
    def best_known_height(self) -> int:
        """The greatest height that we have or have reason to believe in."""
        return self._sync.best_known_height

    @property
    def heights_heard(self) -> int:
        """How many peers in session have told us their height."""
        return self._sync.heights_heard

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
        self._hearing.keep_transaction(transaction, encode_record(transaction), origin)

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
        given = self._shelf.handlers() if self._shelf is not None else {}
        return {**self._hearing.handlers(), **self._sync.handlers(), **given}

    async def run(self, peers: Sessions, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Decide and follow until cancelled. Raises `StoreFailed` when a block cannot be kept: then the node stops."""
        if self._shelf is not None:
            await self._shelf.after_block(self.head, is_latest=False)  # a crash may have come between
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._gossip.run, peers)
            nursery.start_soon(self._decide)
            nursery.start_soon(self._ask_again)
            nursery.start_soon(self._sync.run, peers)
            if self._shelf is not None:
                nursery.start_soon(self._shelf.run)
            self._schedule_start()
            task_status.started()

    async def greet(self, peer: Session) -> None:
        """Tell a new peer how far we are, what we hold of the height under way, and of waiting transactions."""
        await self._gossip.tell([peer], "chain.status", status_of(self.head))
        await self._gossip.tell([peer], "chain.have", summary_of(self._rounds))
        waiting = list(islice(self.mempool.candidates(self.head.state), MAX_TRANSACTIONS_TOLD))
        if waiting:
            await self._gossip.tell([peer], "chain.transactions", [encode_record(one) for one in waiting])

    def forget(self, node_id: NodeId) -> None:
        """A peer is gone; its claims go with it."""
        self._sync.forget(node_id)

    # the one task that changes the chain

    async def _decide(self) -> None:
        async for message in self._receive:
            if isinstance(message, _Fetched):
                await self._take_batch(message)
                continue
            if isinstance(message, _Begun):
                await self._begin_at(message)
                continue
            try:
                effects = await self._handle(message)
            except RemoteProtocolError as error:
                if isinstance(message, Heard):
                    self._gossip.messages.forget(message.body)  # it may be right in another round
                logger.warning("chain.message_refused", code=error.code, reason=str(error))
                continue
            if effects and isinstance(message, Heard):
                self._progress += 1
            await self._carry_out(effects)
            await self._judge.prepare(self._rounds)

    async def _handle(self, message: Heard | Timeout | _Start) -> list[Effect]:
        if isinstance(message, _Start):
            if message.height != self._rounds.height:
                return []
            self._began_ms = self._now_ms()
            return self._rounds.start()
        if isinstance(message, Timeout):
            return self._rounds.on_timeout(message)
        heard, body = message.message, message.body
        if heard.height != self._rounds.height:
            found = self._hindsight.take(heard)
            if found:
                await self._gossip.pass_on(method_of(heard), body)
            return list(found)
        if isinstance(heard, Vote):
            if self._rounds.has_vote(heard):
                return []
            effects = self._rounds.on_vote(heard)
            if self._rounds.counts(heard):  # of what does not count a liar can sign more than anybody could pass on
                await self._gossip.pass_on("chain.vote", body)
            else:  # it may once others have voted for the same, and is told again then
                self._gossip.messages.forget(body)
            return effects
        if self._rounds.has_proposal(heard):
            return []
        if heard.round in self._rounds.proposals:  # a second one: never voted on, but evidence if it is genuine
            self._rounds.check_proposal(heard)
        else:
            await self._judge.examine(self._rounds, heard)
        await self._gossip.pass_on("chain.proposal", body)
        return self._rounds.on_proposal(heard)

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
                    is_other = lie.validator != self._identity.public_key
                    await self._accuser.accuse(lie, reports=self.is_validator and is_other)
                case Decide() as decision:
                    await self._commit(self._judge.executed(decision.block), decision.commit)
                    return

    async def _cast(self, vote: CastVote) -> list[Effect]:
        if self._signer is None:
            return []
        height = self._rounds.height
        signed = await self._run_blocking(self._signer.vote, vote.kind, height, vote.round, vote.block_hash, vote.lock)
        if signed is None:
            logger.warning("chain.vote_withheld", height=height, round=vote.round, kind=vote.kind.name.lower())
            return []
        await self._gossip.tell_all("chain.vote", encode_record(signed))
        return self._rounds.on_vote(signed)

    async def _propose(self, turn: Propose) -> list[Effect]:
        if self._signer is None:
            return []
        block = turn.block or await self._build()
        signed = await self._run_blocking(self._signer.proposal, turn.round, turn.valid_round, block)
        if signed is None:
            logger.warning("chain.proposal_withheld", height=block.height, round=turn.round)
            return []
        await self._gossip.tell_all("chain.proposal", encode_record(signed))
        await self._judge.examine(self._rounds, signed)
        return self._rounds.on_proposal(signed)

    async def _build(self) -> Block:
        waiting = list(islice(self.mempool.candidates(self.head.state), 2 * self.head.params.max_block_transactions))
        build = partial(self.head.build, waiting, proposer=self._identity.public_key, now_ms=self._now_ms())
        block, refused = build() if len(waiting) <= FEW_TRANSACTIONS else await self._run_blocking(build)
        for transaction, error in refused:
            logger.info("chain.transaction_refused", id=transaction.id.hex(), code=error.code, reason=str(error))
            if not isinstance(error, TooManyRegistrations):  # the next block has room for those
                self.mempool.discard(transaction)
        return block

    async def _commit(self, executed: Executed, commit: Commit) -> None:
        """Make a block final here: on disk, then in memory, then known to others."""
        await self._run_blocking(self._store.append, executed, commit)
        self.head.advance(executed, commit)
        self._hindsight.close(self._rounds, commit)
        block = executed.block
        logger.debug(
            "chain.block_final",
            height=self.height,
            transactions=len(block.transactions),
            round=commit.round,
            after_ms=self._now_ms() - block.header.time_ms,
        )
        await self._go_on()

    async def _begin_at(self, begun: _Begun) -> None:
        """Begin at a state that others have reached, if nothing has been decided here meanwhile."""
        if self.height == 0:
            await self._run_blocking(partial(self._store.rebase, begun.head, keeps_blocks=False))
            self.head.become(begun.head)
            logger.info("chain.begun_late", height=self.height)
            await self._go_on()
        begun.done.set()

    async def _go_on(self) -> None:
        """The head has moved: begin the next height."""
        self.mempool.prune(self.head.state, self.height)
        self._judge.clear()
        self._rounds = self._new_rounds()
        self._rounds_since_ms = self._now_ms()
        self._gossip.begin_height(self.head.validators)
        await self._accuser.after_block()
        if self._shelf is not None:
            is_latest = self.height + self.head.params.tempo > self.best_known_height
            await self._shelf.after_block(self.head, is_latest=is_latest)
        self._progress += 1
        reached, self._new_block = self._new_block, trio.Event()
        reached.set()
        self._schedule_start()
        if self.height >= self.best_known_height:  # while catching up nobody waits for word of us
            await self._gossip.tell_all("chain.status", status_of(self.head))
        for message in self._hearing.take_early():
            self._nursery.start_soon(self._send.send, message)

    async def _take_fetched(self, batch: Batch) -> None:
        """Hand fetched blocks to the deciding task, and wait until it took or refused them."""
        fetched = _Fetched(batch, trio.Event())
        await self._send.send(fetched)
        await fetched.done.wait()

    async def _begin_late(self, head: Head) -> None:
        """Hand a checked head to the deciding task, and wait until it stands on it or on one of its own."""
        begun = _Begun(head, trio.Event())
        await self._send.send(begun)
        await begun.done.wait()

    async def _take_batch(self, fetched: _Fetched) -> None:
        """Follow final blocks from a peer, one at a time; with the first that does not hold the peer is cut off."""
        batch = fetched.batch
        for height, (block, commit) in enumerate(batch.rows, start=batch.start):
            if height != self.height + 1:
                continue
            try:
                executed, checked = await self._judge.read_final(block, commit)
                if self._checkpoint is not None:
                    self._checkpoint.check(executed.block.header)
            except (RuleBroken, RemoteProtocolError) as error:
                logger.warning("chain.sync_refused", peer=batch.peer.node_id.hex(), reason=str(error))
                batch.peer.drop()
                break
            await self._commit(executed, checked)
        fetched.done.set()

    def _new_rounds(self) -> Rounds:
        rounds = Rounds(
            self.head.height + 1,
            self.head.validators,
            self._identity.public_key if self._signer is not None else None,
            params=self.head.params,
            network_id=self.head.network_id,
            is_valid=self._judge.holds,
            is_timely=lambda block: self.head.is_timely(block, self._now_ms()),
        )
        if self._signer is not None:
            before = self._signer.signed_at(rounds.height)
            rounds.resume(before.proposals, before.votes, before.prevotes)
        return rounds

    def _schedule_start(self) -> None:
        interval_ms = self.head.params.block_interval_ms
        # A proposer may date its block right after the one before and would so take the pauses away. So they count from
        # when we began the height too, if we took part in it; less a share, or who began late once would stay late.
        due_ms = max(self.head.time_ms, self._began_ms - interval_ms // LATENESS_SHARE) + interval_ms
        self._began_ms = 0
        if self.head.height == 0:
            due_ms = 0
        wait_s = max(0, due_ms - self._now_ms()) / 1000
        # a clock that was set back must not stop the chain for longer than one interval
        wait_s = min(wait_s, interval_ms / 1000)
        self._nursery.start_soon(self._send_later, wait_s, _Start(self._rounds.height))

    async def _send_later(self, after_s: float, message: _Input) -> None:
        await trio.sleep(after_s)
        await self._send.send(message)

    # telling others

    async def _ask_again(self) -> None:
        """Say what we hold while a height stands still: a message may have been lost with a session."""
        seen = -1
        while True:
            await trio.sleep(REGOSSIP_S)
            stands = seen == self._progress or self._rounds.round > 0  # rounds that go by decide nothing
            if stands and self._rounds.step != Step.WAITING:
                await self._gossip.tell(self._gossip.some(ASKED_AT_ONCE), "chain.have", summary_of(self._rounds))
            seen = self._progress
