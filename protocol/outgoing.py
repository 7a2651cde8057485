"""Which waiting message sends its next bytes: admission by the peer's limits, then fair shares by priority.

Between priorities this is start-time fair queuing: each class has a virtual clock that runs forward by the bytes sent
divided by the class's weight, and the class whose clock is behind goes next; a class that was idle starts at the
present, so a vote goes before the next batch of a tensor and yet no class waits for ever. Inside a class messages take
turns of one batch. A message without credit is set aside until its window opens.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import LocalProtocolError
from .frames import (
    DATA_HEAD_BYTES,
    MAX_DEADLINE_MS,
    NO_DEADLINE_MS,
    OPEN_HEAD_BYTES,
    WEIGHT,
    Data,
    Priority,
    Role,
    encode_frame,
    open_head,
)
from .noise import MAX_PLAINTEXT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .aead import Buffer
    from .handshake import SessionLimits

# Up to this length a whole message rides in its OPEN frame; the copy is cheaper than a Noise message of its own.
INLINE_BYTES = 16 << 10
# Of a longer message only a first buffer (its CBOR head) up to this length does.
INLINE_HEAD_BYTES = 1 << 10
# One raw message: a multiple of a cache line under the Noise limit. Measured: 4 of them a turn are best, 8 are worse.
CHUNK_BYTES = MAX_PLAINTEXT_BYTES // 64 * 64
BATCH_CHUNKS = 4
# Messages up to this length are bounded by the number of streams alone, so tensors in flight never hold up votes.
SMALL_MESSAGE_BYTES = 64 << 10

MAX_WAITING_NOTICES = 1024
MAX_WAITING_NOTICE_BYTES = 16 << 20


@dataclass(slots=True)
class OutgoingMessage:
    """A message that is waiting or being sent; its buffers are read when their turn comes, never copied before."""

    stream: int
    role: Role
    priority: Priority
    deadline_s: float | None
    buffers: deque[memoryview]
    size: int
    unsent: int
    credit: int
    is_opened: bool = False

    def take(self, limit: int) -> memoryview:
        """The next bytes, at most ``limit``, as a view into one buffer."""
        first = self.buffers[0]
        if len(first) <= limit:
            self.buffers.popleft()
            piece = first
        else:
            piece, self.buffers[0] = first[:limit], first[limit:]
        self.unsent -= len(piece)
        self.credit -= len(piece)
        return piece

    @property
    def inline_bytes(self) -> int:
        """How many bytes ride in the OPEN frame."""
        if self.size <= INLINE_BYTES:
            return self.size
        first = len(self.buffers[0])
        return first if first <= INLINE_HEAD_BYTES else 0

    @property
    def is_charged(self) -> bool:
        """Whether it counts against the receiver's bytes in flight."""
        return self.size > SMALL_MESSAGE_BYTES

    @property
    def takes_a_stream(self) -> bool:
        """Whether the receiver counts a stream for it: a request, or a notice of more than one frame."""
        return self.role is Role.REQUEST or (self.role is Role.NOTICE and self.size > INLINE_BYTES)


def flat_buffers(buffers: Iterable[Buffer]) -> tuple[deque[memoryview], int]:
    """The non-empty ``buffers`` as byte views, and their length together."""
    views = deque(view for view in (memoryview(buffer).cast("B") for buffer in buffers) if len(view))
    return views, sum(len(view) for view in views)


@dataclass(slots=True)
class _Class:
    """The messages of one priority: not yet admitted, and ready to send."""

    waiting: OrderedDict[int, OutgoingMessage] = field(default_factory=OrderedDict)
    ready: OrderedDict[int, OutgoingMessage] = field(default_factory=OrderedDict)
    notices: OrderedDict[int, int] = field(default_factory=OrderedDict)  # waiting ones: stream -> bytes
    clock: int = 0

    @property
    def notice_bytes(self) -> int:
        return sum(self.notices.values())


