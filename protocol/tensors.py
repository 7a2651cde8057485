"""Tensors as CBOR items that any RFC 8746 reader understands, with no copy of their memory.

The plain form, for at least one dimension, none of them zero, and a dtype that the RFC has:

    40([[dims...], typed array])        tag 40: row-major; the typed array little-endian, a tag over a byte string

Everything else travels in a map whose last entry, ``values``, is such an item:

    {"dtype": "bf16", "values": 40([[2, 3], 69(h'...')])}      bfloat16: its bits as uint16
    {"dtype": "bool", "values": 40([[2, 3], 64(h'...')])}      one byte each, 0 or 1
    {"dtype": "f32", "shape": [], "values": 85(h'...')}        a scalar: the RFC's dimensions cannot be none,
    {"dtype": "f32", "shape": [0, 4], "values": 85(h'')}       nor zero, so the shape stands beside
    {"codec": "float16", "dtype": "f32", "values": 40([[2, 3], 84(h'...')])}
    {"block": 64, "codec": "int8-block", "dtype": "f32", "scales": 85(h'...'), "values": 40([[2, 3], 72(h'...')])}

``dtype`` is what the reader ends with, ``codec`` how the values were shortened (`tensor_codecs`). Each tensor has
exactly one encoding; every other one is refused.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .codec import ARRAY, BYTES, MAP, TAG, TEXT, UINT, read_head, write_head
from .errors import LocalProtocolError, Malformed, TooLarge

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

ROW_MAJOR_TAG = 40
MAX_DIMS = 16
# Sizes multiply exactly below this, also for shapes with a zero in them, which have no bytes to check against.
MAX_ELEMENTS = 1 << 40
MIN_BLOCK, MAX_BLOCK = 16, 4096
NO_BYTES = memoryview(b"")
_SCALE = np.dtype("<f4")


class BFloat16(np.ndarray[Any, np.dtype[np.uint16]]):
    """A uint16 array whose bits are bfloat16 values; make one with ``bits.view(BFloat16)``.

    numpy has no such dtype, and a plain uint16 array would arrive as integers.
    """


class DType(Enum):
    """What the elements are: (name on the wire, numpy dtype of the memory, RFC 8746 tag)."""

    U8 = ("u8", "<u1", 64)
    U16 = ("u16", "<u2", 69)
    U32 = ("u32", "<u4", 70)
    U64 = ("u64", "<u8", 71)
    I8 = ("i8", "<i1", 72)
    I16 = ("i16", "<i2", 77)
    I32 = ("i32", "<i4", 78)
    I64 = ("i64", "<i8", 79)
    F16 = ("f16", "<f2", 84)
    F32 = ("f32", "<f4", 85)
    F64 = ("f64", "<f8", 86)
    BF16 = ("bf16", "<u2", 69)
    BOOL = ("bool", "|b1", 64)

    def __init__(self, wire_name: str, memory: str, tag: int) -> None:
        self.wire_name = wire_name
        self.memory = np.dtype(memory)
        self.tag = tag

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return self.memory.itemsize

    @property
    def is_plain(self) -> bool:
        """Whether RFC 8746 has it, so that its tag alone names it."""
        return self not in (DType.BF16, DType.BOOL)


class Codec(Enum):
    """How the values of a float tensor are shortened for the wire: (name, dtype of the values sent)."""

    NONE = ("none", None)
    FLOAT16 = ("float16", DType.F16)
    BFLOAT16 = ("bfloat16", DType.BF16)
    INT8_BLOCK = ("int8-block", DType.I8)

    def __init__(self, wire_name: str, values: DType | None) -> None:
        self.wire_name = wire_name
        self.values = values


_BY_NAME = {dtype.wire_name: dtype for dtype in DType}
_BY_TAG = {dtype.tag: dtype for dtype in DType if dtype.is_plain}
_BY_MEMORY = {dtype.memory: dtype for dtype in DType if dtype is not DType.BF16}
_CODEC_BY_NAME = {codec.wire_name: codec for codec in Codec if codec is not Codec.NONE}
CODED_DTYPES = (DType.F32, DType.F64)


def dtype_of(array: Array) -> DType:
    """The wire dtype of a numpy array. Raises `LocalProtocolError` for one that has none (complex, text, objects)."""
    if isinstance(array, BFloat16):
        return DType.BF16
    dtype = _BY_MEMORY.get(array.dtype.newbyteorder("<"))
    if dtype is None:
        raise LocalProtocolError(f"a tensor of dtype {array.dtype} has no wire form")
    return dtype


@dataclass(frozen=True, slots=True)
class WireTensor:
    """A tensor as it stands in a message: described and checked, its bytes untouched.

    ``payload`` holds the values (of the codec's dtype, else of ``dtype``), row-major and little-endian; ``scales`` and
    ``block`` belong to the int8-block codec and are empty and 0 without it.
    """

    dtype: DType
    shape: tuple[int, ...]
    payload: memoryview
    codec: Codec = Codec.NONE
    scales: memoryview = NO_BYTES
    block: int = 0

    @property
    def elements(self) -> int:
        """How many elements the shape holds."""
        return math.prod(self.shape)

    @property
    def decoded_bytes(self) -> int:
        """Memory that the tensor takes once decoded."""
        return self.elements * self.dtype.item_bytes

    @property
    def values_dtype(self) -> DType:
        """The dtype of ``payload``."""
        return self.codec.values or self.dtype

    def head(self) -> bytes:
        """Everything of the item before ``payload``, which ends it."""
        if self.codec is not Codec.INT8_BLOCK:
            return _head_of(self.dtype, self.shape, self.codec, len(self.payload))
        return self.write_head(len(self.payload))

    def write_head(self, payload_bytes: int) -> bytes:
        """The head for a payload of so many bytes."""
        has_tag_40 = bool(self.shape) and self.elements > 0
        parts = [] if self._is_plain(has_tag_40) else self._wrapper_head(has_tag_40)
        if has_tag_40:
            parts += [write_head(TAG, ROW_MAJOR_TAG), write_head(ARRAY, 2), _shape_item(self.shape)]
        parts += [write_head(TAG, self.values_dtype.tag), write_head(BYTES, payload_bytes)]
        return b"".join(parts)

    def _is_plain(self, has_tag_40: bool) -> bool:
        return self.codec is Codec.NONE and self.dtype.is_plain and has_tag_40

    def _wrapper_head(self, has_tag_40: bool) -> list[bytes]:
        """The map up to its last entry; keys in CBOR's deterministic order, shorter first."""
        entries: list[bytes] = []
        if self.codec is Codec.INT8_BLOCK:
            entries.append(_text("block") + write_head(UINT, self.block))
        if self.codec is not Codec.NONE:
            entries.append(_text("codec") + _text(self.codec.wire_name))
        entries.append(_text("dtype") + _text(self.dtype.wire_name))
        if not has_tag_40:
            entries.append(_text("shape") + _shape_item(self.shape))
        if self.codec is Codec.INT8_BLOCK:
            scales = write_head(TAG, DType.F32.tag) + write_head(BYTES, len(self.scales)) + bytes(self.scales)
            entries.append(_text("scales") + scales)
        return [write_head(MAP, len(entries) + 1), *entries, _text("values")]


@lru_cache(maxsize=1024)
def _head_of(dtype: DType, shape: tuple[int, ...], codec: Codec, payload_bytes: int) -> bytes:
    """The head of a tensor without scales; callers ask in few shapes, so most were written before."""
    return WireTensor(dtype, shape, NO_BYTES, codec).write_head(payload_bytes)


def wire_tensor(array: Array) -> WireTensor:
    """Describe ``array`` for sending, uncoded: its own memory if that is contiguous and little-endian, else a copy."""
    dtype = dtype_of(array)
    if array.ndim > MAX_DIMS or array.size > MAX_ELEMENTS:
        raise LocalProtocolError(f"a tensor of shape {array.shape} exceeds {MAX_DIMS} dimensions or its size")
    flat = np.ascontiguousarray(array, dtype=dtype.memory).reshape(-1)
    return WireTensor(dtype, array.shape, flat.view(np.uint8).data)


def plain_array(tensor: WireTensor) -> Array:
    """The values of ``tensor`` as an array over its own bytes, with no copy but for a misaligned payload."""
    values = np.frombuffer(tensor.payload, dtype=tensor.values_dtype.memory).reshape(tensor.shape)
    if not values.flags.aligned:
        values = values.copy()
    return values.view(BFloat16) if tensor.values_dtype is DType.BF16 else values


@dataclass(frozen=True, slots=True)
class TensorHead:
    """A tensor as its head announces it, whose values may not be here yet: ``values_bytes`` of them follow."""

    dtype: DType
    shape: tuple[int, ...]
    values_dtype: DType
    codec: Codec
    scales: memoryview
    block: int
    values_bytes: int

    def check(self) -> None:
        """Raise `Malformed` if shape, dtype and byte length disagree."""
        expected = _elements(self.shape) * self.values_dtype.item_bytes
        if self.values_bytes != expected:
            raise Malformed(
                f"shape {self.shape} of {self.values_dtype.wire_name} is {expected} bytes, not {self.values_bytes}"
            )


def read_tensor_head(data: memoryview, at: int) -> tuple[TensorHead, int]:
    """The head of the tensor item at ``at`` of ``data``, not yet checked, and the offset of its values.

    Raises `Malformed` if it is cut off or is none.
    """
    if at < len(data) and data[at] >> 5 == MAP:
        head, at = _read_wrapper(data, at)
    else:
        shape, dtype, size, at = _read_row_major(data, at)
        head = TensorHead(dtype, shape, dtype, Codec.NONE, NO_BYTES, 0, size)
    return head, at


# Heads that passed every check, the latest first: calls repeat them, and equal bytes need no second reading.
_RECENT_HEADS: deque[tuple[bytes, TensorHead]] = deque(maxlen=4)


def read_tensor(data: memoryview, at: int = 0) -> tuple[WireTensor, int]:
    """The tensor item at ``at`` of ``data``, and the offset after it; nothing is copied or allocated.

    Raises `Malformed` for anything but the one encoding of a tensor whose shape, dtype and byte length agree.
    """
    for known, announced in tuple(_RECENT_HEADS):  # a copy at once: another thread may be adding to it
        if data[at : at + len(known)] == known:
            values_at = at + len(known)
            end = values_at + announced.values_bytes
            if end > len(data):
                break
            return WireTensor(announced.dtype, announced.shape, data[values_at:end]), end
    announced, values_at = read_tensor_head(data, at)
    announced.check()
    end = values_at + announced.values_bytes
    if end > len(data):
        raise Malformed("a typed array is longer than its message")
    tensor = WireTensor(
        announced.dtype,
        announced.shape,
        data[values_at:end],
        announced.codec,
        announced.scales,
        announced.block,
    )
    _check(tensor)
    # One encoding for each tensor: what another order, length or wrapper would say again is refused.
    head = tensor.head()
    if data[at : at + len(head)] != head:
        raise Malformed("a tensor is not in its one encoding")
    if tensor.codec is Codec.NONE and tensor.dtype is not DType.BOOL:  # of which nothing but the head needs a check
        _RECENT_HEADS.appendleft((head, announced))
    return tensor, end


def check_decoded_size(tensors: tuple[WireTensor, ...], max_bytes: int) -> None:
    """Raise `TooLarge` if decoding ``tensors`` would take more than ``max_bytes`` beside the message itself."""
    total = sum(tensor.decoded_bytes for tensor in tensors if tensor.codec is not Codec.NONE)
    if total > max_bytes:
        raise TooLarge("decoded tensors", total, max_bytes)


def _check(tensor: WireTensor) -> None:
    """What the head alone does not tell: the values of a bool, whether the codec applies, its scales."""
    if tensor.dtype is DType.BOOL and len(tensor.payload) and np.frombuffer(tensor.payload, np.uint8).max() > 1:
        raise Malformed("a bool tensor holds a byte that is neither 0 nor 1")
    if tensor.codec is not Codec.NONE and (tensor.dtype not in CODED_DTYPES or not tensor.elements):
        raise Malformed(f"codec {tensor.codec.wire_name} does not apply to this tensor")
    if tensor.codec is Codec.INT8_BLOCK:
        _check_scales(tensor)


def _elements(shape: tuple[int, ...]) -> int:
    """How many elements a foreign shape holds, in exact integers. Raises `Malformed` for more than ever travel."""
    nonzero = math.prod(size for size in shape if size)
    if nonzero > MAX_ELEMENTS:
        raise Malformed(f"a tensor of shape {shape} is larger than any that travels")
    return nonzero if all(shape) else 0


def _check_scales(tensor: WireTensor) -> None:
    if not MIN_BLOCK <= tensor.block <= MAX_BLOCK:
        raise Malformed(f"a block of {tensor.block} values is not within {MIN_BLOCK} to {MAX_BLOCK}")
    expected = -(-tensor.elements // tensor.block) * _SCALE.itemsize
    if len(tensor.scales) != expected:
        raise Malformed(f"the scales are {len(tensor.scales)} bytes, not {expected}")
    scales = np.frombuffer(tensor.scales, _SCALE)
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise Malformed("a scale is negative or not finite")


def _text(value: str) -> bytes:
    encoded = value.encode()
    return write_head(TEXT, len(encoded)) + encoded


def _shape_item(shape: tuple[int, ...]) -> bytes:
    return write_head(ARRAY, len(shape)) + b"".join(write_head(UINT, size) for size in shape)


def _expect(data: memoryview, at: int, major: int, what: str) -> tuple[int, int]:
    """The argument of the head at ``at``, which must be of this major type, and the offset after it."""
    found, argument, at = read_head(data, at)
    if found != major:
        raise Malformed(f"{what} was expected in a tensor")
    return argument, at


def _read_shape(data: memoryview, at: int) -> tuple[tuple[int, ...], int]:
    count, at = _expect(data, at, ARRAY, "a shape")
    if count > MAX_DIMS:
        raise Malformed(f"a tensor of {count} dimensions; at most {MAX_DIMS} travel")
    shape = []
    for _ in range(count):
        size, at = _expect(data, at, UINT, "a dimension")
        shape.append(size)
    return tuple(shape), at


def _read_typed_array(data: memoryview, at: int) -> tuple[DType, int, int]:
    """The head of a little-endian typed array of RFC 8746, section 2: dtype, length in bytes, where they start."""
    tag, at = _expect(data, at, TAG, "a typed array")
    dtype = _BY_TAG.get(tag)
    if dtype is None:
        raise Malformed(f"tag {tag} is no typed array that travels here")
    size, at = _expect(data, at, BYTES, "a byte string")
    return dtype, size, at


def _read_row_major(data: memoryview, at: int) -> tuple[tuple[int, ...], DType, int, int]:
    """The head of a multi-dimensional array of RFC 8746, section 3.1.1: shape, and as of a typed array."""
    tag, at = _expect(data, at, TAG, "tag 40")
    count, at = _expect(data, at, ARRAY, "an array of shape and values")
    if tag != ROW_MAJOR_TAG or count != 2:
        raise Malformed("a tensor is tag 40 over its shape and its values")
    shape, at = _read_shape(data, at)
    dtype, size, at = _read_typed_array(data, at)
    return shape, dtype, size, at


def _read_text(data: memoryview, at: int) -> tuple[str, int]:
    size, at = _expect(data, at, TEXT, "text")
    if size > 16:  # longer than every word of the wrapper
        raise Malformed("a tensor's wrapper holds an unknown word")
    return bytes(data[at : at + size]).decode("ascii", "replace"), at + size


@dataclass(slots=True)
class _Wrapper:
    """The entries of the map while they are read."""

    dtype: DType | None = None
    codec: Codec = Codec.NONE
    block: int = 0
    shape: tuple[int, ...] | None = None
    scales: memoryview = NO_BYTES


def _read_wrapper(data: memoryview, at: int) -> tuple[TensorHead, int]:
    """The map form. The order of its entries is checked by `read_tensor`, which writes the head again."""
    count, at = _expect(data, at, MAP, "a map")
    wrapper = _Wrapper()
    for _ in range(min(count, 6) - 1):
        at = _read_entry(data, at, wrapper)
    key, at = _read_text(data, at)
    if key != "values" or wrapper.dtype is None:
        raise Malformed("a tensor's wrapper has a dtype and ends with its values")
    shape = wrapper.shape
    if shape is None:
        shape, found_dtype, size, at = _read_row_major(data, at)
    else:
        found_dtype, size, at = _read_typed_array(data, at)
    values_dtype = wrapper.codec.values or wrapper.dtype
    if found_dtype.tag != values_dtype.tag:
        raise Malformed(f"values of {found_dtype.wire_name} do not fit dtype {wrapper.dtype.wire_name}")
    return TensorHead(wrapper.dtype, shape, values_dtype, wrapper.codec, wrapper.scales, wrapper.block, size), at


def _read_entry(data: memoryview, at: int, wrapper: _Wrapper) -> int:
    key, at = _read_text(data, at)
    if key == "block":
        wrapper.block, at = _expect(data, at, UINT, "a block length")
    elif key == "shape":
        wrapper.shape, at = _read_shape(data, at)
    elif key == "scales":
        _, size, at = _read_typed_array(data, at)
        if size > len(data) - at:
            raise Malformed("the scales are longer than their message")
        wrapper.scales, at = data[at : at + size], at + size
    elif key in ("codec", "dtype"):
        word, at = _read_text(data, at)
        known: dict[str, Any] = _CODEC_BY_NAME if key == "codec" else _BY_NAME
        if word not in known:
            raise Malformed(f"{key} {word!r} is unknown")
        setattr(wrapper, key, known[word])
    else:
        raise Malformed(f"a tensor's wrapper has no entry {key!r}")
    return at
