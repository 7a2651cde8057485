"""Who is told what: nobody what it has, few what somebody else made, and what was worth nothing may come again."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from moed.consensus.state import Validator, ValidatorSet
from moed.daemon.gossip import MAX_KNOWN, ONWARD, Gossip, Known
from moed.daemon.network.calls import Reply
from moed.daemon.network.errors import CallError, PeerLost, RequestTooLarge
from moed.daemon.network.peers import Priority
from moed.protocol.identity import NodeId
from support.chains import key

PEER = key(1).node_id
VALIDATORS = ValidatorSet(
    members=tuple(Validator(key=one, power=1) for one in sorted(key(number).public_key for number in range(1, 7)))
)


class Listening:
    """A session that counts what it is told."""

    def __init__(self, node_id: NodeId, told: list[tuple[NodeId, Any]]) -> None:
        self.node_id = node_id
        self.error: CallError | None = None
        self._told = told

    async def notify(self, method: str, body: Any = None, *, priority: Priority) -> None:
        if self.error is not None:
            raise self.error
        self._told.append((self.node_id, body))

    async def call(
        self, method: str, body: Any = None, *, deadline_s: float, max_answer_bytes: int | None = None
    ) -> Reply:
        raise AssertionError("gossip asks nothing")

    def drop(self) -> None:
        raise AssertionError("gossip drops nobody")


class Everybody:
    """Sessions with so many peers, each of which may be told."""

    def __init__(self, count: int) -> None:
        self.told: list[tuple[NodeId, Any]] = []
        self._sessions = [Listening(key(number).node_id, self.told) for number in range(1, count + 1)]

    def connected(self) -> list[Listening]:
        return self._sessions


@pytest.mark.parametrize("heights", [0, 1])
def test_what_was_worth_nothing_is_heard_again(heights: int) -> None:
    """Also where it waited for the next height before it was found out."""
    known = Known()
    known.add(b"early", PEER)
    for _ in range(heights):
        known.age()
    assert known.meet(b"early", PEER)
    known.forget(b"early")
    assert not known.meet(b"early", PEER)


def test_memory_of_bodies_is_bounded() -> None:
    """Two generations stay, however many bodies come; the newest are among them."""
    known = Known()
    for number in range(3 * MAX_KNOWN):
        known.add(number.to_bytes(4, "big"), None)
    remembered = [number for number in range(3 * MAX_KNOWN) if known.meet(number.to_bytes(4, "big"), PEER)]
    assert len(remembered) <= 2 * MAX_KNOWN
    assert remembered[-1] == 3 * MAX_KNOWN - 1


async def test_a_message_goes_on_to_a_few_and_to_nobody_twice() -> None:
    """Validators and others alike; who brought it is not told, and passing it on again reaches the next ones."""
    peers = Everybody(12)
    gossip = Gossip(lambda _: None, VALIDATORS)
    leading = {key(number).node_id for number in range(1, 7)}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gossip.run, peers)
        gossip.messages.add(b"a vote", PEER)
        for times in (1, 2):
            await gossip.pass_on("chain.vote", b"a vote")
            await trio.testing.wait_all_tasks_blocked()
            told = [node_id for node_id, _ in peers.told]
            assert len([one for one in told if one in leading]) == times * ONWARD
            assert len([one for one in told if one not in leading]) == times * ONWARD
            assert len(set(told) | {PEER}) == len(told) + 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("error", "is_lost"), [(PeerLost("gone"), True), (RequestTooLarge("a MiB"), False)])
async def test_only_a_lost_peer_counts_as_lost(error: CallError, is_lost: bool) -> None:
    """One that takes no message so long is still there, and so is the height that it has told."""
    peers, lost = Everybody(2), list[NodeId]()
    deaf = peers.connected()[0]
    deaf.error = error
    gossip = Gossip(lost.append, VALIDATORS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gossip.run, peers)
        await gossip.tell_all("chain.vote", b"a vote")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert lost == ([deaf.node_id] if is_lost else [])
    assert [node_id for node_id, _ in peers.told] == [peers.connected()[1].node_id]
