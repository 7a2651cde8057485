"""Nodes over real loopback sockets: calls, notices, failures, duplicates, and strangers at the door."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from moed.daemon.network.calls import Call, Reply
from moed.daemon.network.errors import (
    AnswerTooLarge,
    CallError,
    DeadlineExceeded,
    DialFailed,
    PeerLost,
    RemoteRefusal,
    RequestTooLarge,
)
from moed.daemon.network.limits import NetworkLimits
from moed.daemon.network.peers import Peer, Priority
from moed.protocol.addresses import Address
from moed.protocol.errors import LocalProtocolError
from moed.protocol.handshake import SessionLimits
from moed.protocol.session import Session
from moed.protocol.tensors import Codec
from support.peering import NETWORK_ID, Running, identity_of, running, until

MIB = 1 << 20


async def join(one: Running, other: Running) -> Peer:
    """One dials the other."""
    return await one.peers.connect(other.address, other.identity.node_id, timeout_s=5)


async def test_a_call_brings_body_and_tensors_both_ways() -> None:
    """The reply is the handler's, the peer's identity is proven, and both sides list each other."""
    async with running(1) as alice, running(2) as bob:
        peer = await join(alice, bob)
        tensors = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(True), np.zeros((0, 3), np.int64)]
        reply = await peer.call("echo", {"a": [1, None, b"x"]}, tensors, deadline_s=5)
        assert reply.body == {"a": [1, None, b"x"]}
        for sent, back in zip(tensors, reply.tensors, strict=True):
            np.testing.assert_array_equal(sent, back)
        assert (peer.node_id, peer.public_key, peer.is_outbound) == (
            bob.identity.node_id, bob.identity.public_key, True,
        )  # fmt: skip
        await until(lambda: bob.peers.get(alice.identity.node_id))
        (back_peer,) = bob.peers.connected()
        assert not back_peer.is_outbound
        assert (await back_peer.call("echo", "from bob", deadline_s=5)).body == "from bob"
        await until(lambda: peer.rtt_s is not None)
        assert peer.rtt_s is not None
        assert 0 < peer.rtt_s < 5
        assert alice.connected == [peer]


async def test_large_tensors_travel_both_ways_at_once() -> None:
    """Four calls of 16 MiB in and out side by side, every byte right, and nothing is held afterwards."""
    random = np.random.default_rng(7)
    async with running(1) as alice, running(2) as bob:
        peer = await join(alice, bob)

        async def call(values: Any) -> None:
            reply = await peer.call("echo", None, [values], deadline_s=60)
            np.testing.assert_array_equal(reply.tensors[0], values)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(call, random.random(2 * MIB))
        await until(lambda: bob.peers._budget.used_bytes == alice.peers._budget.used_bytes == 0)


async def test_a_codec_shortens_what_travels() -> None:
    """Asked for int8 blocks, the tensor arrives within their bound and as the dtype that it was."""
    async with running(1) as alice, running(2) as bob:
        peer = await join(alice, bob)
        values = np.linspace(-1, 1, 1000, dtype=np.float32)
        reply = await peer.call("echo", None, [values], deadline_s=5, codec=Codec.INT8_BLOCK)
        np.testing.assert_allclose(reply.tensors[0], values, atol=1 / 253)
        assert np.asarray(reply.tensors[0]).dtype == np.float32


async def test_a_vote_overtakes_a_tensor_on_a_real_socket() -> None:
    """A small call at high priority is answered long before a 64 MiB one that was started first."""
    order: list[str] = []
    async with running(1) as alice, running(2) as bob:
        peer = await join(alice, bob)

        async def bulk() -> None:
            await peer.call("echo", None, [np.zeros(64 * MIB, np.uint8)], deadline_s=60, priority=Priority.BULK)
            order.append("tensor")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bulk)
            await until(lambda: peer.connection.session.has_unsent)
            await peer.call("echo", "vote", deadline_s=10, priority=Priority.HIGH)
            order.append("vote")
        assert order == ["vote", "tensor"]


async def test_refusals_carry_their_code() -> None:
    """Refused by the handler, unknown, or over a limit: the caller gets words, and the session goes on."""
    limits = SessionLimits(max_message_bytes=2 * MIB, max_notice_bytes=10_000)
    async with running(1) as alice, running(2, limits=limits) as bob:
        peer = await join(alice, bob)
        with pytest.raises(RemoteRefusal, match="not_today: asked by"):
            await peer.call("refuse", deadline_s=5)
        with pytest.raises(RemoteRefusal) as refusal:
            await peer.call("no.such.method", deadline_s=5)
        assert refusal.value.code == "unknown_method"
        with pytest.raises(RequestTooLarge):
            await peer.call("echo", None, [np.zeros(3 * MIB, np.uint8)], deadline_s=5)
        with pytest.raises(RequestTooLarge):
            await peer.notify("tell", "x" * 20_000)
        with pytest.raises(LocalProtocolError):
            await peer.call("echo", object(), deadline_s=5)
        assert (await peer.call("echo", 1, deadline_s=5)).body == 1
        assert bob.peers.counters.calls_refused == 2


async def test_an_answer_over_the_callers_limit_becomes_a_refusal() -> None:
    """The server knows what the caller takes, and says so instead of sending it."""

    async def large(call: Call) -> Reply:
        return Reply(None, [np.zeros(3 * MIB, np.uint8)])

    limits = SessionLimits(max_message_bytes=2 * MIB)
    async with running(1, limits=limits) as alice, running(2, extra={"large": large}) as bob:
        peer = await join(alice, bob)
        with pytest.raises(RemoteRefusal, match="too_large"):
            await peer.call("large", deadline_s=5)


def received_bytes(node: Running) -> int:
    """Over all sessions of the node."""
    return sum(moved.received for moved in node.peers.traffic().values())


async def test_a_longer_answer_than_a_call_takes_is_refused_as_it_begins() -> None:
    """A lying peer answers a small question with 64 MiB: a typed error, a window's worth of bytes at most, no memory
    for it, and the session lives on; what fits is answered."""

    async def lie(call: Call) -> Reply:
        return Reply(None, [np.zeros(64 * MIB, np.uint8)])

    async with running(1) as alice, running(2, extra={"lie": lie}) as bob:
        peer = await join(alice, bob)
        for _ in range(3):
            before = received_bytes(alice)
            with pytest.raises(AnswerTooLarge, match="lie"):
                await peer.call("lie", deadline_s=30, max_answer_bytes=MIB)
            assert alice.peers._budget.used_bytes == 0
            reply = await peer.call("echo", None, [np.ones(MIB // 2, np.uint8)], deadline_s=30, max_answer_bytes=MIB)
            assert reply.tensors[0].sum() == MIB // 2
            assert received_bytes(alice) - before < SessionLimits().window_bytes + MIB
        assert alice.peers._pool.kept_bytes < 2 * MIB
        assert alice.peers.counters.protocol_errors == 0
        await until(lambda: bob.peers.connected()[0].connection.session.open_streams == 0)


async def test_a_deadline_ends_the_call_on_both_sides() -> None:
    """The caller gets its error in time, and the handler is cancelled because nobody waits any more."""
    async with running(1) as alice, running(2) as bob:
        peer = await join(alice, bob)
        with pytest.raises(DeadlineExceeded):
            await peer.call("wait", deadline_s=0.1)
        await until(lambda: bob.served.cancelled == ["wait"])
        assert (await peer.call("echo", 1, deadline_s=5)).body == 1


async def test_a_cancelled_caller_cancels_the_handler() -> None:
    """Long before its deadline."""
    async with running(1) as alice, running(2) as bob:
        peer = await join(alice, bob)
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                await peer.call("wait", deadline_s=600)

            nursery.start_soon(call)
            await bob.served.started.wait()
            nursery.cancel_scope.cancel()
        await until(lambda: bob.served.cancelled == ["wait"])


async def test_a_lost_peer_fails_its_calls_at_once() -> None:
    """When the other node goes, waiting calls raise PeerLost and so do later ones; the callback ran once."""
    failures: list[CallError] = []

    async def call(peer: Peer) -> None:
        try:
            await peer.call("wait", deadline_s=600)
        except CallError as failure:
            failures.append(failure)

    async with running(1) as alice, trio.open_nursery() as callers:
        async with running(2) as bob:
            peer = await join(alice, bob)
            callers.start_soon(call, peer)
            await bob.served.started.wait()
        await until(lambda: alice.disconnected == [peer])
        assert [type(failure) for failure in failures] == [PeerLost]
        assert alice.peers.connected() == ()
        for use in (peer.call("echo", deadline_s=5), peer.notify("tell")):
            with pytest.raises(PeerLost):
                await use


async def test_a_stopping_node_says_goodbye() -> None:
    """The other side sees an orderly end, not a broken line."""
    async with running(1) as alice:
        async with running(2) as bob:
            await join(alice, bob)
        await until(lambda: alice.peers.counters.sessions_closed)
        assert alice.peers.counters.by_reason == {"peer_left": 1}


async def test_notices_arrive_in_order() -> None:
    """Of one priority, none lost while the peer keeps up, and none is answered."""
    async with running(1) as alice, running(2) as bob:
        peer = await join(alice, bob)
        for number in range(3000):
            await peer.notify("tell", number, priority=Priority.HIGH)
        await until(lambda: len(bob.served.notices) == 3000)
        assert bob.served.notices == list(range(3000))
        assert alice.peers.counters.notices_dropped == bob.peers.counters.notices_dropped == 0


async def test_notices_that_pile_up_are_dropped_and_counted() -> None:
    """While a handler does not come to an end, the newest notices over the bound go; the session lives."""
    gate = trio.Event()
    taken: list[int] = []

    async def slow(call: Call) -> None:
        await gate.wait()
        taken.append(call.body)

    network_limits = NetworkLimits(max_queued_notices=10)
    async with running(1) as alice, running(2, network_limits=network_limits, extra={"slow": slow}) as bob:
        peer = await join(alice, bob)
        for number in range(50):
            await peer.notify("slow", number)
        await until(lambda: bob.peers.counters.notices_dropped >= 39)
        gate.set()
        await until(lambda: len(taken) == 50 - bob.peers.counters.notices_dropped)
        assert taken == list(range(len(taken)))


async def test_endless_bad_notices_end_the_session() -> None:
    """A few unknown methods are another version; very many are an attack."""
    async with running(1) as alice, running(2) as bob:
        peer = await join(alice, bob)
        with suppress(PeerLost):  # the session may end in the middle
            for _ in range(100):
                await peer.notify("no.such.method")
        await until(lambda: alice.disconnected == [peer])
        assert bob.peers.counters.protocol_errors == 1


async def test_a_bug_in_a_handler_closes_only_that_connection() -> None:
    """It is counted, the caller loses this peer, and another session with the same node goes on."""
    async with running(1) as alice, running(2) as bob, running(3) as carol:
        broken, fine = await join(alice, bob), await join(carol, bob)
        with pytest.raises(PeerLost):
            await broken.call("break", deadline_s=5)
        assert bob.peers.counters.bugs == 1
        await until(lambda: bob.peers.counters.by_reason == {"bug": 1})
        assert (await fine.call("echo", 1, deadline_s=5)).body == 1
        again = await join(alice, bob)
        assert (await again.call("echo", 2, deadline_s=5)).body == 2


async def test_the_wrong_network_or_node_is_not_dialled() -> None:
    """Each failure has its own code, and neither side keeps a session."""
    async with running(1) as alice, running(2, network_id=bytes(32)) as other, running(3) as carol:
        with pytest.raises(DialFailed) as failure:
            await join(alice, other)
        assert failure.value.code == "bad_ciphertext"
        with pytest.raises(DialFailed) as failure:
            await alice.peers.connect(carol.address, identity_of(9).node_id, timeout_s=5)
        assert failure.value.code == "wrong_identity"
        with pytest.raises(DialFailed) as failure:
            await alice.peers.connect(alice.address, None, timeout_s=5)
        assert failure.value.code == "wrong_identity"
        with pytest.raises(DialFailed) as failure:
            await alice.peers.connect(alice.address, alice.identity.node_id, timeout_s=5)
        assert failure.value.code == "itself"
        assert not alice.peers.connected()
        await until(lambda: not carol.peers.connected())


async def test_a_silent_or_absent_listener_fails_in_time() -> None:
    """Nobody there, somebody who never answers, and a network that does not run: all DialFailed."""
    (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with running(1, network_limits=NetworkLimits(handshake_s=0.2)) as alice:
        address = Address("127.0.0.1", silent.socket.getsockname()[1])
        with pytest.raises(DialFailed, match="timeout"):
            await alice.peers.connect(address, None, timeout_s=5)
        with pytest.raises(DialFailed, match="timeout"):
            await alice.peers.connect(address, identity_of(5).node_id, timeout_s=0.05)
        await silent.aclose()
        with pytest.raises(DialFailed, match="unreachable"):
            await alice.peers.connect(address, None, timeout_s=5)
        with pytest.raises(DialFailed):
            await alice.peers.connect(Address("no-such-host.invalid", 1), None, timeout_s=5)
    with pytest.raises(DialFailed, match="not_running"):
        await alice.peers.connect(address, None, timeout_s=5)


async def test_dials_of_one_node_share_one_session() -> None:
    """Ten callers at once get the same peer from one connection, and a later one too."""
    async with running(1) as alice, running(2) as bob:
        found: list[Peer] = []

        async def dial() -> None:
            found.append(await join(alice, bob))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(dial)
        assert len(set(map(id, [*found, await join(alice, bob)]))) == 1
        assert bob.peers.counters.accepted == 1


@pytest.mark.parametrize("attempt", range(5))
async def test_simultaneous_dials_keep_the_session_of_the_lower_id(attempt: int) -> None:
    """Both dial at once: one session stays on each side, the same one, and calls made meanwhile succeed."""
    async with running(1) as one, running(2) as two:
        low, high = sorted((one, two), key=lambda node: node.identity.node_id)

        async def use(node: Running, other: Running) -> None:
            peer = await join(node, other)
            for number in range(20):
                assert (await peer.call("echo", number, deadline_s=5)).body == number

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, low, high)
            nursery.start_soon(use, high, low)
        await until(lambda: low.peers.connected() and high.peers.connected())
        await until(
            lambda: (
                low.peers.counters.sessions_opened - low.peers.counters.sessions_closed == 1
                and high.peers.counters.sessions_opened - high.peers.counters.sessions_closed == 1
            )
        )
        if low.peers.counters.sessions_opened == 2:
            assert low.peers.connected()[0].is_outbound
            assert not high.peers.connected()[0].is_outbound
        assert not low.disconnected
        assert not high.disconnected
        assert len(low.connected) == len(high.connected) == 1


async def test_a_node_that_lost_its_session_dials_anew() -> None:
    """A second session from the same side replaces the first, which is met again as a new peer."""
    async with running(1) as alice, running(2) as bob:
        await join(alice, bob)
        await until(lambda: bob.connected)
        forgotten = alice.peers._peers.pop(bob.identity.node_id)
        again = await join(alice, bob)
        assert again is not forgotten
        assert (await again.call("echo", 1, deadline_s=5)).body == 1
        await until(lambda: len(bob.connected) == 2 and len(bob.disconnected) == 1)
        assert len(bob.peers.connected()) == 1


async def test_a_peer_that_falls_silent_is_closed() -> None:
    """One that completes the handshake and then answers nothing is given up after the silence limit."""
    limits = NetworkLimits(keepalive_s=0.05, silence_s=0.15)
    async with running(1, network_limits=limits) as alice:
        stream = await trio.open_tcp_stream("127.0.0.1", alice.address.port)
        async with stream:
            session = Session(identity_of(2), NETWORK_ID, is_initiator=True, ephemeral=b"e" * 32)
            while not session.can_open:
                for buffer in session.data_to_send(0.0):
                    await stream.send_all(buffer)
                session.receive_data(await stream.receive_some())
            for buffer in session.data_to_send(0.0):
                await stream.send_all(buffer)
            await until(alice.peers.connected)
            await until(lambda: alice.peers.counters.by_reason == {"silent": 1})


async def test_an_idle_session_gives_its_buffers_back_and_lives_on() -> None:
    """Large messages, then many keep-alives, then large messages again: nothing that arrives meanwhile is lost."""
    limits = NetworkLimits(keepalive_s=0.02)
    values = np.arange(MIB // 4, dtype=np.int32)
    async with running(1, network_limits=limits) as alice, running(2, network_limits=limits) as bob:
        peer = await join(alice, bob)
        for _ in range(5):
            reply = await peer.call("echo", None, [values], deadline_s=5)
            np.testing.assert_array_equal(reply.tensors[0], values)
            del reply
            await until(lambda: len(peer.connection.session._buffer._memory) <= 4096)
        await until(lambda: alice.peers._pool.kept_bytes == bob.peers._pool.kept_bytes == 0)
        assert alice.peers.counters.sessions_opened == 1


def resident_mib() -> float:
    """What this process holds now; its peak says nothing after tests that moved large tensors."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB


