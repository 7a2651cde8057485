"""Canonical CBOR between bytes and typed records, bounded before anything is decoded.

What we accept is a strict subset of RFC 8949: definite lengths, shortest heads, no tags outside the caller's
list, text keys without repeats, bounded size and depth, nothing after the item. `check_item` walks the heads
before cbor2 sees the bytes, because cbor2 by itself also decodes shared references, bignums and regular
expressions. Map keys are text only, so cbor2's canonical order and RFC 8949 section 4.2.1 agree.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from io import BytesIO
from typing import Any, TypeVar

import cbor2
import msgspec

from .errors import Malformed, TooLarge

MAX_DEPTH = 16
MAX_RECORD_BYTES = 1 << 20

UINT, NEGATIVE, BYTES, TEXT, ARRAY, MAP, TAG, SIMPLE = range(8)  # major types of RFC 8949, section 3.1
_FLOAT_BYTES = {25: 2, 26: 4, 27: 8}
_NAN = b"\xf9\x7e\x00"
_HALF, _SINGLE, _DOUBLE = struct.Struct(">e"), struct.Struct(">f"), struct.Struct(">d")
# by the bytes of the whole item, its head's one among them
_FLOATS = {3: _HALF, 5: _SINGLE, 9: _DOUBLE}
_SHORTER: dict[int, tuple[struct.Struct, ...]] = {3: (), 5: (_HALF,), 9: (_HALF, _SINGLE)}
_PLAIN_SIMPLE = (20, 21, 22)  # false, true, null


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every record that crosses the wire or the disk: immutable, named fields, nothing unknown."""


RecordT = TypeVar("RecordT", bound=msgspec.Struct)


def read_head(data: memoryview, at: int) -> tuple[int, int, int]:
    """The head at ``at``: (major type, argument, offset after it). Raises `Malformed` if not shortest."""
    if at >= len(data):
        raise Malformed("CBOR item ends inside a head")
    major, info = data[at] >> 5, data[at] & 0x1F
    if info < 24:
        return major, info, at + 1
    if info > 27:
        raise Malformed("CBOR item of indefinite length or with a reserved head")
    size = 1 << (info - 24)
    end = at + 1 + size
    if end > len(data):
        raise Malformed("CBOR item ends inside a head")
    argument = int.from_bytes(data[at + 1 : end], "big")
    if major != SIMPLE:
        smallest = 24 if size == 1 else 1 << (size * 4)
        if argument < smallest:
            raise Malformed("CBOR head is not in its shortest form")
    return major, argument, end


def write_head(major: int, argument: int) -> bytes:
    """The shortest head of this major type and argument; what `read_head` accepts."""
    if argument < 24:
        return bytes((major << 5 | argument,))
    power = 0 if argument < 1 << 8 else 1 if argument < 1 << 16 else 2 if argument < 1 << 32 else 3
    return bytes((major << 5 | 24 + power,)) + argument.to_bytes(1 << power, "big")


def check_item(data: memoryview, at: int = 0, *, max_depth: int = MAX_DEPTH, tags: Collection[int] = ()) -> int:
    """Walk the one CBOR item at ``at`` without decoding it; returns the offset after it.

    Raises `Malformed` for anything outside our subset, and for anything that is not in its one deterministic form:
    longer heads or floats than needed, keys out of order or twice. Whether text is UTF-8 shows only when it is decoded.
    Time and memory are linear in the bytes present: a length that lies beyond the data is refused at its head.
    """
    # One walk for every message, so the commonest head, of one byte, is read in place.
    size = len(data)
    left, is_map = 1, False  # items still to come in this container; a map counts two for each pair
    last_key: bytes | None = None
    outer: list[tuple[int, bool, bytes | None]] = []
    while True:
        while left == 0:
            if not outer:
                return at
            left, is_map, last_key = outer.pop()
        if len(outer) >= max_depth:
            raise Malformed(f"CBOR item nested deeper than {max_depth}")
        start = at
        if at < size and data[at] & 0x1F < 24:
            major, argument, at = data[at] >> 5, data[at] & 0x1F, at + 1
        else:
            major, argument, at = read_head(data, at)
        is_key = is_map and left % 2 == 0
        left -= 1
        if is_key and major != TEXT:
            raise Malformed("CBOR map key is not text")
        if major in (BYTES, TEXT):
            if argument > size - at:
                raise Malformed("CBOR string is longer than its message")
            at += argument
            if is_key:
                key = bytes(data[start:at])
                # RFC 8949, section 4.2.3; of text keys alone also section 4.2.1, since the head tells the length
                if last_key is not None and (len(key), key) <= (len(last_key), last_key):
                    raise Malformed("CBOR map keys are not in order, or one is there twice")
                last_key = key
        elif major in (ARRAY, MAP):
            count = argument * 2 if major == MAP else argument
            if count > size - at:
                raise Malformed("CBOR container has more items than its message has bytes")
            outer.append((left, is_map, last_key))
            left, is_map, last_key = count, major == MAP, None
        elif major == TAG:
            if argument not in tags:
                raise Malformed(f"CBOR tag {argument} is not allowed here")
            outer.append((left, is_map, last_key))
            left, is_map, last_key = 1, False, None
        elif major == SIMPLE:
            if data[start] & 0x1F in _FLOAT_BYTES:
                _check_float(data[start:at])
            elif argument not in _PLAIN_SIMPLE:
                raise Malformed(f"CBOR simple value {argument} is not allowed here")


