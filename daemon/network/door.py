"""Who may come in: counts of half-open and open connections, by host, and an accept loop that outlives overload."""

from __future__ import annotations

import errno
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

import structlog
import trio

from moed.protocol.addresses import Address

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


async def accept_forever(listener: trio.SocketListener, take: Callable[[trio.SocketStream], None]) -> None:
    """Pass every connection to ``take`` until cancelled; closes the listener. Raises OSError for a dead listener."""
    async with listener:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno in _OVERLOAD:
                    logger.warning("door.overloaded", reason=str(error))
                    await trio.sleep(_OVERLOAD_PAUSE_S)
                elif error.errno not in _LOST_BEFORE_ACCEPT:
                    raise
            else:
                take(stream)


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
