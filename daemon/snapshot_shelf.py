"""What a node gives to those who begin late: the state at the end of the last epochs, in pieces, and the steps there.

At the end of an epoch the deciding task only pins the state as it is in the database; a file is written from it while
blocks go on. Who asks for pieces faster than is fair, or for several at a time, is told to wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import structlog
import trio
from msgspec import Meta

from moed.consensus.blocks import Commit, Header
from moed.consensus.snapshots import MAX_PIECES
from moed.consensus.transition import Head
from moed.protocol.codec import Record, convert_record, encode_record
from moed.protocol.identity import NodeId

from .errors import ChainFileError, StoreFailed
from .network.calls import Call, Handler, Refused, Reply
from .snapshot_files import PinnedState, SnapshotFile, write_state
from .store import Store
from .sync import RunBlocking

logger = structlog.get_logger()

KEPT = 2
"""Snapshots: whoever is in the middle of one has until the end of the next epoch but one."""
MAX_STEPS = 256
MAX_STEPS_BYTES = 1 << 20
MAX_PIECES_PER_S = 64
"""To all peers together: mostly a quarter of a MiB each."""
SUFFIX = ".state"


class StepsRequest(Record, frozen=True, kw_only=True):
    """Asks for the proofs of the validators at the ends of epochs, from that height on."""

    start: Annotated[int, Meta(ge=1)]


class PieceRequest(Record, frozen=True, kw_only=True):
    """Asks for one piece of the snapshot at a height."""

    height: Annotated[int, Meta(ge=1)]
    index: Annotated[int, Meta(ge=0, lt=MAX_PIECES)]


@dataclass(frozen=True, slots=True)
class _Pinned:
    header: Header
    commit: Commit
    state: PinnedState


class Shelf:
    """Keeps the newest snapshots in ``folder``. `run` it, call `after_block` for each block, give out `handlers`."""

    def __init__(self, store: Store, folder: Path, *, run_blocking: RunBlocking = trio.to_thread.run_sync) -> None:
        self._store = store
        self._folder = folder
        self._run_blocking = run_blocking
        self._tempo = store.genesis.params.tempo
        self._network_id = store.genesis.network_id
        self._files: dict[int, SnapshotFile] = {}
        self._served: set[NodeId] = set()
        self._second: tuple[int, int] = (0, 0)
        self._reader = trio.CapacityLimiter(1)
        # one at a time is written; an epoch that ends meanwhile gets none
        self._send, self._receive = trio.open_memory_channel[_Pinned](0)

    def handlers(self) -> Mapping[str, Handler]:
        """What peers may ask."""
        return {
            "chain.snapshots": self._give_manifests,
            "chain.snapshot_piece": self._give_piece,
            "chain.steps": self._give_steps,
        }

    @property
    def heights(self) -> list[int]:
        """The blocks whose states are here, rising."""
        return sorted(self._files)

    async def after_block(self, head: Head, *, is_latest: bool) -> None:
        """Where an epoch ended: keep the proof of its validators and, of the ``is_latest`` block, pin the state.

        The caller must not put another block into the store meanwhile. Raises `StoreFailed` if the proof cannot be
        kept; without a snapshot the chain goes on.
        """
        if head.header is None or head.height % self._tempo:
            return
        await self._run_blocking(self._store.keep_step, head)
        if is_latest:
            await self._pin(head.header, head.commit)

    async def _pin(self, header: Header, commit: Commit) -> None:
        try:
            state: PinnedState = await self._run_blocking(PinnedState, self._store.path)
        except StoreFailed as error:
            logger.warning("snapshot.failed", height=header.height, reason=str(error))
            return
        try:
            self._send.send_nowait(_Pinned(header, commit, state))
        except trio.WouldBlock:
            state.close()

    async def run(self) -> None:
        """Take up what is in the folder, then write what is pinned, until cancelled."""
        try:
            left_here = await self._run_blocking(self._left_here)
        except OSError as error:
            logger.warning("snapshot.failed", height=None, reason=f"{self._folder}: {error.strerror}")
            left_here = []
        for path in left_here:
            await self._take_up(path)
        async for pinned in self._receive:
            path = self._folder / f"{pinned.header.height}{SUFFIX}"
            try:
                await self._run_blocking(self._write, path, pinned)
            except StoreFailed as error:  # a full disk has its own alarm, and the chain can go on without this
                logger.warning("snapshot.failed", height=pinned.header.height, reason=str(error))
                continue
            await self._take_up(path)

    def _left_here(self) -> list[Path]:
        self._folder.mkdir(exist_ok=True)
        for path in self._folder.glob(".*.part"):
            path.unlink(missing_ok=True)  # a crash left it
        return sorted(self._folder.glob(f"*{SUFFIX}"))

    def _write(self, path: Path, pinned: _Pinned) -> None:
        try:
            write_state(path, self._network_id, pinned.header, pinned.commit, pinned.state.rows())
        finally:
            pinned.state.close()

    async def _take_up(self, path: Path) -> None:
        try:
            file: SnapshotFile = await self._run_blocking(SnapshotFile.scan, path, self._network_id)
        except ChainFileError as error:
            logger.warning("snapshot.failed", height=None, reason=str(error))
            await self._run_blocking(partial(path.unlink, missing_ok=True))
            return
        self._files[file.manifest.height] = file
        logger.info("snapshot.kept", height=file.manifest.height, pieces=len(file.places))
        for height in self.heights[:-KEPT]:
            await self._run_blocking(partial(self._files.pop(height).path.unlink, missing_ok=True))

    async def _give_manifests(self, call: Call) -> Reply:
        return Reply([encode_record(self._files[height].manifest) for height in reversed(self.heights)])

    async def _give_steps(self, call: Call) -> Reply:
        request = convert_record(call.body, StepsRequest)
        async with self._reader:
            steps = await self._run_blocking(self._store.steps, request.start, self._tempo, MAX_STEPS, MAX_STEPS_BYTES)
        return Reply(steps)

    async def _give_piece(self, call: Call) -> Reply:
        request = convert_record(call.body, PieceRequest)
        file = self._files.get(request.height)
        if file is None or request.index >= len(file.places):
            raise Refused("not_kept", f"there is no piece {request.index} of a snapshot at {request.height} here")
        node_id = call.peer.node_id
        if node_id in self._served or not self._has_room():
            raise Refused("busy", "pieces are given one at a time, and so many a second; ask again")
        self._served.add(node_id)
        try:
            async with self._reader:
                return Reply(await self._run_blocking(file.piece, request.index))
        except StoreFailed as error:
            raise Refused("not_kept", "that snapshot is gone") from error
        finally:
            self._served.discard(node_id)

    def _has_room(self) -> bool:
        second, given = self._second
        now = int(trio.current_time())
        self._second = (now, given + 1 if now == second else 1)
        return self._second[1] <= MAX_PIECES_PER_S