@dataclass(slots=True)
class Filled:
    """What one turn yielded: raw chunks to follow the block, and the messages that are over."""

    chunks: list[memoryview] = field(default_factory=list)
    sent: list[OutgoingMessage] = field(default_factory=list)
    expired: list[OutgoingMessage] = field(default_factory=list)


class Outbox:
    """Everything that waits to be sent to one peer, under that peer's limits."""

    def __init__(self, peer_limits: SessionLimits) -> None:
        self._limits = peer_limits
        self._classes = {priority: _Class() for priority in Priority}
        self._parked: dict[int, OutgoingMessage] = {}
        self._clock = 0
        # What the peer holds of ours: streams it counts, and charged bytes of requests and of responses.
        self._streams: set[int] = set()
        self._charged: dict[Role, dict[int, int]] = {Role.REQUEST: {}, Role.RESPONSE: {}}

    def push(
        self, stream: int, role: Role, priority: Priority, buffers: Iterable[Buffer], deadline_s: float | None
    ) -> int:
        """Queue a message. Returns how many older notices were dropped for it (only ever for a notice).

        Raises `LocalProtocolError` for a message that the peer would refuse: empty or over its limit.
        """
        views, size = flat_buffers(buffers)
        limit = self.limit_of(role)
        if not 0 < size <= limit:
            raise LocalProtocolError(f"a message of {size} bytes; the peer takes 1 to {limit}")
        message = OutgoingMessage(
            stream, role, priority, deadline_s, views, size, unsent=size, credit=self._limits.window_bytes
        )
        self._classes[priority].waiting[stream] = message
        return self._bound_notices(message) if role is Role.NOTICE else 0

    def limit_of(self, role: Role) -> int:
        """The longest message of this role that the peer takes."""
        limits = self._limits
        longest = limits.max_notice_bytes if role is Role.NOTICE else limits.max_message_bytes
        return min(longest, limits.max_inflight_bytes)

    def drop(self, stream: int) -> OutgoingMessage | None:
        """Send nothing more of this stream; returns what was still to be sent of it, if anything was."""
        parked = self._parked.pop(stream, None)
        for queue in self._classes.values():
            queue.notices.pop(stream, None)
            parked = queue.waiting.pop(stream, None) or queue.ready.pop(stream, None) or parked
        return parked

    def release(self, stream: int) -> None:
        """The peer no longer holds this stream, so its room is free again."""
        self._streams.discard(stream)
        for charged in self._charged.values():
            charged.pop(stream, None)

    def grant(self, stream: int, credit: int) -> None:
        """The peer takes ``credit`` more bytes of this stream; unknown streams are over already."""
        message = self._parked.pop(stream, None)
        if message is not None:
            message.credit += credit
            self._make_ready(message)
            return
        for queue in self._classes.values():
            if stream in queue.ready:
                queue.ready[stream].credit += credit

    @property
    def has_unsent(self) -> bool:
        """Whether any message is not wholly sent, blocked ones included."""
        return bool(self._parked) or any(queue.waiting or queue.ready for queue in self._classes.values())

    def fill(self, block: bytearray, now_s: float) -> Filled:
        """Append the frames of one turn to ``block``; raw chunks that follow it are in the result."""
        filled = Filled()
        self._admit()
        while (queue := self._next_class()) is not None:
            _, message = queue.ready.popitem(last=False)
            if not message.is_opened:
                if self._has_expired(message, now_s):
                    self.release(message.stream)
                    filled.expired.append(message)
                    continue
                if not self._append_open(block, message, now_s):
                    queue.ready[message.stream] = message
                    queue.ready.move_to_end(message.stream, last=False)
                    break
            if message.unsent == 0:
                self._finish(message, filled)
            elif message.credit == 0:
                self._parked[message.stream] = message
            else:
                self._append_data(block, message, filled)
                break  # raw body ends a block
        return filled

    @staticmethod
    def _has_expired(message: OutgoingMessage, now_s: float) -> bool:
        return message.deadline_s is not None and message.deadline_s - now_s < 1e-3

    def _append_open(self, block: bytearray, message: OutgoingMessage, now_s: float) -> bool:
        """Append the OPEN frame with its inline bytes, unless the block has no room for it (False)."""
        inline = message.inline_bytes
        if len(block) + OPEN_HEAD_BYTES + inline + DATA_HEAD_BYTES > MAX_PLAINTEXT_BYTES:
            return False
        remaining_ms = NO_DEADLINE_MS
        if message.deadline_s is not None:
            remaining_ms = min(int((message.deadline_s - now_s) * 1000 + 0.5), MAX_DEADLINE_MS)
        block += open_head(message.stream, message.role, message.priority, remaining_ms, message.size, inline)
        self._charge_clock(message, OPEN_HEAD_BYTES + inline)
        while inline:
            piece = message.take(inline)
            block += piece
            inline -= len(piece)
        message.is_opened = True
        return True

    def _append_data(self, block: bytearray, message: OutgoingMessage, filled: Filled) -> None:
        """Append a DATA frame for one batch, and its bytes to the chunks."""
        size = min(message.unsent, message.credit, BATCH_CHUNKS * CHUNK_BYTES)
        block += encode_frame(Data(message.stream, size))
        self._charge_clock(message, size)
        while size:
            piece = message.take(min(size, CHUNK_BYTES))
            filled.chunks.append(piece)
            size -= len(piece)
        if message.unsent == 0:
            self._finish(message, filled)
        else:
            self._classes[message.priority].ready[message.stream] = message

    def _finish(self, message: OutgoingMessage, filled: Filled) -> None:
        # The peer holds a request until it has answered; notices and responses it is done with once they arrived.
        if message.role is not Role.REQUEST:
            self.release(message.stream)
        filled.sent.append(message)

    def _admit(self) -> None:
        for queue in self._classes.values():
            while queue.waiting:
                message = next(iter(queue.waiting.values()))
                if not self._has_room(message):
                    break
                del queue.waiting[message.stream]
                queue.notices.pop(message.stream, None)
                if message.takes_a_stream:
                    self._streams.add(message.stream)
                if message.is_charged:
                    self._charged_for(message.role)[message.stream] = message.size
                self._make_ready(message)

    def _has_room(self, message: OutgoingMessage) -> bool:
        if message.takes_a_stream and len(self._streams) >= self._limits.max_streams:
            return False
        if not message.is_charged:
            return True
        in_flight = sum(self._charged_for(message.role).values())
        return in_flight + message.size <= self._limits.max_inflight_bytes

    def _charged_for(self, role: Role) -> dict[int, int]:
        return self._charged[Role.RESPONSE if role is Role.RESPONSE else Role.REQUEST]

    def _make_ready(self, message: OutgoingMessage) -> None:
        queue = self._classes[message.priority]
        if not queue.ready:
            queue.clock = max(queue.clock, self._clock)
        queue.ready[message.stream] = message

    def _next_class(self) -> _Class | None:
        ready = [(self._classes[priority].clock, priority) for priority in Priority if self._classes[priority].ready]
        return self._classes[min(ready)[1]] if ready else None

    def _charge_clock(self, message: OutgoingMessage, size: int) -> None:
        queue = self._classes[message.priority]
        self._clock = queue.clock
        queue.clock += size * max(WEIGHT.values()) // WEIGHT[message.priority]

    def _bound_notices(self, message: OutgoingMessage) -> int:
        """Keep the newest waiting notices of this priority, within count and bytes: what is late is stale."""
        queue = self._classes[message.priority]
        queue.notices[message.stream] = message.size
        dropped = 0
        while len(queue.notices) > 1 and (
            len(queue.notices) > MAX_WAITING_NOTICES or queue.notice_bytes > MAX_WAITING_NOTICE_BYTES
        ):
            stream, _ = queue.notices.popitem(last=False)
            del queue.waiting[stream]
            dropped += 1
        return dropped
