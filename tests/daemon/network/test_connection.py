"""One connection over memory streams and virtual time: keep-alive, retirement, goodbyes, and a peer that cheats."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from moed.daemon.network.calls import Method
from moed.daemon.network.connection import Connection
from moed.daemon.network.errors import PeerLeaving, PeerLost
from moed.daemon.network.limits import NetworkCounters, NetworkLimits
from moed.daemon.network.peers import Peer
from moed.daemon.network.serving import Serving
from moed.protocol.addresses import Address
from moed.protocol.frames import GoodbyeCode, Priority
from moed.protocol.messages import RequestHead
from moed.protocol.session import Session
from moed.protocol.session_events import NEED_DATA, RequestReceived
from moed.protocol.tensors import Codec
from support.peering import NETWORK_ID, Served, identity_of, until

LIMITS = NetworkLimits(handshake_s=5, keepalive_s=10, silence_s=25, drain_s=10)


@dataclass
class Side:
    """One end of the pair."""

    connection: Connection
    served: Served
    counters: NetworkCounters
    opened: trio.Event

    async def ask(self, method: str, deadline_s: float = 60) -> object:
        """Call the other end."""
        reply = await self.connection.calls.call(
            RequestHead(method=method, body=method),
            (),
            deadline=trio.current_time() + deadline_s,
            priority=Priority.NORMAL,
            codec=Codec.NONE,
        )
        return reply.body


def make_side(stream: trio.abc.Stream, number: int, *, is_outbound: bool) -> Side:
    """A connection with the small services of the tests."""
    served, counters = Served(), NetworkCounters()
    methods = {name: Method(handler) for name, handler in served.handlers().items()}
    session = Session(identity_of(number), NETWORK_ID, is_initiator=is_outbound, ephemeral=bytes([number]) * 32)
    connection = Connection(
        stream,
        session,
        address=Address("memory", number),
        is_outbound=is_outbound,
        limits=LIMITS,
        counters=counters,
        serving=lambda connection: Serving(connection, methods, LIMITS, counters),
    )
    return Side(connection, served, counters, trio.Event())


def run_side(nursery: trio.Nursery, side: Side) -> None:
    """Run it as `Peers` does."""

    def opened(connection: Connection) -> None:
        connection.peer = Peer(connection, side.counters)
        side.opened.set()

    nursery.start_soon(side.connection.run, opened)


@asynccontextmanager
async def joined() -> AsyncIterator[tuple[Side, Side]]:
    """Two connections that have shaken hands."""
    left, right = trio.testing.memory_stream_pair()
    one, two = make_side(left, 1, is_outbound=True), make_side(right, 2, is_outbound=False)
    async with trio.open_nursery() as nursery:
        run_side(nursery, one)
        run_side(nursery, two)
        await one.opened.wait()
        await two.opened.wait()
        yield one, two
        nursery.cancel_scope.cancel()


async def test_calls_go_both_ways(autojump_clock: trio.testing.MockClock) -> None:
    """Either end asks and answers, and an hour of quiet later still does."""
    async with joined() as (one, two):
        assert await one.ask("echo") == "echo"
        await trio.sleep(3600)
        assert await two.ask("echo") == "echo"
        assert one.connection.rtt_s == 0  # on virtual time nothing takes time


async def test_a_connection_that_never_speaks_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    """A stranger has the handshake's time and no more, also when it sends a byte now and then."""
    left, right = trio.testing.memory_stream_pair()
    side = make_side(right, 2, is_outbound=False)

    async def dribble() -> None:
        with suppress(trio.BrokenResourceError):  # it is closed on us, which is the point
            for byte in b"\x13\x00\x20" + bytes(32):
                await left.send_all(bytes([byte]))
                await trio.sleep(1)

    started_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dribble)
        await side.connection.run(lambda _: side.opened.set())
        nursery.cancel_scope.cancel()
    assert side.connection.end_reason == "handshake_timeout"
    assert not side.opened.is_set()
    assert trio.current_time() - started_at < 7


async def test_a_silent_peer_is_given_up_and_its_calls_fail(autojump_clock: trio.testing.MockClock) -> None:
    """A peer whose process hangs answers no ping; after the silence limit its calls end with PeerLost."""
    left, right = trio.testing.memory_stream_pair()
    one = make_side(left, 1, is_outbound=True)
    session = Session(identity_of(2), NETWORK_ID, is_initiator=False, ephemeral=b"e" * 32)
    started_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        run_side(nursery, one)
        while not session.can_open:  # shake hands, then never read again
            session.receive_data(await right.receive_some())
            for buffer in session.data_to_send(0.0):
                await right.send_all(buffer)
        await one.opened.wait()
        with pytest.raises(PeerLost):
            await one.ask("echo", deadline_s=600)
    assert one.connection.end_reason == "silent"
    assert 25 <= trio.current_time() - started_at <= 40


async def test_a_retired_connection_ends_what_is_open_and_starts_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The open call is answered, new ones are told to go elsewhere, then both ends close as agreed."""
    async with joined() as (one, two):
        answers: list[object] = []

        async def ask() -> None:
            answers.append(await one.ask("wait"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await two.served.started.wait()
            two.connection.retire(GoodbyeCode.DUPLICATE)
            await until(lambda: one.connection.is_leaving)
            for side in (one, two):
                with pytest.raises(PeerLeaving):
                    await side.ask("echo")
            two.served.release.set()
        assert answers == ["released"]
        await until(lambda: one.connection.end_reason and two.connection.end_reason)
        # whichever sees first that both are done
        reasons = {one.connection.end_reason, two.connection.end_reason}
        assert reasons <= {"peer_left", "duplicate"}
        assert "duplicate" in reasons


async def test_retirement_does_not_wait_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    """A call that does not end is cut after the drain time."""
    async with joined() as (one, two):
        started_at = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(PeerLost):
                    await one.ask("wait", deadline_s=3600)

            nursery.start_soon(ask)
            await two.served.started.wait()
            two.connection.retire(GoodbyeCode.DUPLICATE)
        assert 10 <= trio.current_time() - started_at <= 12


async def test_a_response_that_is_no_reply_ends_the_session(autojump_clock: trio.testing.MockClock) -> None:
    """A peer that answers with another kind of message broke the rules."""
    left, right = trio.testing.memory_stream_pair()
    one = make_side(left, 1, is_outbound=True)
    session = Session(identity_of(2), NETWORK_ID, is_initiator=False, ephemeral=b"e" * 32)

    async def cheat() -> None:
        while True:
            data = await right.receive_some()
            if not data:
                return
            session.receive_data(data)
            while (event := session.next_event()) is not NEED_DATA:
                if isinstance(event, RequestReceived):
                    session.send_response(event.stream, [event.message])  # the question as its own answer
            for buffer in session.data_to_send(0.0):
                await right.send_all(buffer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cheat)
        run_side(nursery, one)
        await one.opened.wait()
        with pytest.raises(PeerLost):
            await one.ask("echo")
        nursery.cancel_scope.cancel()
    assert one.connection.end_reason == "protocol_error"
    assert one.counters.protocol_errors == 1