async def knock(node: Running, data: bytes) -> None:
    """A stranger connects, says something, and waits until it is closed."""
    try:
        async with await trio.open_tcp_stream("127.0.0.1", node.address.port) as stream:
            await stream.send_all(data)
            with trio.fail_after(5):
                while await stream.receive_some():
                    pass
    except trio.BrokenResourceError:
        pass


async def test_strangers_bytes_leave_the_node_answering_with_flat_memory() -> None:
    """Random bytes, oversized lengths, half a handshake, silence: all closed in time while an honest peer is served."""
    random = np.random.default_rng(3)
    limits = NetworkLimits(handshake_s=0.3, max_half_open_per_host=32, accept_burst=1000)
    async with running(1) as alice, running(2, network_limits=limits) as bob:
        peer = await join(alice, bob)
        before_mib = resident_mib()
        hello = b"\x13"
        attacks = [
            b"",
            hello,
            hello + b"\x00\x20" + bytes(10),
            hello + b"\xff\xff" + bytes(70_000),
            hello + b"\x04\x00" + bytes(1024),
            hello + b"\x00\x20" + bytes(32),
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x13" * 5000,
        ]
        async with trio.open_nursery() as nursery:
            for number in range(300):
                data = attacks[number % 8] if number % 3 else random.bytes(int(random.integers(1, 4000)))
                nursery.start_soon(knock, bob, data)
                if number % 10 == 0:
                    assert (await peer.call("echo", number, deadline_s=5)).body == number
        assert bob.peers._door.half_open == 0
        assert bob.peers.counters.bugs == 0
        assert bob.peers.counters.handshakes_failed == 300
        assert len(bob.peers.connected()) == 1
        assert resident_mib() - before_mib < 30


