"""Catching up trusts no answer: it is bounded, handed on as bytes, and ends the session where it is out of shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from moed.consensus.blocks import MAX_BLOCK_RECORD_BYTES
from moed.consensus.transition import Head
from moed.daemon.network.calls import Reply
from moed.daemon.network.errors import AnswerTooLarge, CallError, RemoteRefusal
from moed.daemon.network.peers import Priority
from moed.daemon.snapshot_sync import SnapshotSync
from moed.daemon.store import Store
from moed.daemon.sync import MAX_SNAPSHOT_TRIES, SYNC_BATCH, Batch, Sync
from moed.protocol.identity import NodeId
from support.chains import key, make_genesis

ROW = [b"not even a block", b"nor its commit"]


class Answering:
    """A session of a peer that is ahead and always gives the same answer."""

    def __init__(self, body: object) -> None:
        self.body = body
        self.is_dropped = trio.Event()

    @property
    def node_id(self) -> NodeId:
        return key(66).node_id

    async def call(
        self, method: str, body: object = None, *, deadline_s: float, max_answer_bytes: int | None = None
    ) -> Reply:
        await trio.lowlevel.checkpoint()
        assert max_answer_bytes is not None
        if isinstance(self.body, CallError):
            raise self.body
        return Reply(self.body)

    async def notify(self, method: str, body: object = None, *, priority: Priority) -> None:
        raise AssertionError("a sync asks and tells nothing")

    def drop(self) -> None:
        self.is_dropped.set()

    def connected(self) -> list[Answering]:
        return [] if self.is_dropped.is_set() else [self]


class WithoutSnapshots(Answering):
    """A peer that has blocks and nothing else, and counts the questions for more."""

    def __init__(self) -> None:
        super().__init__([ROW])
        self.asked = 0

    async def call(
        self, method: str, body: object = None, *, deadline_s: float, max_answer_bytes: int | None = None
    ) -> Reply:
        if method == "chain.blocks":
            return await super().call(method, body, deadline_s=deadline_s, max_answer_bytes=max_answer_bytes)
        await trio.lowlevel.checkpoint()
        self.asked += 1
        raise RemoteRefusal("unknown_method", method)


async def inline(function: Callable[..., Any], *arguments: Any) -> Any:
    """Blocking work on virtual time, which does not wait for threads."""
    await trio.lowlevel.checkpoint()
    return function(*arguments)


async def follow(
    tmp_path: Path, peer: Answering, until: trio.Event, taken: list[Batch], *, begins_late: bool = False
) -> None:
    """Catch up with one peer until something happened; ``taken`` then holds what was handed over."""

    async def take(batch: Batch) -> None:
        taken.append(batch)
        if not until.is_set():
            until.set()
        await trio.sleep_forever()

    async def begin(head: Head) -> None:
        raise AssertionError("nobody asked for a snapshot")

    with Store(tmp_path / "chain.db", make_genesis()) as store:
        late = SnapshotSync(store, tmp_path / "incoming", run_blocking=inline) if begins_late else None
        sync = Sync(store, height=lambda: 0, take=take, begin=begin, run_blocking=inline, snapshots=late)
        sync.hear(peer.node_id, 1_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync.run, peer)
            with trio.fail_after(60):
                await until.wait()
            nursery.cancel_scope.cancel()


async def test_an_answer_is_handed_on_unread(tmp_path: Path) -> None:
    """No row is parsed before it is its turn to be checked: one bad one must not cost the time of all."""
    taken: list[Batch] = []
    await follow(tmp_path, Answering([ROW] * SYNC_BATCH), trio.Event(), taken)
    assert [(batch.start, batch.rows) for batch in taken] == [(1, [(ROW[0], ROW[1])] * SYNC_BATCH)]


async def test_where_nobody_has_a_snapshot_the_blocks_are_followed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Who was told to begin at one asks a few times and does not wait for ever."""
    taken: list[Batch] = []
    peer = WithoutSnapshots()
    await follow(tmp_path, peer, trio.Event(), taken, begins_late=True)
    assert peer.asked == MAX_SNAPSHOT_TRIES
    assert [batch.start for batch in taken] == [1]
    assert autojump_clock.current_time() < 60


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"rows",
        [ROW] * (SYNC_BATCH + 1),
        [[b"a block alone"]],
        [[*ROW, b"something else"]],
        [["text", "text"]],
        [7],
        [[bytes(MAX_BLOCK_RECORD_BYTES), b""]] * 2 + [ROW],
        AnswerTooLarge("refused as it began"),
    ],
    ids=[
        "nothing",
        "bytes",
        "too many",
        "one part",
        "three parts",
        "text",
        "a number",
        "too long",
        "refused as it began",
    ],
)
async def test_an_answer_out_of_bounds_ends_the_session(tmp_path: Path, body: object) -> None:
    """More rows or bytes than an honest peer gives, or no rows at all: nothing of it is read, and the peer is gone."""
    taken: list[Batch] = []
    peer = Answering(body)
    await follow(tmp_path, peer, peer.is_dropped, taken)
    assert taken == []
