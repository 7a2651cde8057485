"""The UDP port: batches in, plain addresses out, losses counted, one log line for many drops."""

from __future__ import annotations

import socket as stdlib_socket

import pytest
import structlog
import trio

from moed.daemon.network.datagrams import BATCH, LOG_EVERY_S, Drops, UdpPort


async def bound(family: int = trio.socket.AF_INET, host: str = "127.0.0.1") -> trio.socket.SocketType:
    socket = trio.socket.socket(family, trio.socket.SOCK_DGRAM)
    if family == trio.socket.AF_INET6:
        socket.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, 0)
    await socket.bind((host, 0))
    return socket


async def test_datagrams_arrive_in_batches_with_their_source() -> None:
    """All that waits is read in one go, in order, at most a batch at a time."""
    with await bound() as here, await bound() as there:
        receiver, sender = UdpPort(here), UdpPort(there)
        for number in range(BATCH + 5):
            sender.send(str(number).encode(), here.getsockname())
        got = await receiver.receive()
        got += await receiver.receive()
        assert [data for data, _ in got] == [str(number).encode() for number in range(BATCH + 5)]
        assert {address for _, address in got} == {there.getsockname()}
        receiver.close()
        sender.close()
        sender.close()


async def test_what_the_system_refuses_is_lost_and_counted() -> None:
    """An oversized datagram or an address of the wrong family never raises."""
    with await bound() as here:
        port = UdpPort(here)
        port.send(bytes(70_000), ("127.0.0.1", 9))
        port.send(b"x", ("::1", 9))
        assert port.unsent == 2
        port.close()


async def test_closing_wakes_the_reader() -> None:
    """A reader that waits ends when its port is closed, and the caller's own socket stays open."""
    with await bound() as here:
        port = UdpPort(here)
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await port.receive()

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            port.close()
        assert here.getsockname()[1] > 0


async def test_a_socket_of_both_families_speaks_plain_ipv4() -> None:
    """On a dual-stack socket an IPv4 peer has its plain address, in both directions."""
    try:
        here = await bound(trio.socket.AF_INET6, "::")
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    with here, await bound() as there:
        dual, plain = UdpPort(here), UdpPort(there)
        plain.send(b"hello", ("127.0.0.1", here.getsockname()[1]))
        [(data, address)] = await dual.receive()
        assert (data, address) == (b"hello", there.getsockname())
        dual.send(b"and back", address)
        [(data, _)] = await plain.receive()
        assert data == b"and back"
        dual.close()
        plain.close()


def test_drops_are_all_counted_and_seldom_logged() -> None:
    """A thousand drops of one reason make one line, another reason its own, and a later one the next."""
    now_s = 0.0
    drops = Drops(lambda: now_s)
    with structlog.testing.capture_logs() as logs:
        for _ in range(1000):
            drops.count("malformed", ("192.0.2.1", 1))
        drops.count("expired", ("192.0.2.1", 1))
        now_s = LOG_EVERY_S
        drops.count("malformed", ("192.0.2.1", 1))
    assert drops.counts == {"malformed": 1001, "expired": 1}
    assert [(each["event"], each["reason"], each["total"]) for each in logs] == [
        ("dht.datagram_dropped", "malformed", 1),
        ("dht.datagram_dropped", "expired", 1),
        ("dht.datagram_dropped", "malformed", 1001),
    ]


def test_the_duplicate_does_not_block() -> None:
    """The port's own socket never blocks the loop, whatever the given socket's mode was."""
    raw = stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM)
    with trio.socket.from_stdlib_socket(raw) as socket:
        port = UdpPort(socket)
        assert port._socket.getblocking() is False
        port._socket.close()
