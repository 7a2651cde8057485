"""All sessions of a node: accepted and dialled, one per peer, and the calls that go over them."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
import trio

from moed.protocol.buffer_pool import BufferPool
from moed.protocol.errors import RemoteProtocolError
from moed.protocol.frames import GoodbyeCode, Priority
from moed.protocol.handshake import SessionLimits
from moed.protocol.incoming import ByteBudget
from moed.protocol.messages import read_announced
from moed.protocol.session import Session

from .bandwidth import Bandwidth
from .calls import Call, Handler, Method, Receipts, Refused, Reply
from .connection import Connection
from .door import Door, Pace, accept_forever, address_of
from .errors import CallError, DialFailed
from .limits import NetworkCounters, NetworkLimits
from .peer import Peer
from .serving import Serving
from .traffic import Moved, PeerClass, Traffic

if TYPE_CHECKING:
    from moed.protocol.addresses import Address
    from moed.protocol.identity import Identity, NodeId, PublicKey

__all__ = ["Call", "Handler", "Method", "Peer", "Peers", "Priority", "Refused", "Reply"]

logger = structlog.get_logger()

SIMULTANEOUS_S = 5.0
"""Two sessions of opposite directions that open within this time were dialled at the same moment: the one that the
lower node id dialled stays. Later, the newer one does: whoever dials again has lost the older one."""


@dataclass(slots=True)
class _Dial:
    """A dial under way: everybody who wants this peer waits for the one attempt."""

    done: trio.Event = field(default_factory=trio.Event)
    peer: Peer | None = None
    failure: DialFailed | None = None


class Peers:
    """Every session of this node: one per peer, whoever dialled.

    ``handlers`` serve the peers' calls by method name. ``on_connected`` runs as a task of the new session (and may call
    the peer); ``on_disconnected`` must not wait. ``random_bytes`` gives the ephemeral keys. ``classify`` says what a
    key is, for `traffic`.
    """

    def __init__(
        self,
        identity: Identity,
        network_id: bytes,
        *,
        handlers: Mapping[str, Handler | Method] | None = None,
        limits: SessionLimits | None = None,
        network_limits: NetworkLimits | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
        on_connected: Callable[[Peer], Awaitable[None]] | None = None,
        on_disconnected: Callable[[Peer], None] | None = None,
        receipts: Receipts | None = None,
        classify: Callable[[PublicKey], PeerClass] = lambda _key: PeerClass.OTHER,
    ) -> None:
        self.bandwidth = Bandwidth()
        self._traffic = Traffic(classify)
        self._receipts = receipts
        self.counters = NetworkCounters()
        self._identity = identity
        self._network_id = network_id
        self._methods: dict[str, Method] = {}
        self._session_limits = limits or SessionLimits()
        self._limits = network_limits or NetworkLimits()
        self._random_bytes = random_bytes
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._budget = ByteBudget(self._limits.max_inflight_bytes)
        self._pool = BufferPool(self._limits.max_pooled_bytes)
        self._door = Door(self._limits, self.counters)
        self._peers: dict[NodeId, Peer] = {}
        self._dials: dict[NodeId | Address, _Dial] = {}
        self._nursery: trio.Nursery | None = None
        self.add_handlers(handlers or {})

    def add_handlers(self, handlers: Mapping[str, Handler | Method]) -> None:
        """Serve these methods too; a method that is served already is a bug of the caller."""
        twice = self._methods.keys() & handlers.keys()
        if twice:
            raise ValueError(f"methods are served twice: {sorted(twice)}")
        self._methods.update((name, one if isinstance(one, Method) else Method(one)) for name, one in handlers.items())

    def connected(self) -> Sequence[Peer]:
        """The peers that we have a session with, the longest known first; those that are leaving are not among them."""
        return tuple(peer for peer in self._peers.values() if not peer.connection.is_leaving)

    def get(self, node_id: NodeId) -> Peer | None:
        """The peer with this node id, if we have a session with it that is not about to end."""
        peer = self._peers.get(node_id)
        return None if peer is None or peer.connection.is_leaving else peer

    def traffic(self) -> Mapping[PeerClass, Moved]:
        """The bytes over all sessions since the start, by what the peer is; those of a handshake count after it."""
        for peer in self._peers.values():
            self._traffic.book(peer.connection.moved, peer.public_key)
        return self._traffic.totals

    async def run(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept and keep sessions until cancelled; owns every connection and closes the listeners.

        Cancelled, each session says goodbye and closes within `NetworkLimits.goodbye_s`.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                pace = Pace(self._limits)
                for listener in listeners:
                    nursery.start_soon(accept_forever, listener, self._take_stream, pace, self.counters)
                task_status.started()
                while True:
                    await trio.sleep(self._limits.keepalive_s)
                    self._pool.trim()
            finally:
                self._nursery = None

    async def connect(self, address: Address, expected: NodeId | None, *, timeout_s: float) -> Peer:
        """A session with the node at ``address``, which must prove to be ``expected`` if that is given.

        A session that exists is returned; dials of one node at the same time share one attempt, which goes on even if
        its first caller gives up. Raises `DialFailed`.
        """
        if expected is not None and (known := self.get(expected)) is not None:
            return known
        if expected == self._identity.node_id:
            raise DialFailed("itself", "this node does not dial itself")
        dial = self._start_dial(address, expected)
        with trio.move_on_after(timeout_s):
            await dial.done.wait()
        if dial.peer is not None:
            return dial.peer
        if dial.failure is not None:
            raise DialFailed(dial.failure.code, dial.failure.reason)
        raise DialFailed("timeout", f"no session with {address} within {timeout_s} s")

    # -- dialling --------------------------------------------------------------------------------------------------

    def _start_dial(self, address: Address, expected: NodeId | None) -> _Dial:
        if self._nursery is None:
            raise DialFailed("not_running", "the network is not running")
        key = expected or address
        dial = self._dials.get(key)
        if dial is None:
            dial = self._dials[key] = _Dial()
            self._nursery.start_soon(self._dial, dial, key, address, expected)
        return dial

    async def _dial(self, dial: _Dial, key: NodeId | Address, address: Address, expected: NodeId | None) -> None:
        def opened(connection: Connection) -> None:
            self._register(connection)
            dial.peer = connection.peer
            self._end_dial(dial, key)

        try:
            stream = await self._open_stream(address)
            connection = self._make_connection(stream, address, is_outbound=True, expected=expected)
            await self._run_connection(connection, opened)
            dial.failure = connection.failure
        except DialFailed as failure:
            dial.failure = failure
        finally:
            if not dial.done.is_set():
                dial.failure = dial.failure or DialFailed("not_running", "the network stopped")
                self._end_dial(dial, key)

    def _end_dial(self, dial: _Dial, key: NodeId | Address) -> None:
        # A later dial of the same key may be under way while this connection lives on.
        if self._dials.get(key) is dial:
            del self._dials[key]
        dial.done.set()

    async def _open_stream(self, address: Address) -> trio.SocketStream:
        try:
            with trio.fail_after(self._limits.handshake_s):
                return await trio.open_tcp_stream(address.host, address.port)
        except trio.TooSlowError as error:
            raise DialFailed("timeout", f"{address} does not answer") from error
        except OSError as error:
            raise DialFailed("unreachable", f"{address}: {error}") from error

    # -- accepting -------------------------------------------------------------------------------------------------

    def _take_stream(self, stream: trio.SocketStream) -> None:
        address = address_of(stream)
        if self._nursery is None or address is None:
            stream.socket.close()
            return
        connection = self._make_connection(stream, address, is_outbound=False, expected=None)
        self._door.enter(connection)
        self._nursery.start_soon(self._serve_stranger, connection)

    async def _serve_stranger(self, connection: Connection) -> None:
        was_open = False

        def opened(connection: Connection) -> None:
            nonlocal was_open
            was_open = True
            if self._door.opened(connection):
                self._register(connection)
            else:
                self.counters.turned_away += 1
                connection.end("unwanted")

        try:
            await self._run_connection(connection, opened)
        finally:
            self._door.leave(connection, was_open=was_open)

    # -- both ------------------------------------------------------------------------------------------------------

    def _make_connection(
        self, stream: trio.SocketStream, address: Address, *, is_outbound: bool, expected: NodeId | None
    ) -> Connection:
        session = Session(
            self._identity,
            self._network_id,
            is_initiator=is_outbound,
            ephemeral=self._random_bytes(32),
            limits=self._session_limits,
            expected=expected,
            budget=self._budget,
            allocate=self._pool.allocate,
            screen=self._screen,
        )
        return Connection(
            stream,
            session,
            address=address,
            is_outbound=is_outbound,
            limits=self._limits,
            counters=self.counters,
            serving=lambda connection: Serving(connection, self._methods, self._limits, self.counters, self._receipts),
            receipts=self._receipts,
            bandwidth=self.bandwidth,
        )

    def _screen(self, first: memoryview, size: int) -> bool:
        """Whether a large request, by its first bytes, is worth memory. Raises `RemoteProtocolError` for none."""
        announced = read_announced(first, size)
        method = self._methods.get(announced.head.method) if announced is not None else None
        if announced is None or method is None or method.screen is None:
            return True
        try:
            method.screen(announced)
        except (Refused, RemoteProtocolError) as error:
            self.counters.calls_refused += 1
            logger.debug("call.unfit", method=announced.head.method, reason=str(error))
            return False
        return True

    async def _run_connection(self, connection: Connection, opened: Callable[[Connection], None]) -> None:
        """Drive a connection to its end and unregister it."""
        try:
            await connection.run(opened)
        finally:
            self._unregister(connection)

    def _register(self, connection: Connection) -> None:
        """A session opened: it becomes its peer's, or of two with the same peer one is retired."""
        self.counters.sessions_opened += 1
        peer = self._peers.get(connection.node_id)
        if peer is not None and self._are_simultaneous(peer.connection, connection):
            connection.peer = peer
            if connection.is_outbound == (self._identity.node_id < peer.node_id):
                older = peer.connection
                peer.replace(connection)
                self._log_opened(connection)
                older.retire(GoodbyeCode.DUPLICATE)
            else:
                connection.retire(GoodbyeCode.DUPLICATE)
            return
        if peer is not None:
            # The peer lost the older session, perhaps with all that it knew: it is met anew.
            self._disconnect(peer)
            peer.connection.retire(GoodbyeCode.DUPLICATE)
        peer = connection.peer = Peer(connection, self.counters)
        self._peers[peer.node_id] = peer
        self._log_opened(connection)
        if self._on_connected is not None:
            connection.start(self._greet, peer)

    @staticmethod
    def _are_simultaneous(older: Connection, newer: Connection) -> bool:
        """Whether both ends dialled at the same moment; both see it alike, but for a dial just at the bound."""
        if older.is_outbound == newer.is_outbound or older.end_reason is not None or older.opened_at is None:
            return False
        if older.is_leaving:
            return older.heard_goodbye is GoodbyeCode.DUPLICATE
        return trio.current_time() - older.opened_at <= SIMULTANEOUS_S

    async def _greet(self, peer: Peer) -> None:
        assert self._on_connected is not None
        try:
            await self._on_connected(peer)
        except CallError as error:
            logger.debug("session.greeting_failed", peer=peer.node_id.hex(), reason=str(error))

    def _unregister(self, connection: Connection) -> None:
        self._traffic.book(connection.moved, None if connection.opened_at is None else connection.public_key)
        reason = connection.end_reason or "shutdown"
        if connection.opened_at is None:
            self.counters.handshakes_failed += 1
            # strangers choose how often this happens, so it is counted, and told only to who asks for it
            logger.debug("session.not_opened", address=str(connection.address), reason=str(connection.failure))
            return
        self.counters.count_end(reason)
        log = logger.warning if reason in ("protocol_error", "bug") else logger.info
        log(
            "session.closed",
            peer=connection.node_id.hex(),
            address=str(connection.address),
            reason=reason,
            detail=connection.failure.reason if connection.failure and reason == "protocol_error" else None,
        )
        peer = connection.peer
        if peer is not None and peer.connection is connection and self._peers.get(peer.node_id) is peer:
            self._disconnect(peer)

    def _disconnect(self, peer: Peer) -> None:
        del self._peers[peer.node_id]
        if self._on_disconnected is not None:
            self._on_disconnected(peer)

    @staticmethod
    def _log_opened(connection: Connection) -> None:
        logger.info(
            "session.opened",
            peer=connection.node_id.hex(),
            address=str(connection.address),
            direction="out" if connection.is_outbound else "in",
            cipher=connection.session.peer.cipher.value,
        )
