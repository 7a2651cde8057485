"""Catching up: who claims to be ahead, whom to ask for final blocks, and blocks for those who ask us."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import structlog
import trio

from moed.consensus.blocks import MAX_BLOCK_RECORD_BYTES, Block, Commit, decode_block, decode_commit
from moed.protocol.codec import Record, convert_record
from moed.protocol.errors import RemoteProtocolError
from moed.protocol.identity import NodeId

from .network.calls import Call, Handler, Reply
from .network.errors import CallError
from .network.peers import Priority
from .store import Store

logger = structlog.get_logger()

RunBlocking = Callable[..., Awaitable[Any]]
"""Runs a blocking function elsewhere: ``trio.to_thread.run_sync`` in a daemon, inline on virtual time."""

SYNC_BATCH = 64
SYNC_DEADLINE_S = 10.0
SYNC_PAUSE_S = 0.1
"""Pause after a fetch that brought nothing: who claims a height again and again does not keep us busy."""
LOOK_S = 5.0
MAX_READERS = 2
"""Requests for blocks that read the store at one time; it is shared with the one who writes blocks."""
MAX_FAILURES_KEPT = 1_024


class Session(Protocol):
    """What the chain needs of a session with one peer."""

    @property
    def node_id(self) -> NodeId: ...

    async def call(self, method: str, body: Any = None, *, deadline_s: float) -> Reply: ...

    async def notify(self, method: str, body: Any = None, *, priority: Priority) -> None: ...

    def drop(self) -> None: ...


class Sessions(Protocol):
    """What the chain needs of all sessions."""

    def connected(self) -> Sequence[Session]: ...


class StatusNotice(Record, frozen=True, kw_only=True):
    """How far a node's chain reaches."""

    height: int


class BlocksRequest(Record, frozen=True, kw_only=True):
    """Asks for final blocks from a height on."""

    start: int
    limit: int


class _BlockRows(Record, frozen=True, kw_only=True):
    rows: tuple[tuple[bytes, bytes], ...]


class Sync:
    """Follows the peers that are ahead of us.

    ``height`` says how far we are; ``take`` hands fetched blocks, lowest first, to whoever changes the chain, and
    returns when they were taken or refused.
    """

    def __init__(
        self,
        store: Store,
        *,
        height: Callable[[], int],
        take: Callable[[Session, list[tuple[Block, Commit]]], Awaitable[None]],
        run_blocking: RunBlocking,
    ) -> None:
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

    def handlers(self) -> Mapping[str, Handler]:
        """What peers may send."""
        return {"chain.status": self._take_status, "chain.blocks": self._give_blocks}

    def forget(self, node_id: NodeId) -> None:
        """A peer is gone; its claim goes with it."""
        self._claims.pop(node_id, None)

    def look(self) -> None:
        """Something showed that others are ahead: do not wait to look."""
        self._is_behind.set()

    async def run(self, peers: Sessions) -> None:
        """Fetch final blocks from whoever is ahead, until cancelled."""
        while True:
            with trio.move_on_after(LOOK_S):
                await self._is_behind.wait()
            self._is_behind = trio.Event()
            while (peer := self._peer_ahead(peers)) is not None:
                if not await self._fetch(peer):
                    await trio.sleep(SYNC_PAUSE_S)

    async def _take_status(self, call: Call) -> Reply:
        notice = convert_record(call.body, StatusNotice)
        self._claims[call.peer.node_id] = notice.height
        if notice.height > self._height():
            self.look()
        return Reply(None)

    async def _give_blocks(self, call: Call) -> Reply:
        request = convert_record(call.body, BlocksRequest)
        limit = max(0, min(request.limit, SYNC_BATCH))
        async with self._readers:
            rows = await self._run_blocking(self._store.encoded_blocks, request.start, limit, MAX_BLOCK_RECORD_BYTES)
        return Reply([[block, commit] for block, commit in rows])

    def _peer_ahead(self, peers: Sessions) -> Session | None:
        """The peer to ask: of those that claim more than we have, the longest known of those that failed us least."""
        ahead = [peer for peer in peers.connected() if self._claims.get(peer.node_id, 0) > self._height()]
        return min(ahead, key=lambda peer: self._failures.get(peer.node_id, 0), default=None)

    async def _fetch(self, peer: Session) -> bool:
        """Ask one peer for a batch and wait until it is taken. False if it brought nothing: its claim is forgotten."""
        before = self._height()
        request = {"start": before + 1, "limit": SYNC_BATCH}
        try:
            reply = await peer.call("chain.blocks", request, deadline_s=SYNC_DEADLINE_S)
            blocks = _parse_blocks(reply.body)
        except (CallError, RemoteProtocolError) as error:
            logger.info("chain.sync_failed", peer=peer.node_id.hex(), reason=str(error))
        else:
            await self._take(peer, blocks)
        if self._height() > before:
            self._failures.pop(peer.node_id, None)
            return True
        self.forget(peer.node_id)
        if len(self._failures) == MAX_FAILURES_KEPT:
            self._failures.pop(next(iter(self._failures)))
        self._failures[peer.node_id] = self._failures.get(peer.node_id, 0) + 1
        return False


def _parse_blocks(body: Any) -> list[tuple[Block, Commit]]:
    """The blocks of an answer. Raises `Malformed` or `TooLarge`."""
    rows = convert_record({"rows": body}, _BlockRows).rows
    return [(decode_block(block), decode_commit(commit)) for block, commit in rows]
