"""Receipts between two nodes with real sessions: both databases end with the same sheets, signed by both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trio

from moed.daemon import receipts
from moed.daemon.network.calls import Call, Method, Reply
from moed.daemon.network.peers import Peers
from moed.daemon.receipt_export import export_sheet, receipt_table, sums
from moed.daemon.receipts import SIGN, ReceiptBook
from moed.daemon.store import Store
from moed.protocol.addresses import Address
from moed.protocol.receipts import SignedSheet, message_hash
from support.chains import make_genesis
from support.peering import identity_of, until

NETWORK_ID = b"n" * 32


async def _echo(call: Call) -> Reply:
    return Reply(call.body, call.tensors)


class Node:
    """A node that keeps its receipts in a real database."""

    def __init__(self, number: int, store: Store) -> None:
        self.store = store
        self.identity = identity_of(number)
        self.book = ReceiptBook(self.identity, NETWORK_ID, self._keep, now_ms=lambda: 1_700_000_000_000)
        self.peers = Peers(
            self.identity,
            NETWORK_ID,
            handlers={"echo": Method(_echo, is_receipted=True), "free": _echo, **self.book.handlers()},
            receipts=self.book,
        )

    def _keep(self, sheets: Sequence[SignedSheet]) -> None:
        self.store.keep_receipts(sheets)

    async def run(self, nursery: trio.Nursery) -> Address:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(partial(self.peers.run, listeners))
        nursery.start_soon(self.book.run)
        return Address("127.0.0.1", listeners[0].socket.getsockname()[1])


async def test_every_served_call_has_a_receipt_at_both_ends(tmp_path: Path) -> None:
    """With its method, bytes and time; with hashes where the caller asked; refused and free calls have none."""
    genesis = make_genesis()
    x = np.arange(1024, dtype=np.float32)
    with Store(tmp_path / "a.db", genesis) as mine, Store(tmp_path / "b.db", genesis) as other:
        server, caller = Node(1, mine), Node(2, other)
        async with trio.open_nursery() as nursery:
            address = await server.run(nursery)
            await caller.run(nursery)
            peer = await caller.peers.connect(address, None, timeout_s=5)
            for number in range(5):
                await peer.call("echo", number, [x], deadline_s=5, hashed=number == 0)
            await peer.call("free", None, deadline_s=5)
            await until(lambda: sum(len(one.read().calls) for one in other.receipts()) == 5)
            await until(lambda: mine.receipts() == other.receipts())
            nursery.cancel_scope.cancel()
        sheets = mine.receipts()
    for signed in sheets:
        signed.check(NETWORK_ID)
        assert signed.caller_signature is not None
        assert signed.read().server == server.identity.public_key
        assert signed.read().caller == caller.identity.public_key
    calls = [one for signed in sheets for one in signed.read().calls]
    assert {one.method for one in calls} == {"echo"}
    assert all(one.request_bytes > x.nbytes and one.answer_bytes > x.nbytes for one in calls)
    assert len({one.sequence for one in calls}) == 5
    hashed = [one for one in calls if one.request_hash is not None]
    assert len(hashed) == 1
    assert hashed[0].answer_hash not in (None, hashed[0].request_hash, message_hash([]))


async def test_a_caller_that_vanishes_leaves_a_claim(tmp_path: Path) -> None:
    """The server keeps what it served with its own signature alone."""
    with Store(tmp_path / "a.db", make_genesis()) as mine, Store(tmp_path / "b.db", make_genesis()) as other:
        server, caller = Node(1, mine), Node(2, other)
        async with trio.open_nursery() as nursery:
            address = await server.run(nursery)
            async with trio.open_nursery() as leaving:
                await leaving.start(partial(caller.peers.run, []))
                peer = await caller.peers.connect(address, None, timeout_s=5)
                await peer.call("echo", 1, deadline_s=5)
                leaving.cancel_scope.cancel()
            await until(lambda: len(mine.receipts()) == 1)
            nursery.cancel_scope.cancel()
        (signed,) = mine.receipts()
    signed.check(NETWORK_ID)
    assert signed.caller_signature is None


async def test_a_stop_keeps_the_sheet_that_is_being_signed(tmp_path: Path) -> None:
    """The caller takes its time to sign; the server stops meanwhile, and has its claim in the database."""
    asked = trio.Event()

    async def never_sign(_call: Call) -> Reply:
        asked.set()
        await trio.sleep_forever()

    silent = Peers(identity_of(2), NETWORK_ID, handlers={SIGN: never_sign})
    with Store(tmp_path / "a.db", make_genesis()) as mine:
        server = Node(1, mine)
        async with trio.open_nursery() as nursery:
            address = await server.run(nursery)
            await nursery.start(partial(silent.run, []))
            peer = await silent.connect(address, None, timeout_s=5)
            await peer.call("echo", 1, deadline_s=5)
            with trio.fail_after(10):
                await asked.wait()
            nursery.cancel_scope.cancel()
        (signed,) = mine.receipts()
    signed.check(NETWORK_ID)
    assert signed.caller_signature is None
    assert len(signed.read().calls) == 1


async def test_a_session_in_use_is_remembered_longer_than_those_that_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for two sessions, strangers that call once do not make a node forget the caller that goes on."""
    monkeypatch.setattr(receipts, "MAX_SESSIONS", 2)
    with Store(tmp_path / "a.db", make_genesis()) as mine, Store(tmp_path / "b.db", make_genesis()) as other:
        server, caller = Node(1, mine), Node(2, other)
        async with trio.open_nursery() as nursery:
            address = await server.run(nursery)
            await caller.run(nursery)
            peer = await caller.peers.connect(address, None, timeout_s=5)
            for number in range(3, 6):
                await peer.call("echo", 1, deadline_s=5)
                stranger = Peers(identity_of(number), NETWORK_ID)
                await nursery.start(partial(stranger.run, []))
                await (await stranger.connect(address, None, timeout_s=5)).call("echo", 1, deadline_s=5)
            await peer.call("echo", 1, deadline_s=5)
            await until(lambda: sum(len(one.read().calls) for one in other.receipts()) == 4)
            nursery.cancel_scope.cancel()


