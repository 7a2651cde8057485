"""Catching up: who claims to be ahead, whom to ask for final blocks, and blocks for those who ask us."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
import trio

from moed.consensus.blocks import MAX_BLOCK_RECORD_BYTES
from moed.consensus.transition import Head
from moed.protocol.codec import Record, convert_record
from moed.protocol.errors import Malformed, RemoteProtocolError, TooLarge
from moed.protocol.identity import NodeId

from .gossip import Session, Sessions
from .network.calls import SMALL_ANSWER_BYTES, Call, Handler, Reply
from .network.errors import AnswerTooLarge, CallError
from .snapshot_sync import SnapshotSync
from .store import Store

logger = structlog.get_logger()

RunBlocking = Callable[..., Awaitable[Any]]
"""Runs a blocking function elsewhere: ``trio.to_thread.run_sync`` in a daemon, inline on virtual time."""

SYNC_BATCH = 64
SYNC_PEERS = 3
"""Peers that are asked at the same time, each for the batch after the one before."""
SYNC_DEADLINE_S = 10.0
SYNC_PAUSE_S = 0.1
"""Pause after a fetch that brought nothing: who claims a height again and again does not keep us busy."""
LOOK_S = 5.0
MAX_ANSWER_BYTES = 2 * MAX_BLOCK_RECORD_BYTES
"""Blocks and commits in one answer: a peer gives one row whatever its size, and more only up to half of this."""
MAX_READERS = 2
"""Requests for blocks that read the store at one time; it is shared with the one who writes blocks."""
MAX_FAILURES_KEPT = 1_024
GATHER_S = 1.0
"""After the first word of a far height: several peers should be there before one of their snapshots is chosen."""
MAX_SNAPSHOT_TRIES = 5
"""Rounds of questions that bring no snapshot before the blocks are followed after all."""


class StatusNotice(Record, frozen=True, kw_only=True):
    """How far a node's chain reaches."""

    height: int