class _Seen:
    """Short items that `check_item` let pass lately. An item of CBOR is the beginning of no other item, so bytes that
    begin with one of these begin with that item.

    Threads decode too: the lengths, which a reader walks over, are replaced and never changed, so nobody needs a lock.
    """

    MAX_ITEMS, MAX_BYTES, MAX_LENGTHS = 512, 256, 8

    def __init__(self) -> None:
        self._items: set[bytes] = set()
        self._lengths: tuple[int, ...] = ()

    def end(self, data: memoryview, at: int) -> int | None:
        """The offset after the item at ``at`` if it is known."""
        for length in self._lengths:
            item = bytes(data[at : at + length])  # shorter at the end of the data
            if item in self._items:
                return at + len(item)
        return None

    def add(self, item: memoryview) -> None:
        if len(item) > self.MAX_BYTES:
            return
        if len(self._items) >= self.MAX_ITEMS:
            self._items.clear()
        self._items.add(bytes(item))
        if len(item) not in self._lengths:
            self._lengths = (*self._lengths, len(item))[-self.MAX_LENGTHS :]


_seen = _Seen()


def check_again(data: memoryview, at: int = 0) -> int:
    """`check_item` for items that come again and again, as the heads of calls do: those seen lately are not walked."""
    end = _seen.end(data, at)
    if end is None:
        end = check_item(data, at)
        _seen.add(data[at:end])
    return end


def _check_float(item: memoryview) -> None:
    """Raise `Malformed` unless the float takes the fewest bytes that hold it exactly, and NaN is the one half NaN."""
    value = _FLOATS[len(item)].unpack_from(item, 1)[0]
    if value != value:  # not a number
        if bytes(item) != _NAN:
            raise Malformed("CBOR float is not the one form of NaN")
        return
    for shorter in _SHORTER[len(item)]:
        try:
            if shorter.unpack(shorter.pack(value))[0] == value:
                raise Malformed("CBOR float is not in its shortest form")
        except OverflowError:
            pass  # beyond that format


_idle: list[cbor2.CBOREncoder] = []
"""Encoders that nobody uses now, since making one takes longer than most messages do. Who encodes takes one out, so no
two threads ever have the same."""


def encode(value: Any) -> bytes:
    """The deterministic CBOR of a builtin value; the keys of a dict are text."""
    try:
        encoder = _idle.pop()
    except IndexError:
        encoder = cbor2.CBOREncoder(BytesIO(), canonical=True)
    encoded = encoder.encode_to_bytes(value)  # one that fails is not used again: it remembers the containers it was in
    _idle.append(encoder)
    return encoded


def decode(data: bytes | bytearray | memoryview, *, max_bytes: int = MAX_RECORD_BYTES) -> Any:
    """Decode one untagged CBOR item that fills ``data`` exactly.

    Raises `TooLarge` over ``max_bytes`` and `Malformed` for everything outside our subset.
    """
    if len(data) > max_bytes:
        raise TooLarge("CBOR item", len(data), max_bytes)
    view = memoryview(data)
    value, end = decode_item(view, 0, max_bytes=max_bytes)
    if end != len(view):
        raise Malformed("bytes follow the CBOR item")
    return value


def decode_item(data: memoryview, at: int, *, max_bytes: int = MAX_RECORD_BYTES) -> tuple[Any, int]:
    """Decode the untagged CBOR item at ``at``; returns it and the offset after it. Raises like `decode`."""
    end = check_again(data, at)
    if end - at > max_bytes:
        raise TooLarge("CBOR item", end - at, max_bytes)
    view = data[at:end]
    try:
        value = cbor2.loads(view)
    except (cbor2.CBORDecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"CBOR item does not decode: {error}") from error
    return value, end


def encode_record(record: msgspec.Struct) -> bytes:
    """The deterministic CBOR of a record: the bytes that are stored, sent and signed."""
    return encode(msgspec.to_builtins(record, builtin_types=(bytes,)))


def decode_record(
    data: bytes | bytearray | memoryview, kind: type[RecordT], *, max_bytes: int = MAX_RECORD_BYTES
) -> RecordT:
    """Decode ``data`` as one ``kind``, every field checked. Raises `Malformed` or `TooLarge`."""
    return convert_record(decode(data, max_bytes=max_bytes), kind)


def convert_record(value: Any, kind: type[RecordT]) -> RecordT:
    """Check an already decoded builtin ``value`` against ``kind``, or raise `Malformed` naming the field."""
    try:
        return msgspec.convert(value, kind, strict=True, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise Malformed(f"not a {kind.__name__}: {error}") from error


def require_length(name: str, value: bytes, length: int) -> None:
    """Raise `Malformed` unless ``value`` has exactly ``length`` bytes (for ``__post_init__`` of records)."""
    if len(value) != length:
        raise Malformed(f"{name} is {length} bytes, not {len(value)}")