async def test_silent_strangers_do_not_keep_an_honest_one_out() -> None:
    """With every half-open place taken, the oldest stranger goes and the newcomer gets in."""
    limits = NetworkLimits(handshake_s=60, max_half_open_per_host=8, max_half_open=8)
    async with running(1) as alice, running(2, network_limits=limits) as bob, trio.open_nursery() as strangers:
        for _ in range(20):
            strangers.start_soon(knock, bob, b"\x13")
        await until(lambda: bob.peers.counters.accepted == 20)
        assert bob.peers._door.half_open == 8
        peer = await join(alice, bob)
        assert (await peer.call("echo", 1, deadline_s=5)).body == 1
        strangers.cancel_scope.cancel()


async def test_a_storm_of_connections_is_turned_away_at_the_door() -> None:
    """Of a thousand from one host few get a handshake's time; the session that is there answers all along."""
    limits = NetworkLimits(max_accepts_per_s=500, max_accepts_per_host_per_s=5, accept_burst=20)
    async with running(1) as alice, running(2, network_limits=limits) as bob:
        peer = await join(alice, bob)

        async def connect() -> None:
            with suppress(OSError, trio.BrokenResourceError):
                async with await trio.open_tcp_stream(bob.address.host, bob.address.port) as stream:
                    await stream.receive_some(1)

        async with trio.open_nursery() as storm:
            for number in range(1000):
                storm.start_soon(connect)
                if number % 50 == 0:
                    assert (await peer.call("echo", number, deadline_s=5)).body == number
            await until(lambda: bob.peers.counters.turned_away > 500)
            storm.cancel_scope.cancel()
        assert bob.peers.counters.accepted < 60
        assert bob.peers.counters.bugs == 0
        assert (await peer.call("echo", "still", deadline_s=5)).body == "still"


async def test_sessions_per_host_are_limited() -> None:
    """The one too many is told so with a goodbye, and the others go on."""
    limits = NetworkLimits(max_sessions_per_host=2)
    async with running(9, network_limits=limits) as server, running(1) as one, running(2) as two, running(3) as three:
        first = await join(one, server)
        await join(two, server)
        await until(lambda: len(server.peers.connected()) == 2)
        await join(three, server)
        await until(lambda: three.peers.counters.by_reason == {"peer_left": 1})
        assert (await first.call("echo", 1, deadline_s=5)).body == 1
        assert server.peers.counters.turned_away == 1
