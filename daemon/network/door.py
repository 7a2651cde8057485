"""Who may come in: counts of half-open and open connections, by host, and an accept loop that outlives overload."""

from __future__ import annotations

import errno
import struct
from collections import Counter, OrderedDict
from socket import SO_LINGER, SOL_SOCKET
from typing import TYPE_CHECKING

import structlog
import trio

from moed.protocol.addresses import Address
from moed.protocol.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connection import Connection
    from .limits import NetworkCounters, NetworkLimits

logger = structlog.get_logger()

# `accept` fails so when the process or the system is out of descriptors or memory: wait, it passes.
_OVERLOAD = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_OVERLOAD_PAUSE_S = 0.1
# What a peer may do between its SYN and our accept; the connection is lost, the listener is not.
_LOST_BEFORE_ACCEPT = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR, errno.ENETDOWN})


def address_of(stream: trio.SocketStream) -> Address | None:
    """Where the other end is, or None if it is gone already."""
    try:
        host, port, *_ = stream.socket.getpeername()
    except OSError:
        return None
    return Address(host.removeprefix("::ffff:"), port)


_REFUSAL_COST = 0.1  # of an accepted connection that gets a handshake
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of no time: nothing of it lingers in the kernel


class Pace:
    """How fast strangers may come in: a token bucket for all, and one for each host."""

    def __init__(self, limits: NetworkLimits) -> None:
        self._rate_per_s = limits.max_accepts_per_s
        self._burst = limits.accept_burst
        self._tokens = limits.accept_burst
        self._at_s = trio.current_time()
        self._hosts = Throttle(limits.max_accepts_per_host_per_s, limits.accept_burst / 2)

    async def wait(self) -> None:
        """Wait until the next connection may be accepted."""
        now_s = trio.current_time()
        self._tokens = min(self._tokens + (now_s - self._at_s) * self._rate_per_s, self._burst)
        self._at_s = now_s
        if self._tokens < 0:
            await trio.sleep(-self._tokens / self._rate_per_s)

    def admits(self, host: str) -> bool:
        """Count a connection from ``host``; False if it has had too many."""
        is_admitted = self._hosts.admit(host, trio.current_time())
        self._tokens -= 1 if is_admitted else _REFUSAL_COST
        return is_admitted


async def accept_forever(
    listener: trio.SocketListener, take: Callable[[trio.SocketStream], None], pace: Pace, counters: NetworkCounters
) -> None:
    """Pass connections to ``take`` at ``pace`` until cancelled; closes the listener.

    Raises OSError for a dead listener.
    """
    async with listener:
        while True:
            try:
                await pace.wait()
                stream = await listener.accept()
            except OSError as error:
                if error.errno in _OVERLOAD:
                    logger.warning("door.overloaded", reason=str(error))
                    await trio.sleep(_OVERLOAD_PAUSE_S)
                elif error.errno not in _LOST_BEFORE_ACCEPT:
                    raise
            else:
                address = address_of(stream)
                if address is not None and pace.admits(address.host):
                    take(stream)
                    continue
                counters.turned_away += 1
                stream.setsockopt(SOL_SOCKET, SO_LINGER, _RESET_ON_CLOSE)
                stream.socket.close()


class Door:
    """Counts incoming connections, and decides which has to go when there are too many."""

    def __init__(self, limits: NetworkLimits, counters: NetworkCounters) -> None:
        self._limits = limits
        self._counters = counters
        self._half_open: dict[str, OrderedDict[Connection, None]] = {}  # oldest first
        self._open: Counter[str] = Counter()

    @property
    def half_open(self) -> int:
        """How many strangers have not proved who they are yet."""
        return sum(len(waiting) for waiting in self._half_open.values())

    def enter(self, connection: Connection) -> None:
        """A stranger came. Over a limit the oldest half-open connection of the busiest host is ended for it."""
        host = connection.address.host
        waiting = self._half_open.setdefault(host, OrderedDict())
        waiting[connection] = None
        self._counters.accepted += 1
        if len(waiting) > self._limits.max_half_open_per_host:
            self._evict(host)
        elif self.half_open > self._limits.max_half_open:
            self._evict(max(self._half_open, key=lambda each: len(self._half_open[each])))

    def opened(self, connection: Connection) -> bool:
        """The stranger proved who it is; False if its host or the node has too many sessions already."""
        host = connection.address.host
        self._forget_half_open(connection)
        self._open[host] += 1
        return (
            self._open[host] <= self._limits.max_sessions_per_host and self._open.total() <= self._limits.max_sessions
        )

    def leave(self, connection: Connection, *, was_open: bool) -> None:
        """The connection is over."""
        host = connection.address.host
        self._forget_half_open(connection)
        if was_open:
            self._open[host] -= 1
            if not self._open[host]:
                del self._open[host]

    def _evict(self, host: str) -> None:
        oldest = next(iter(self._half_open[host]))
        self._forget_half_open(oldest)
        self._counters.turned_away += 1
        oldest.end("evicted")

    def _forget_half_open(self, connection: Connection) -> None:
        host = connection.address.host
        waiting = self._half_open.get(host)
        if waiting is not None:
            waiting.pop(connection, None)
            if not waiting:
                del self._half_open[host]
