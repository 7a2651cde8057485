"""Requests, notices, replies and refusals as single CBOR items: a head, then tensors.

    [head, padding, tensor, padding, tensor, ...]

The head is one map in deterministic CBOR with text keys, its ``kind`` one of the records below. Each tensor
(`tensors`) that has bytes is preceded by a byte string of zeros, 1 to 16 bytes with its own head, just long enough that
the values start at a multiple of 16 from the message's start: a buffer that is aligned, as allocators give
them, then holds aligned arrays. Readers skip it. So a message is one CBOR item, and has one encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import cbor2
import msgspec

from .codec import ARRAY, BYTES, Record, check_again, decode_item, encode, read_head, write_head
from .errors import LocalProtocolError, Malformed
from .tensor_codecs import encode_tensor
from .tensors import Codec, TensorHead, WireTensor, read_tensor, read_tensor_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .aead import Buffer
    from .tensors import Array

ALIGNMENT = 16
MAX_TENSORS = 64
MAX_HEAD_BYTES = 16 << 20
MAX_REFUSAL_CHARACTERS = 1000

MethodName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
RefusalCode = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class RequestHead(Record, frozen=True, tag_field="kind", tag="request"):
    """A call of ``method``; ``body`` is anything that CBOR's builtin types hold.

    ``hashed``: the receipt of this call shall hold the hashes of the request and of the answer.
    """

    method: MethodName
    body: Any = None
    hashed: bool = False


class NoticeHead(Record, frozen=True, tag_field="kind", tag="notice"):
    """A one-way message to ``method``; nobody answers."""

    method: MethodName
    body: Any = None


class ReplyHead(Record, frozen=True, tag_field="kind", tag="reply"):
    """The answer to a request."""

    body: Any = None


class RefusalHead(Record, frozen=True, tag_field="kind", tag="refusal"):
    """Why a request has no answer: a stable ``code`` for programs, ``message`` for people."""

    code: RefusalCode
    message: Annotated[str, msgspec.Meta(max_length=MAX_REFUSAL_CHARACTERS)]


Head = RequestHead | NoticeHead | ReplyHead | RefusalHead


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it arrived: the tensors are described and checked, not yet decoded."""

    head: Head
    tensors: tuple[WireTensor, ...]


@dataclass(frozen=True, slots=True)
class Announced:
    """The beginning of a request: its head, and the head of its first tensor, whose values may not be here yet."""

    head: RequestHead
    tensor: TensorHead


def read_announced(data: memoryview, size: int) -> Announced | None:
    """What ``data``, the first bytes of a request of ``size`` bytes, announces; None if it does not reach so far.

    Raises only `RemoteProtocolError` subclasses, for what `decode_message` would refuse of the whole. So a receiver
    judges a large request before it has memory for it.
    """
    try:
        _, at = _read_array(data)
        value, at = decode_item(data, at, max_bytes=MAX_HEAD_BYTES)
        if at < len(data) and data[at] >> 5 == BYTES:
            _, padding, at = read_head(data, at)
            at += padding
        tensor, at = read_tensor_head(data, at)
    except Malformed:
        return None  # cut off, as far as can be told: the whole will show
    tensor.check()
    if at + tensor.values_bytes > size:
        raise Malformed("a tensor is longer than its message")
    head = _convert_head(value)
    if not isinstance(head, RequestHead):
        raise Malformed("a request stream carries another kind of message")
    return Announced(head, tensor)


def encode_message(
    head: Head, tensors: Sequence[Array | WireTensor] = (), *, codec: Codec = Codec.NONE
) -> list[Buffer]:
    """The buffers of a message, the tensors' own memory among them; ``codec`` shortens those that are arrays.

    Raises `LocalProtocolError` for a head that the other side would refuse, and for what no tensor can be.
    """
    if len(tensors) > MAX_TENSORS:
        raise LocalProtocolError(f"a message of {len(tensors)} tensors; at most {MAX_TENSORS} travel")
    wire = [tensor if isinstance(tensor, WireTensor) else encode_tensor(tensor, codec) for tensor in tensors]
    count = 1 + len(wire) + sum(1 for tensor in wire if len(tensor.payload))
    pending = write_head(ARRAY, count) + _encode_head(head)
    buffers: list[Buffer] = []
    offset = 0
    for tensor in wire:
        tensor_head = tensor.head()
        if len(tensor.payload):
            pending += _padding(offset + len(pending) + len(tensor_head))
        pending += tensor_head
        buffers += [pending, tensor.payload]
        offset += len(pending) + len(tensor.payload)
        pending = b""
    return [*buffers, pending] if pending else buffers


def decode_message(data: memoryview, *, max_head_bytes: int = MAX_HEAD_BYTES) -> Message:
    """The message that fills ``data``; its tensors are views into it.

    Raises only `RemoteProtocolError` subclasses. Nothing but the head is decoded: tensors are checked by their heads.
    """
    count, at = _read_array(data)
    value, at = decode_item(data, at, max_bytes=max_head_bytes)
    head = _convert_head(value)
    tensors = []
    remaining = count - 1
    while remaining:
        tensor, at, items = _read_padded_tensor(data, at)
        tensors.append(tensor)
        remaining -= items
        if remaining < 0 or len(tensors) > MAX_TENSORS:
            raise Malformed("a message holds other items than it announced")
    if at != len(data):
        raise Malformed("bytes follow the message")
    return Message(head, tuple(tensors))


def _encode_head(head: Head) -> bytes:
    try:
        encoded = encode(msgspec.to_builtins(head, builtin_types=(bytes,)))
        check_again(memoryview(encoded))
    except (TypeError, cbor2.CBOREncodeError, Malformed) as error:
        raise LocalProtocolError(f"a {type(head).__name__} that does not travel: {error}") from error
    if len(encoded) > MAX_HEAD_BYTES:
        raise LocalProtocolError(f"a head of {len(encoded)} bytes; at most {MAX_HEAD_BYTES} travel")
    return encoded


def _convert_head(value: Any) -> Head:
    try:
        head: Head = msgspec.convert(value, Head, strict=True, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise Malformed(f"not the head of a message: {error}") from error
    return head


def _padding(values_at: int) -> bytes:
    """The byte string before a tensor whose values would start at ``values_at`` without it."""
    size = ALIGNMENT - values_at % ALIGNMENT  # 1 to 16, never 0: whether it stands there depends on nothing else
    return write_head(BYTES, size - 1) + bytes(size - 1)


def _read_array(data: memoryview) -> tuple[int, int]:
    major, count, at = read_head(data, 0)
    if major != ARRAY or not 1 <= count <= 1 + 2 * MAX_TENSORS:
        raise Malformed(f"a message is an array of a head and at most {MAX_TENSORS} tensors")
    return count, at


def _read_padded_tensor(data: memoryview, at: int) -> tuple[WireTensor, int, int]:
    """The next tensor, the offset after it, and how many items of the array it took with its padding."""
    padding_at = at
    if at < len(data) and data[at] >> 5 == BYTES:
        _, size, at = read_head(data, at)
        at += size
    tensor_at = at
    tensor, at = read_tensor(data, tensor_at)
    expected = b""
    if len(tensor.payload):
        expected = _padding(padding_at + (at - len(tensor.payload) - tensor_at))
    if data[padding_at:tensor_at] != expected:
        raise Malformed("the padding before a tensor is not what its place asks for")
    return tensor, at, 2 if expected else 1
