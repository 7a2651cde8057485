"""What a peer is sending us: messages being put together inside the limits that we announced.

A message's whole length comes first, so a message over a limit is refused before anything is allocated for it. The
body is decrypted straight into its place; nothing is put together twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import Malformed, TooLarge, Unexpected
from .frames import ResetCode, Role
from .outgoing import SMALL_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from .frames import Open, Priority
    from .handshake import SessionLimits


class ByteBudget:
    """Bytes that several sessions together may hold for incoming messages."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def try_take(self, size: int) -> bool:
        """Take ``size`` bytes if they are free; False leaves the budget as it was."""
        if self.used_bytes + size > self.limit_bytes:
            return False
        self.used_bytes += size
        return True

    def release(self, size: int) -> None:
        """Give ``size`` bytes back."""
        self.used_bytes -= size


@dataclass(slots=True)
class IncomingMessage:
    """A message of which ``received`` bytes are in ``buffer``; ``credit`` more were promised to the sender."""

    stream: int
    role: Role
    priority: Priority
    remaining_ms: int
    buffer: memoryview
    credit: int
    received: int = 0

    @property
    def missing(self) -> int:
        """Bytes still to come."""
        return len(self.buffer) - self.received


class Inbox:
    """The incoming messages of one session, with the limits that it announced."""

    def __init__(
        self,
        limits: SessionLimits,
        budget: ByteBudget,
        allocate: Callable[[int], memoryview],
        screen: Callable[[memoryview, int], bool],
    ) -> None:
        """``allocate`` gives the buffer of a message that passed every limit.

        ``screen`` says of a large request, by its first bytes and its size, whether it is worth one.
        """
        self._screen = screen
        self._limits = limits
        self._budget = budget
        self._allocate = allocate
        self._assembling: dict[int, IncomingMessage] = {}
        self._requests: set[int] = set()  # being received or served, and longer notices being received
        self._charged: dict[Role, dict[int, int]] = {Role.REQUEST: {}, Role.RESPONSE: {}}

    @property
    def open_requests(self) -> int:
        """How many streams count against the limit now."""
        return len(self._requests)

    def get(self, stream: int) -> IncomingMessage | None:
        """The message being received on ``stream``, if one is."""
        return self._assembling.get(stream)

    def holds(self, stream: int) -> bool:
        """Whether the stream is being received or served."""
        return stream in self._requests or stream in self._assembling

    def open(self, frame: Open) -> IncomingMessage | ResetCode:
        """Begin a message with its inline bytes, or say why not: UNFIT, or BUSY without room in the node's budget.

        Raises `TooLarge` over an announced limit (an honest peer counts as we do) and `Unexpected` for a stream
        that is open already.
        """
        if self.holds(frame.stream):
            raise Unexpected(f"stream {frame.stream} is open already")
        self._check_limits(frame)
        is_charged = frame.size > SMALL_MESSAGE_BYTES
        if is_charged and frame.role is Role.REQUEST and not self._screen(memoryview(frame.inline), frame.size):
            return ResetCode.UNFIT
        if is_charged and not self._budget.try_take(frame.size):
            return ResetCode.BUSY
        if is_charged:
            self._charged_for(frame.role)[frame.stream] = frame.size
        if self._takes_a_stream(frame):
            self._requests.add(frame.stream)
        inline = len(frame.inline)
        message = IncomingMessage(
            frame.stream,
            frame.role,
            frame.priority,
            frame.remaining_ms,
            self._allocate(frame.size),
            credit=self._limits.window_bytes - inline,
            received=inline,
        )
        message.buffer[:inline] = frame.inline
        self._assembling[frame.stream] = message
        return message

    def expect(self, message: IncomingMessage, length: int) -> None:
        """Check that ``length`` bytes of body may follow. Raises `Malformed` or `Unexpected`."""
        if length > message.missing:
            raise Malformed(f"{length} bytes follow where {message.missing} are missing")
        if length > message.credit:
            raise Unexpected(f"{length} bytes follow where the window has {message.credit}")

    def take(self, message: IncomingMessage, count: int) -> int:
        """Count ``count`` bytes that now stand in the buffer; returns the credit to grant, mostly 0."""
        message.received += count
        message.credit -= count
        window = self._limits.window_bytes
        if message.credit > window // 2 or message.missing <= message.credit:
            return 0
        granted = window - message.credit
        message.credit = window
        return granted

    def complete(self, message: IncomingMessage) -> None:
        """The message is whole: its reader has it now. A request is held until `release`."""
        del self._assembling[message.stream]
        if message.role is not Role.REQUEST:
            self.release(message.stream)

    def release(self, stream: int) -> None:
        """The stream is over on our side, or its message was handed on."""
        self._assembling.pop(stream, None)
        self._requests.discard(stream)
        for charged in self._charged.values():
            size = charged.pop(stream, None)
            if size is not None:
                self._budget.release(size)

    def release_all(self) -> None:
        """The session is over: give everything back."""
        streams = {*self._assembling, *self._requests}
        for charged in self._charged.values():
            streams.update(charged)
        for stream in streams:
            self.release(stream)

    def _check_limits(self, frame: Open) -> None:
        limits = self._limits
        longest = limits.max_notice_bytes if frame.role is Role.NOTICE else limits.max_message_bytes
        if frame.size > longest:
            raise TooLarge(f"a {frame.role.name.lower()}", frame.size, longest)
        if len(frame.inline) > limits.window_bytes:
            raise TooLarge("inline bytes", len(frame.inline), limits.window_bytes)
        if self._takes_a_stream(frame) and len(self._requests) >= limits.max_streams:
            raise TooLarge("open streams", len(self._requests) + 1, limits.max_streams)
        in_flight = sum(self._charged_for(frame.role).values()) + frame.size
        if frame.size > SMALL_MESSAGE_BYTES and in_flight > limits.max_inflight_bytes:
            raise TooLarge("bytes in flight", in_flight, limits.max_inflight_bytes)

    @staticmethod
    def _takes_a_stream(frame: Open) -> bool:
        return frame.role is Role.REQUEST or (frame.role is Role.NOTICE and len(frame.inline) < frame.size)

    def _charged_for(self, role: Role) -> dict[int, int]:
        return self._charged[Role.RESPONSE if role is Role.RESPONSE else Role.REQUEST]
