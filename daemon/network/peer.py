"""One peer: whoever we have a session with, and what can be asked of it or told to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import trio

from moed.protocol.frames import Priority
from moed.protocol.messages import NoticeHead, RequestHead
from moed.protocol.receipts import session_name
from moed.protocol.tensors import Codec

from .errors import PeerLeaving, PeerLost

if TYPE_CHECKING:
    from moed.protocol.addresses import Address
    from moed.protocol.identity import NodeId, PublicKey
    from moed.protocol.tensors import Array, WireTensor

    from .calls import Reply
    from .connection import Connection
    from .limits import NetworkCounters

_REPLACEMENT_S = 1.0
"""How long a call waits for the session that a leaving duplicate stands for."""


class Peer:
    """A node that we have a session with. The object outlives a replaced session, but not the last one."""

    def __init__(self, connection: Connection, counters: NetworkCounters) -> None:
        self.node_id: NodeId = connection.session.peer.node_id
        self.public_key: PublicKey = connection.session.peer.public_key
        self._connection = connection
        self._counters = counters
        self._replaced = trio.Event()

    @property
    def address(self) -> Address:
        """Where the session goes; an incoming one shows the port that it came from, not one that listens."""
        return self._connection.address

    @property
    def is_outbound(self) -> bool:
        """Whether this node dialled."""
        return self._connection.is_outbound

    @property
    def session_name(self) -> bytes:
        """The present session's name in receipts; both sides know it."""
        return session_name(self._connection.session.peer.handshake_hash)

    @property
    def rtt_s(self) -> float | None:
        """The smoothed round trip of the keep-alive, None before the first answer."""
        return self._connection.rtt_s

    @property
    def connected_at(self) -> float:
        """When the present session opened, on `trio.current_time`."""
        return self._connection.opened_at or math.nan

    async def call(
        self,
        method: str,
        body: Any = None,
        tensors: Sequence[Array | WireTensor] = (),
        *,
        deadline_s: float,
        priority: Priority = Priority.NORMAL,
        codec: Codec = Codec.NONE,
        hashed: bool = False,
        max_answer_bytes: int | None = None,
    ) -> Reply:
        """Ask the peer and wait for its reply, at most ``deadline_s`` seconds; the rest of that time travels along.

        ``hashed`` asks for the hashes of request and answer in the call's receipt; both sides then hash every byte.
        ``max_answer_bytes`` bounds the reply as it travels, a refusal too: a longer one is refused by its first bytes,
        before there is memory for it. None: what the session takes at most (`SessionLimits.max_message_bytes`).

        The tensors' memory is read while it is sent: leave it alone until the reply. Raises `RemoteRefusal`,
        `DeadlineExceeded`, `PeerLost`, `Overloaded`, `AnswerTooLarge` or `RequestTooLarge`; `LocalProtocolError` for a
        body or tensor that cannot travel.
        """
        deadline = trio.current_time() + deadline_s
        head = RequestHead(method=method, body=body, hashed=hashed)
        while True:
            connection = await self._live_connection(deadline)
            try:
                return await connection.calls.call(
                    head,
                    tensors,
                    deadline=deadline,
                    priority=priority,
                    codec=codec,
                    max_answer_bytes=max_answer_bytes,
                )
            except PeerLeaving:
                # the peer began nothing of it, and the session that stays may be here already
                if not await self._await_replacement(connection, deadline):
                    raise

    async def notify(self, method: str, body: Any = None, *, priority: Priority = Priority.NORMAL) -> None:
        """Send a one-way message. Never waits for the peer: over the session's bound (1,024 notices or 16 MiB that
        wait to be sent) the oldest waiting one of the same priority is dropped and counted.

        Raises `PeerLost` or `RequestTooLarge`; `LocalProtocolError` for a body that cannot travel.
        """
        head = NoticeHead(method=method, body=body)
        self._counters.notices_dropped += self._connection.calls.notify(head, priority=priority)
        # gives the session's writer its turn, so that a burst of notices is sent and not dropped
        await trio.lowlevel.checkpoint()

    def drop(self) -> None:
        """Close the session at once: the peer broke a rule that only a layer above this one knows."""
        self._connection.end("unwanted")

    def __repr__(self) -> str:
        return f"Peer({self.node_id.hex()}, {self.address})"

    @property
    def connection(self) -> Connection:
        """The session's connection, for `Peers` alone."""
        return self._connection

    def replace(self, connection: Connection) -> None:
        """Go on over another session, for `Peers` alone."""
        self._connection = connection
        self._replaced.set()
        self._replaced = trio.Event()

    async def _live_connection(self, deadline: float) -> Connection:
        connection = self._connection
        if connection.is_leaving and not await self._await_replacement(connection, deadline):
            raise PeerLost("the session is over")
        return self._connection

    async def _await_replacement(self, connection: Connection, deadline: float) -> bool:
        """Whether another session than ``connection`` stands in, waiting a little if this one is leaving in order."""
        if self._connection is connection and connection.end_reason is None:
            with trio.move_on_at(min(deadline, trio.current_time() + _REPLACEMENT_S)):
                await self._replaced.wait()
        return self._connection is not connection and not self._connection.is_leaving
