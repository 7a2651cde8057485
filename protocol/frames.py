"""The frames inside a session's encrypted messages, as bytes and as records.

Every transport message is one Noise message: a 2-byte big-endian length, then that many bytes of ciphertext. Its
plaintext is either a *block*, one or more of the frames below back to back, or *raw body*: after a DATA frame (the last
of its block), the next messages hold nothing but the bytes that it announced, so a tensor is encrypted from
its own memory and decrypted into its final place.

    OPEN     stream u64, role u8, priority u8, remaining_ms u32, size u64, inline length u16, inline bytes
    DATA     stream u64, length u32: the following messages hold these bytes of the stream's body
    WINDOW   stream u64, bytes u32: the receiver takes so many more bytes of this stream
    RESET    stream u64, code u8: neither side sends for this stream any more
    PING     token u64, answered by PONG with the same token
    GOODBYE  code u8: the sender opens nothing more; what is open may end

All integers are big-endian. ``size`` is the whole message's length, known before its first byte is sent, so it is
checked against the limits before anything is allocated.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from .errors import Malformed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .aead import Buffer

NO_DEADLINE_MS = 0
MAX_DEADLINE_MS = 0xFFFF_FFFF

_OPEN, _DATA, _WINDOW, _RESET, _PING, _PONG, _GOODBYE = range(1, 8)

_OPEN_BODY = struct.Struct(">QBBIQH")
_DATA_BODY = struct.Struct(">QI")
_RESET_BODY = struct.Struct(">QB")
_TOKEN_BODY = struct.Struct(">Q")
_GOODBYE_BODY = struct.Struct(">B")

OPEN_HEAD_BYTES = 1 + _OPEN_BODY.size
DATA_HEAD_BYTES = 1 + _DATA_BODY.size


class Role(IntEnum):
    """What a message on a stream is."""

    REQUEST = 0
    RESPONSE = 1
    NOTICE = 2


class Priority(IntEnum):
    """Who goes first when several messages wait: each class gets `WEIGHT` shares of the line, none starves."""

    HIGH = 0
    NORMAL = 1
    BULK = 2


# Votes and proposals are small: 64 shares put them before everything that is already waiting, in practice at once.
WEIGHT = {Priority.HIGH: 64, Priority.NORMAL: 8, Priority.BULK: 1}


class ResetCode(IntEnum):
    """Why a stream ended without its response."""

    CANCELLED = 1  # the asking side no longer wants the answer, or the answering side gave up
    DEADLINE = 2  # the time that travelled with the request is over
    BUSY = 3  # the node's memory for messages is taken; try again or elsewhere
    GOING_AWAY = 4  # the receiver said goodbye and starts nothing new
    TOO_LARGE = 5  # the answer does not fit the asking side's limits
    UNFIT = 6  # the method takes no such request, as its first bytes show


class GoodbyeCode(IntEnum):
    """Why a side opens nothing more."""

    SHUTDOWN = 1
    DUPLICATE = 2  # another session with the same peer stays
    UNWANTED = 3  # over a limit, or silent too long
    FAULT = 4  # a bug on the sending side closed this connection


@dataclass(frozen=True, slots=True)
class Open:
    """A message begins: ``size`` bytes in all, the first of them in ``inline``."""

    stream: int
    role: Role
    priority: Priority
    remaining_ms: int
    size: int
    inline: Buffer


@dataclass(frozen=True, slots=True)
class Data:
    """The next ``length`` bytes of the stream follow as raw body."""

    stream: int
    length: int


@dataclass(frozen=True, slots=True)
class Window:
    """The receiver takes ``credit`` more bytes of the stream."""

    stream: int
    credit: int


@dataclass(frozen=True, slots=True)
class Reset:
    """The stream is over."""

    stream: int
    code: ResetCode


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer with the same token."""

    token: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping."""

    token: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender opens nothing more."""

    code: GoodbyeCode


Frame = Open | Data | Window | Reset | Ping | Pong | Goodbye