async def test_receipts_are_exported_with_sums(tmp_path: Path) -> None:
    """Every call with both signatures and their verdict; sums count the valid sheets alone."""
    with Store(tmp_path / "a.db", make_genesis()) as mine, Store(tmp_path / "b.db", make_genesis()) as other:
        server, caller = Node(1, mine), Node(2, other)
        async with trio.open_nursery() as nursery:
            address = await server.run(nursery)
            await caller.run(nursery)
            peer = await caller.peers.connect(address, None, timeout_s=5)
            for _ in range(3):
                await peer.call("echo", 1, deadline_s=5, hashed=True)
            await until(lambda: sum(len(one.read().calls) for one in mine.receipts()) == 3)
            nursery.cancel_scope.cancel()
        sheets = [export_sheet(one, NETWORK_ID) for one in mine.receipts()]
        foreign = [export_sheet(one, b"m" * 32) for one in mine.receipts()]
    assert json.loads(json.dumps(sheets)) == sheets
    (row,) = sums(sheets)
    assert row["calls"] == 3
    assert row["is_signed_by_both"]
    assert row["server"] == server.identity.public_key.hex()
    assert receipt_table([row]).rows[0][4] == "3"
    assert not foreign[0]["is_valid"]
    assert sums(foreign) == []


async def test_calls_under_way_do_not_each_get_a_sheet(tmp_path: Path) -> None:
    """Hundreds of calls, one after the other, fill sheets: getting one signed does not start another for each call."""
    with Store(tmp_path / "a.db", make_genesis()) as mine, Store(tmp_path / "b.db", make_genesis()) as other:
        server, caller = Node(1, mine), Node(2, other)
        async with trio.open_nursery() as nursery:
            address = await server.run(nursery)
            await caller.run(nursery)
            peer = await caller.peers.connect(address, None, timeout_s=5)
            for _ in range(300):
                await peer.call("echo", None, deadline_s=5)
            await until(lambda: sum(len(one.read().calls) for one in mine.receipts()) == 300)
            nursery.cancel_scope.cancel()
        assert len(mine.receipts()) <= 30
        assert all(one.caller_signature is not None for one in mine.receipts())
