"""A rate on sessions' bytes: held on virtual time, lifted live, counted always."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from moed.daemon.network.bandwidth import BURST_S, Bandwidth
from moed.daemon.network.line import Line
from moed.daemon.network.traffic import Moved


async def test_a_rate_makes_the_next_piece_wait(autojump_clock: trio.testing.MockClock) -> None:
    """A hundred pieces at a rate take their time, but for the first burst; without a rate they take none."""
    bandwidth = Bandwidth()
    for rate, expected_s in ((1000.0, 10.0), (None, 0.0)):
        bandwidth.sent.bytes_per_s = rate
        before = trio.current_time()
        for _ in range(100):
            await bandwidth.sent.wait_free()
            bandwidth.sent.pay(100)
        await bandwidth.sent.wait_free()
        assert trio.current_time() - before == pytest.approx(expected_s, abs=BURST_S + 0.001)


async def test_a_socket_is_read_and_written_at_the_rate() -> None:
    """Over its rate a socket looks as if the kernel had no room, or no bytes; both directions count."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listeners[0]:
        near = await trio.open_tcp_stream(*listeners[0].socket.getsockname()[:2])
        far = await listeners[0].accept()
        async with near, far:
            bandwidth = Bandwidth()
            there, here = Moved(), Moved()
            sender, receiver = Line(near, bandwidth, there), Line(far, bandwidth, here)
            assert sender.send_nowait(b"x" * 1000) == 1000
            await receiver.wait_readable()
            assert receiver.receive_nowait(memoryview(bytearray(400))) == 400
            bandwidth.received.bytes_per_s = bandwidth.sent.bytes_per_s = 1.0
            assert sender.send_nowait(b"x" * 1000) == 1000
            assert sender.send_nowait(b"x") == 0
            assert receiver.receive_nowait(memoryview(bytearray(400))) == 400
            assert receiver.receive_nowait(memoryview(bytearray(400))) is None
            assert (there, here) == (Moved(sent=2000), Moved(received=800))
            sender.release()
            receiver.release()
