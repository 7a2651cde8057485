"""A TCP socket read and written without a turn of the event loop for each call, which trio's own methods take.

trio yields after every send and receive; that is right for most programs, and here it was three of the five turns that
a small call took at each end. So the socket is used as it is, non-blocking, and trio is asked only to wait; whoever
loops yields by `trio.lowlevel.checkpoint` now and then.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

from .bandwidth import MAX_PIECE_BYTES, Bandwidth
from .traffic import Moved

if TYPE_CHECKING:
    from moed.protocol.aead import Buffer

_NOT_SENT_BYTES = 512 << 10
"""What the kernel may hold that it has not sent: more, and a vote waits behind it; less, and a fast line runs dry."""


class Line:
    """The descriptor of a `trio.SocketStream`, which stays the owner and is closed by its owner.

    What is sent and received is added to ``moved``.
    """

    def __init__(self, stream: trio.SocketStream, bandwidth: Bandwidth, moved: Moved) -> None:
        self._moved = moved
        self._sent, self._received = bandwidth.sent, bandwidth.received
        self._owner = stream.socket
        # a second object on the same descriptor; `release` lets go of it before the owner closes it
        self._socket = socket.socket(fileno=stream.socket.fileno())
        self._socket.setblocking(False)
        if hasattr(socket, "TCP_NOTSENT_LOWAT") and self._socket.family in (socket.AF_INET, socket.AF_INET6):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _NOT_SENT_BYTES)

    def send_nowait(self, buffer: Buffer) -> int:
        """Send what the kernel and the rate take now, perhaps nothing. Raises OSError."""
        if self._sent.bytes_per_s is not None:
            if not self._sent.is_free:
                return 0
            buffer = memoryview(buffer)[:MAX_PIECE_BYTES]
        try:
            count = self._socket.send(buffer)
        except BlockingIOError:
            return 0
        self._moved.sent += count
        self._sent.pay(count)
        return count

    def receive_nowait(self, space: memoryview) -> int | None:
        """Read into ``space``: the bytes read, 0 at the stream's end, None if nothing is there yet, or may be taken.

        Raises OSError.
        """
        if self._received.bytes_per_s is not None:
            if not self._received.is_free:
                return None
            space = space[:MAX_PIECE_BYTES]
        try:
            count = self._socket.recv_into(space)
        except BlockingIOError:
            return None
        self._moved.received += count
        self._received.pay(count)
        return count

    async def wait_writable(self) -> None:
        """Wait until the rate and the kernel take more."""
        await self._sent.wait_free()
        await trio.lowlevel.wait_writable(self._owner)

    async def wait_readable(self) -> None:
        """Wait until there is something to read, and the rate lets us."""
        await self._received.wait_free()
        await trio.lowlevel.wait_readable(self._owner)

    def release(self) -> None:
        """Let go of the descriptor; the line can no longer be used."""
        self._socket.detach()