class BlocksRequest(Record, frozen=True, kw_only=True):
    """Asks for final blocks from a height on."""

    start: int
    limit: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Final blocks that a peer gave us, lowest first, with their commits: bytes, not even parsed yet.

    A block is worth reading only when the stake of its height stands behind its commit.
    """

    peer: Session
    start: int
    rows: list[tuple[bytes, bytes]]


class Sync:
    """Follows the peers that are ahead of us.

    ``height`` says how far we are; ``take`` hands a batch to whoever changes the chain, and returns when it was taken
    or refused; ``begin`` hands over a head at which an empty chain may begin.
    """

    def __init__(
        self,
        store: Store,
        *,
        height: Callable[[], int],
        take: Callable[[Batch], Awaitable[None]],
        run_blocking: RunBlocking,
        begin: Callable[[Head], Awaitable[None]],
        snapshots: SnapshotSync | None = None,
    ) -> None:
        self._snapshots = snapshots
        self._begin = begin
        self._store = store
        self._height = height
        self._take = take
        self._run_blocking = run_blocking
        self._claims: dict[NodeId, int] = {}
        self._failures: dict[NodeId, int] = {}
        self._readers = trio.CapacityLimiter(MAX_READERS)
        self._is_behind = trio.Event()

    @property
    def best_known_height(self) -> int:
        """The greatest height that we have or that a peer claims who has not failed to prove a claim."""
        claims = [height for node_id, height in self._claims.items() if node_id not in self._failures]
        return max(self._height(), *claims, 0)

    @property
    def heights_heard(self) -> int:
        """How many peers in session have told us their height."""
        return len(self._claims)

    def handlers(self) -> Mapping[str, Handler]:
        """What peers may send."""
        return {"chain.status": self._take_status, "chain.blocks": self._give_blocks}

    def forget(self, node_id: NodeId) -> None:
        """A peer is gone; its claim goes with it."""
        self._claims.pop(node_id, None)

    def look(self) -> None:
        """Something showed that others are ahead: do not wait to look."""
        self._is_behind.set()

    def hear(self, node_id: NodeId, height: int) -> None:
        """A peer claims to have the final block of that height."""
        self._claims[node_id] = height
        if height > self._height():
            self.look()

    async def run(self, peers: Sessions) -> None:
        """Fetch final blocks from whoever is ahead, until cancelled; with ``snapshots`` first a state to begin at."""
        if self._snapshots is not None:
            await self._begin_late(self._snapshots, peers)
        while True:
            with trio.move_on_after(LOOK_S):
                await self._is_behind.wait()
            self._is_behind = trio.Event()
            while ahead := self._peers_ahead(peers):
                if not await self._fetch_some(ahead[:SYNC_PEERS]):
                    await trio.sleep(SYNC_PAUSE_S)

    async def _begin_late(self, snapshots: SnapshotSync, peers: Sessions) -> None:
        """Begin at a snapshot if the chain here is empty and others are far ahead; else the blocks lead there."""
        for tries in range(1, MAX_SNAPSHOT_TRIES + 1):
            while self._height() == 0 and not self._peers_ahead(peers):
                with trio.move_on_after(LOOK_S):
                    await self._is_behind.wait()
                self._is_behind = trio.Event()
            await trio.sleep(tries * GATHER_S)
            far = [peer for peer in self._peers_ahead(peers) if self._claims[peer.node_id] >= snapshots.far_blocks]
            if self._height() or not far:
                return
            head = await snapshots.find(far)
            if head is not None:
                await self._begin(head)
                await snapshots.finish()
                return
        logger.warning("snapshot.none", reason="no peer gave a snapshot that holds; the blocks are followed instead")

    async def _take_status(self, call: Call) -> Reply:
        self.hear(call.peer.node_id, convert_record(call.body, StatusNotice).height)
        return Reply(None)

    async def _give_blocks(self, call: Call) -> Reply:
        request = convert_record(call.body, BlocksRequest)
        limit = max(0, min(request.limit, SYNC_BATCH))
        async with self._readers:
            rows = await self._run_blocking(self._store.encoded_blocks, request.start, limit, MAX_BLOCK_RECORD_BYTES)
        return Reply([[block, commit] for block, commit in rows])

    def _peers_ahead(self, peers: Sessions) -> list[Session]:
        """Those that claim more than we have, the longest known of those that failed us least first."""
        ahead = [peer for peer in peers.connected() if self._claims.get(peer.node_id, 0) > self._height()]
        return sorted(ahead, key=lambda peer: self._failures.get(peer.node_id, 0))

    async def _fetch_some(self, peers: list[Session]) -> bool:
        """Ask several peers at once for batches that follow on each other, and hand them over in order.

        False if the first brought nothing. Who brought nothing, or something that does not hold, has its claim
        forgotten and is asked last from then on; what others brought after a gap is asked for again.
        """
        wanted = [
            (peer, start)
            for place, peer in enumerate(peers)
            if (start := self._height() + 1 + place * SYNC_BATCH) <= self._claims.get(peer.node_id, 0)
        ]
        batches: dict[int, Batch] = {}

        async def ask(peer: Session, start: int) -> None:
            batches[start] = Batch(peer, start, await self._ask(peer, start))

        async with trio.open_nursery() as nursery:
            for peer, start in wanted:
                nursery.start_soon(ask, peer, start)
        for place, (peer, start) in enumerate(wanted):
            before = self._height()
            if start != before + 1:
                return True
            if batches[start].rows:
                await self._take(batches[start])
            if self._height() == before:
                self._note_failure(peer)
                return place > 0
            self._failures.pop(peer.node_id, None)
        return True

    async def _ask(self, peer: Session, start: int) -> list[tuple[bytes, bytes]]:
        """One peer's blocks from ``start`` on; none if it gives none. One that answers out of bounds is cut off."""
        request = {"start": start, "limit": SYNC_BATCH}
        try:
            reply = await peer.call(
                "chain.blocks",
                request,
                deadline_s=SYNC_DEADLINE_S,
                max_answer_bytes=MAX_ANSWER_BYTES + SMALL_ANSWER_BYTES,
            )
        except AnswerTooLarge as error:
            self._cut_off(peer, error)
            return []
        except CallError as error:
            logger.info("chain.sync_failed", peer=peer.node_id.hex(), reason=str(error))
            return []
        try:
            return _check_rows(reply.body)
        except RemoteProtocolError as error:
            self._cut_off(peer, error)
            return []

    @staticmethod
    def _cut_off(peer: Session, error: Exception) -> None:
        logger.warning("chain.sync_refused", peer=peer.node_id.hex(), reason=str(error))
        peer.drop()

    def _note_failure(self, peer: Session) -> None:
        self.forget(peer.node_id)
        if len(self._failures) == MAX_FAILURES_KEPT:
            self._failures.pop(next(iter(self._failures)))
        self._failures[peer.node_id] = self._failures.get(peer.node_id, 0) + 1


def _check_rows(body: Any) -> list[tuple[bytes, bytes]]:
    """The rows of an answer, which cost no more than their number to check. Raises `Malformed` or `TooLarge`."""
    if not isinstance(body, list) or len(body) > SYNC_BATCH:
        raise Malformed(f"blocks travel as a list of at most {SYNC_BATCH}")
    rows: list[tuple[bytes, bytes]] = []
    size = 0
    for row in body:
        if not isinstance(row, list) or len(row) != 2 or not all(isinstance(part, bytes) for part in row):
            raise Malformed("a block travels as its bytes and those of its commit")
        block, commit = row
        size += len(block) + len(commit)
        rows.append((block, commit))
    if size > MAX_ANSWER_BYTES:
        raise TooLarge("answer with blocks", size, MAX_ANSWER_BYTES)
    return rows
