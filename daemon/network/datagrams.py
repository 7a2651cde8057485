"""The UDP port: datagrams in batches from a trio socket, out through an asyncio transport, dropped ones counted.

trio-asyncio's own datagram endpoint costs 44 µs a datagram, a socket drained in a loop 3 µs; and whatever can send
and receive datagrams (`DatagramPort`) fits under the same protocol, so a network in memory needs no socket at all.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket as stdlib_socket
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import structlog
import trio

from .flood_filter import drop_from

Address: TypeAlias = tuple[str, int]
"""A numeric host and a port; IPv4 in its plain form, also on a socket that serves both families."""

RECEIVE_BYTES = 2048
BATCH = 256
RECEIVE_BUFFER_BYTES = 4 << 20
"""Asked of the system, which gives what it may: room for a flood while this process waits for its turn."""
LOG_EVERY_S = 10.0

logger = structlog.get_logger(__name__)


class DatagramPort(Protocol):
    """What the DHT needs of a network: send without waiting, receive in batches."""

    def send(self, data: bytes, address: Address) -> None:
        """Send one datagram, or lose it, as UDP may; never waits and never raises for the network's sake."""

    def reaches(self, host: str) -> bool:
        """Whether datagrams can go to this numeric ``host`` at all: its family is one of ours."""

    def block(self, addresses: Sequence[Address]) -> bool:
        """Drop what comes from ``addresses``, and only that, before it is received; whether this port can."""

    async def receive(self) -> list[tuple[bytes, Address]]:
        """Wait for datagrams; returns at least one attempt's worth, possibly none."""


class UdpPort:
    """A bound UDP socket as a `DatagramPort`. Closes its own duplicate; the caller closes the socket it gave."""

    def __init__(self, socket: trio.socket.SocketType) -> None:
        # trio's socket sends only by awaiting; the protocol sends from plain functions.
        self._socket = stdlib_socket.socket(fileno=os.dup(socket.fileno()))
        self._socket.setblocking(False)
        self._socket.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._is_v6 = self._socket.family == stdlib_socket.AF_INET6
        self.unsent = 0
        """Datagrams that the system did not take (full buffer, no route)."""

    def send(self, data: bytes, address: Address) -> None:
        host, port = address
        if self._is_v6 and ":" not in host:
            host = "::ffff:" + host
        try:
            self._socket.sendto(data, (host, port))
        except OSError:
            self.unsent += 1

    def reaches(self, host: str) -> bool:
        return self._is_v6 or ":" not in host

    async def receive(self) -> list[tuple[bytes, Address]]:
        await trio.lowlevel.wait_readable(self._socket)
        batch: list[tuple[bytes, Address]] = []
        for _ in range(BATCH):
            try:
                data, address = self._socket.recvfrom(RECEIVE_BYTES)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                    break
                continue  # an ICMP error about an earlier datagram of ours, reported here by the system
            host = address[0].removeprefix("::ffff:") if self._is_v6 and "." in address[0] else address[0]
            batch.append((data, (host, address[1])))
        return batch

    def block(self, addresses: Sequence[Address]) -> bool:
        """Drop what comes from ``addresses``, and only that, before it is received; whether the system does so."""
        return drop_from(self._socket, addresses)

    def close(self) -> None:
        """Close the duplicate; a second call does nothing."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


class PortTransport(asyncio.DatagramTransport):
    """The asyncio face of a `DatagramPort`, as the kademlia package's protocol expects it."""

    def __init__(self, port: DatagramPort) -> None:
        super().__init__()
        self._port = port
        self._is_closing = False

    def sendto(self, data: Any, addr: Any = None) -> None:
        if not self._is_closing:
            self._port.send(data, addr)

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True

    def abort(self) -> None:
        self._is_closing = True


class Drops:
    """Counts what was dropped, by reason, and logs each reason at most once in `LOG_EVERY_S`."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self.counts: Counter[str] = Counter()
        self._logged_at_s: dict[str, float] = {}

    def count(self, reason: str, address: Address, *, detail: str = "") -> bool:
        """Count one dropped datagram; returns whether this one was logged."""
        self.counts[reason] += 1
        now_s = self._now_s()
        if abs(now_s - self._logged_at_s.get(reason, float("-inf"))) < LOG_EVERY_S:
            return False
        self._logged_at_s[reason] = now_s
        logger.info(
            "dht.datagram_dropped",
            reason=reason,
            total=self.counts[reason],
            host=address[0],
            port=address[1],
            detail=detail,
        )
        return True
