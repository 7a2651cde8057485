"""Hedging and partial failure over real sessions."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import trio

from moed.daemon.network.calls import Call, Reply
from moed.daemon.network.errors import DeadlineExceeded, PeerLost, RemoteRefusal
from moed.daemon.network.peers import Peer
from moed.daemon.remote_experts import Answered, Asked, ExpertClient
from moed.protocol.experts import FORWARD
from support.layers import WIDTH, make_layer, serving
from support.peering import Running, running, until

ROWS = np.ones((3, WIDTH), np.float32)


async def join(caller: Running, server: Running) -> Peer:
    return await caller.peers.connect(server.address, server.identity.node_id, timeout_s=5)


async def stuck(_call: Call) -> Reply:
    """A node that is up and does not answer."""
    await trio.sleep_forever()
    raise AssertionError


async def full(_call: Call) -> Reply:
    """A node whose queue is full."""
    from moed.daemon.network.calls import Refused

    raise Refused("queue_full", "too much is waiting")


async def strange(call: Call) -> Reply:
    """A node that answers something else."""
    return Reply({"queue_delay_ms": 0.0, "waiting_rows": 0}, [call.tensors[0][:1]])


async def test_a_late_place_is_hedged_and_told_to_stop(tmp_path: Path) -> None:
    """The second place's answer is taken long before the deadline."""
    async with (
        running(1, extra={FORWARD: stuck}) as slow,
        serving(2, make_layer(tmp_path, "x")) as good,
        running(3) as me,
    ):
        places = [await join(me, slow), await join(me, good)]
        client = ExpertClient(lambda _name: places, hedge_after_s=0.05)
        with trio.fail_after(5):
            answer = await client.forward("x", ROWS, deadline_s=60)
        assert answer.peer is places[1]


@pytest.mark.parametrize("handler", [full, strange])
async def test_a_place_that_cannot_is_passed_over_at_once(tmp_path: Path, handler: object) -> None:
    """Without waiting for the hedge; an answer that is none counts as a refusal."""
    extra = {FORWARD: handler}
    async with running(1, extra=extra) as bad, serving(2, make_layer(tmp_path, "x")) as good, running(3) as me:  # type: ignore[arg-type]  # parametrised
        places = [await join(me, bad), await join(me, good)]
        client = ExpertClient(lambda _name: places)
        with trio.fail_after(5):
            assert (await client.forward("x", ROWS, deadline_s=60)).peer is places[1]


async def test_a_refusal_that_every_place_would_repeat_is_not_repeated(tmp_path: Path) -> None:
    """A batch of the wrong width fails once."""
    async with (
        serving(1, make_layer(tmp_path, "x")) as one,
        serving(2, make_layer(tmp_path, "x")) as two,
        running(3) as me,
    ):
        places = [await join(me, one), await join(me, two)]
        with pytest.raises(RemoteRefusal):
            await ExpertClient(lambda _name: places).forward("x", ROWS[:, :2], deadline_s=5)
        assert two.peers.counters.calls_refused == 0


async def test_enough_answers_and_a_grace_end_the_wait(tmp_path: Path) -> None:
    """Two of three answer; the third has the grace, and then is an error of its own."""
    async with (
        running(1, extra={FORWARD: stuck}) as slow,
        serving(2, make_layer(tmp_path, "x")) as good,
        running(3) as me,
    ):
        peers = {"stuck": [await join(me, slow)], "x": [await join(me, good)]}
        client = ExpertClient(lambda name: peers[name])

        def is_enough(answered: Collection[int]) -> bool:
            return len(answered) >= 2

        asks = [Asked("x", ROWS), Asked("stuck", ROWS), Asked("x", ROWS)]
        began = trio.current_time()
        outcomes = await client.ask_many(asks, deadline_s=60, grace_s=0.1, is_enough=is_enough)
        assert trio.current_time() - began < 5
        assert [type(one) for one in outcomes] == [Answered, DeadlineExceeded, Answered]


async def test_a_dead_peer_is_noticed_at_once(tmp_path: Path) -> None:
    """Its calls fail when its socket closes, not when a record or a deadline expires, and nobody asks it again."""
    failed: list[float] = []
    async with (
        running(3) as me,
        serving(2, make_layer(tmp_path, "x")) as good,
        running(1, extra={FORWARD: stuck}) as doomed,
        trio.open_nursery() as nursery,
    ):
        lost = await join(me, doomed)
        places = [lost, await join(me, good)]
        has_failed = trio.Event()

        async def call() -> None:
            with pytest.raises(PeerLost):
                await lost.call(FORWARD, {"expert": "x"}, [ROWS], deadline_s=60)
            failed.append(trio.current_time())
            has_failed.set()

        nursery.start_soon(call)
        await until(lambda: len(doomed.peers.connected()) == 1)
        await trio.testing.wait_all_tasks_blocked(0.05)
        for peer in doomed.peers.connected():  # what a killed process leaves: a closed socket and no goodbye
            stream = peer.connection._stream
            assert isinstance(stream, trio.SocketStream)
            stream.socket.shutdown(trio.socket.SHUT_RDWR)
        died_at = trio.current_time()
        with trio.fail_after(5):
            await has_failed.wait()
        assert failed[0] - died_at < 0.5
        client = ExpertClient(lambda _name: [one for one in places if me.peers.get(one.node_id) is one])
        assert (await client.forward("x", ROWS, deadline_s=5)).peer is places[1]


async def test_nobody_to_ask_is_an_error() -> None:
    """At once."""
    with pytest.raises(PeerLost):
        await ExpertClient(lambda _name: []).forward("x", ROWS, deadline_s=math.inf)