def open_head(stream: int, role: Role, priority: Priority, remaining_ms: int, size: int, inline_bytes: int) -> bytes:
    """An OPEN frame up to its inline bytes, which the caller appends."""
    body = _OPEN_BODY.pack(stream, role, priority, remaining_ms, size, inline_bytes)
    return bytes((_OPEN,)) + body


def encode_frame(frame: Frame) -> bytes:
    """The bytes of one frame (for DATA its head alone: the body travels raw)."""
    match frame:
        case Open():
            head = open_head(
                frame.stream,
                frame.role,
                frame.priority,
                frame.remaining_ms,
                frame.size,
                len(frame.inline),
            )
            return head + bytes(frame.inline)
        case Data():
            return bytes((_DATA,)) + _DATA_BODY.pack(frame.stream, frame.length)
        case Window():
            return bytes((_WINDOW,)) + _DATA_BODY.pack(frame.stream, frame.credit)
        case Reset():
            return bytes((_RESET,)) + _RESET_BODY.pack(frame.stream, frame.code)
        case Ping():
            return bytes((_PING,)) + _TOKEN_BODY.pack(frame.token)
        case Pong():
            return bytes((_PONG,)) + _TOKEN_BODY.pack(frame.token)
        case Goodbye():
            return bytes((_GOODBYE,)) + _GOODBYE_BODY.pack(frame.code)


def read_frames(block: memoryview) -> Iterator[Frame]:
    """The frames of a block, one by one; an OPEN's ``inline`` is a view into it.

    Raises `Malformed` for an empty block, an unknown kind or code, a frame that is cut off, and anything after DATA.
    """
    if not block:
        raise Malformed("an encrypted message without a frame")
    at = 0
    while at < len(block):
        frame, at = _read_frame(block, at)
        if isinstance(frame, Data) and at < len(block):
            raise Malformed("a frame follows DATA in its block")
        yield frame


def _read_frame(block: memoryview, at: int) -> tuple[Frame, int]:
    kind = block[at]
    at += 1
    try:
        if kind == _OPEN:
            return _read_open(block, at)
        if kind == _DATA:
            stream, length = _DATA_BODY.unpack_from(block, at)
            return _checked_data(Data(stream, length)), at + _DATA_BODY.size
        if kind == _WINDOW:
            stream, credit = _DATA_BODY.unpack_from(block, at)
            return Window(stream, credit), at + _DATA_BODY.size
        if kind == _RESET:
            stream, code = _RESET_BODY.unpack_from(block, at)
            return Reset(stream, ResetCode(code)), at + _RESET_BODY.size
        if kind in (_PING, _PONG):
            (token,) = _TOKEN_BODY.unpack_from(block, at)
            return (Ping(token) if kind == _PING else Pong(token)), at + _TOKEN_BODY.size
        if kind == _GOODBYE:
            (code,) = _GOODBYE_BODY.unpack_from(block, at)
            return Goodbye(GoodbyeCode(code)), at + _GOODBYE_BODY.size
    except struct.error as error:
        raise Malformed("a frame is cut off") from error
    except ValueError as error:
        raise Malformed(f"a frame holds an unknown code: {error}") from error
    raise Malformed(f"frame kind {kind} is unknown")


def _read_open(block: memoryview, at: int) -> tuple[Open, int]:
    stream, role, priority, remaining_ms, size, inline_bytes = _OPEN_BODY.unpack_from(block, at)
    at += _OPEN_BODY.size
    end = at + inline_bytes
    if end > len(block):
        raise Malformed("the inline bytes of a frame are cut off")
    if size == 0 or inline_bytes > size:
        raise Malformed(f"a message of {size} bytes cannot begin with {inline_bytes}")
    return Open(stream, Role(role), Priority(priority), remaining_ms, size, block[at:end]), end


def _checked_data(frame: Data) -> Data:
    if frame.length == 0:
        raise Malformed("a DATA frame announces nothing")
    return frame
