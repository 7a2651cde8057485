"""Tensor items: published bytes, plain cbor2 as the other reader, every dtype and shape, and hostile bytes."""

from __future__ import annotations

import math
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moed.protocol.errors import LocalProtocolError, Malformed, RemoteProtocolError, TooLarge
from moed.protocol.tensor_codecs import decode_tensor, encode_tensor
from moed.protocol.tensors import (
    BFloat16,
    Codec,
    DType,
    WireTensor,
    check_decoded_size,
    plain_array,
    read_tensor,
    wire_tensor,
)

Array = np.ndarray[Any, np.dtype[Any]]

# How a foreign reader names the typed arrays that we send: tag -> numpy dtype, from RFC 8746 section 2.1.
RFC_DTYPES = {
    64: "u1", 69: "<u2", 70: "<u4", 71: "<u8", 72: "i1", 77: "<i2", 78: "<i4", 79: "<i8",
    84: "<f2", 85: "<f4", 86: "<f8",
}  # fmt: skip


def item_bytes(tensor: WireTensor) -> bytes:
    """The whole item."""
    return tensor.head() + bytes(tensor.payload)


def read_whole(data: bytes) -> WireTensor:
    """The tensor that fills ``data``."""
    tensor, end = read_tensor(memoryview(data))
    assert end == len(data)
    return tensor


def foreign_array(item: Any) -> Array:
    """What a reader with nothing but cbor2 and RFC 8746 makes of a plain item: the ten lines of the documentation."""
    assert item.tag == 40
    shape, typed = item.value
    return np.frombuffer(typed.value, RFC_DTYPES[typed.tag]).reshape(shape)


@st.composite
def arrays(draw: st.DrawFn, dtypes: tuple[DType, ...] = tuple(DType)) -> Array:
    """Arrays of any dtype and bits, also scalar, empty, strided and big-endian ones."""
    dtype = draw(st.sampled_from(dtypes))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    count = math.prod(shape)
    if dtype is DType.BOOL:
        return np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool).reshape(shape)
    raw = draw(st.binary(min_size=count * dtype.item_bytes, max_size=count * dtype.item_bytes))
    array: Array = np.frombuffer(raw, dtype.memory).reshape(shape)
    if dtype is DType.BF16:
        return array.view(BFloat16)
    change = draw(st.sampled_from(["none", "transpose", "reverse", "big-endian"]))
    if change == "transpose":
        return array.T
    if change == "reverse":
        return array[..., ::-1] if array.ndim else array
    return array.astype(array.dtype.newbyteorder(">")) if change == "big-endian" else array


@given(array=arrays())
@example(array=np.float32(1.5).reshape(()))
@example(array=np.zeros((0, 4), np.int64))
@example(array=np.array([[np.nan, -np.inf], [-0.0, 1e-45]], np.float32))
def test_every_array_comes_back_bit_for_bit(array: Array) -> None:
    """Any dtype, shape, stride, byte order and NaN payload arrives with the same bits, over the received bytes."""
    data = item_bytes(wire_tensor(array))
    tensor = read_whole(data)
    back = plain_array(tensor)
    assert back.shape == array.shape
    assert isinstance(back, BFloat16) == isinstance(array, BFloat16)
    assert back.tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()
    assert item_bytes(tensor) == data


@given(array=arrays(tuple(dtype for dtype in DType if dtype.is_plain)))
def test_plain_cbor2_finds_shape_and_values(array: Array) -> None:
    """A reader that never heard of this project gets every tensor of a dtype that the RFC has."""
    item = cbor2.loads(item_bytes(wire_tensor(array)))
    if array.ndim == 0 or array.size == 0:
        assert item["shape"] == list(array.shape)
        values = np.frombuffer(item["values"].value, RFC_DTYPES[item["values"].tag]).reshape(item["shape"])
    else:
        values = foreign_array(item)
    assert values.tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()
    assert values.shape == array.shape


def test_plain_cbor2_reads_the_wrappers() -> None:
    """bool, bfloat16 and the codecs say in words what they are, around an item with the right shape."""
    bits = np.array([[0x3F80, 0xC000]], np.uint16)
    item = cbor2.loads(item_bytes(wire_tensor(bits.view(BFloat16))))
    assert list(item) == ["dtype", "values"]
    assert (item["dtype"], foreign_array(item["values"]).tolist()) == ("bf16", bits.tolist())
    item = cbor2.loads(item_bytes(wire_tensor(np.array([True, False]))))
    assert (item["dtype"], foreign_array(item["values"]).tolist()) == ("bool", [1, 0])
    values = np.linspace(-1, 1, 100, dtype=np.float32)
    coded = encode_tensor(values, Codec.INT8_BLOCK)
    item = cbor2.loads(item_bytes(coded))
    assert list(item) == ["block", "codec", "dtype", "scales", "values"]
    assert (item["codec"], item["dtype"], item["block"]) == ("int8-block", "f32", 64)
    scales = np.frombuffer(item["scales"].value, "<f4").repeat(64)[:100]
    np.testing.assert_array_equal(
        foreign_array(item["values"]) * scales, decode_tensor(encode_tensor(values, Codec.INT8_BLOCK))
    )


def test_the_bytes_of_the_wrapper_are_deterministic_cbor() -> None:
    """Head and payload are what a canonical encoder writes for the same map."""
    for array, codec in (
        (np.zeros((0, 3), np.float32), Codec.NONE),
        (np.ones((3, 70), np.float32), Codec.INT8_BLOCK),
        (np.ones((3, 70), np.float64), Codec.BFLOAT16),
    ):
        data = item_bytes(encode_tensor(array, codec))
        assert cbor2.dumps(cbor2.loads(data), canonical=True) == data


def test_sending_copies_nothing() -> None:
    """A contiguous array's own memory is the payload, and what arrives is a view of the received bytes."""
    array = np.arange(1000, dtype=np.float32)
    tensor = wire_tensor(array)
    assert np.shares_memory(np.frombuffer(tensor.payload, np.uint8), array)
    buffer = bytearray(3) + item_bytes(tensor)
    start = 16 - len(tensor.head()) % 16
    aligned = bytearray(start) + item_bytes(tensor)
    back = plain_array(read_tensor(memoryview(aligned), start)[0])
    assert np.shares_memory(back, np.frombuffer(aligned, np.uint8))
    assert back.flags.writeable
    moved = plain_array(read_tensor(memoryview(buffer), 3)[0])
    assert moved.flags.aligned
    np.testing.assert_array_equal(moved, array)


def test_published_items(published_vectors: Callable[[str], Any]) -> None:
    """Of the published typed arrays the little-endian ones are read inside tag 40; all others are refused."""
    read = set()
    for vector in published_vectors("rfc8746.json")["vectors"]:
        data = bytes.fromhex(vector["hex"])
        if "values" not in vector:
            continue
        values = [float(value) if "float" in vector["dtype"] else int(value) for value in vector["values"]]
        wrapped = b"\xd8\x28\x82\x81" + bytes([len(values)]) + data
        if vector["tag"] in RFC_DTYPES:
            assert plain_array(read_whole(wrapped)).tolist() == values
            read.add(vector["tag"])
        else:
            with pytest.raises(Malformed):
                read_whole(wrapped)
        with pytest.raises(Malformed):
            read_whole(data)  # a typed array without tag 40 has another encoding here
    assert read == {64, 69, 70, 71, 77, 79, 85, 86}


def test_published_shapes(published_vectors: Callable[[str], Any]) -> None:
    """The little-endian row-major figure is read; big-endian, column-major and classical arrays are refused."""
    accepted = []
    for vector in published_vectors("rfc8746.json")["vectors"]:
        if "meaning" not in vector:
            continue
        try:
            tensor = read_whole(bytes.fromhex(vector["hex"]))
        except Malformed:
            continue
        assert plain_array(tensor).tolist() == vector["meaning"]
        accepted.append(vector["name"])
    assert accepted == ["2x2 float16le row-major (tag 40 over tag 84)"]


def test_published_malformed_items(published_vectors: Callable[[str], Any]) -> None:
    """Every published malformed item is refused, bare and where tag 40 is wanted."""
    for vector in published_vectors("rfc8746.json")["malformed"]:
        data = bytes.fromhex(vector["hex"])
        for candidate in (data, b"\xd8\x28\x82\x81\x01" + data):
            with pytest.raises(Malformed):
                read_whole(candidate)


def plain_item(shape: list[int], tag: int, payload: bytes) -> bytes:
    """A tag 40 item with any claim."""
    return cbor2.dumps(cbor2.CBORTag(40, [shape, cbor2.CBORTag(tag, payload)]), canonical=True)


def wrapped_item(**entries: Any) -> bytes:
    """A wrapper with any claim."""
    return cbor2.dumps(entries, canonical=True)


def row_major(shape: list[int], tag: int, payload: bytes) -> Any:
    """A tag 40 value for `wrapped_item`."""
    return cbor2.CBORTag(40, [shape, cbor2.CBORTag(tag, payload)])


def scales(count: int, value: float = 1.0) -> Any:
    """Scales for `wrapped_item`."""
    return cbor2.CBORTag(85, np.full(count, value, "<f4").tobytes())


LIES = [
    plain_item([2, 3], 85, bytes(20)),
    plain_item([1 << 32, 1 << 32], 85, bytes(4)),
    plain_item([1 << 62, 4], 64, b""),
    plain_item([0, 2], 85, b""),
    plain_item([], 85, bytes(4)),
    plain_item([1] * 17, 64, b"\0"),
    plain_item([1], 76, b"\0"),
    plain_item([2], 85, bytes(7)),
    wrapped_item(dtype="f32", values=row_major([1], 85, bytes(4))),
    wrapped_item(dtype="f32", shape=[1], values=cbor2.CBORTag(85, bytes(4))),
    wrapped_item(dtype="f32", shape=[0, 1 << 60], values=cbor2.CBORTag(85, b"")),
    wrapped_item(dtype="f32", shape=[], values=cbor2.CBORTag(84, bytes(2))),
    wrapped_item(dtype="bool", values=row_major([2], 64, b"\1\2")),
    wrapped_item(dtype="f16", values=row_major([1], 84, bytes(2))),
    wrapped_item(dtype="what", values=row_major([1], 84, bytes(2))),
    wrapped_item(dtype="bf16", values=row_major([1], 84, bytes(2))),
    wrapped_item(values=row_major([1], 84, bytes(2))),
    wrapped_item(dtype="bf16"),
    wrapped_item(dtype="u8", codec="float16", values=row_major([1], 84, bytes(2))),
    wrapped_item(dtype="f32", codec="none", values=row_major([1], 85, bytes(4))),
    wrapped_item(dtype="f32", codec="zip", values=row_major([1], 84, bytes(2))),
    wrapped_item(dtype="f32", codec="float16", shape=[0], values=cbor2.CBORTag(84, b"")),
    wrapped_item(dtype="f32", codec="int8-block", values=row_major([1], 72, b"\1")),
    wrapped_item(block=64, dtype="f32", codec="int8-block", scales=scales(2), values=row_major([64], 72, bytes(64))),
    wrapped_item(block=1, dtype="f32", codec="int8-block", scales=scales(64), values=row_major([64], 72, bytes(64))),
    wrapped_item(block=64, dtype="f32", codec="int8-block", scales=scales(1, -1), values=row_major([1], 72, b"\1")),
    wrapped_item(block=64, dtype="f32", codec="int8-block", scales=scales(1, np.inf), values=row_major([1], 72, b"1")),
    wrapped_item(block=64, dtype="bf16", values=row_major([1], 69, bytes(2))),
    b"",
    b"\xa0",
    b"\xbb" + b"\xff" * 8,
]  # fmt: skip


@pytest.mark.parametrize("data", LIES, ids=range(len(LIES)))
def test_items_that_lie_are_refused(data: bytes) -> None:
    """Shape against bytes, dtype against tag, wrapper against need, scales against blocks: each is Malformed."""
    with pytest.raises(Malformed):
        read_tensor(memoryview(data))


def test_a_head_that_was_good_before_vouches_for_no_values() -> None:
    """What is remembered of heads spares their reading; the values of a bool are looked at each time."""
    good, bad = (wrapped_item(dtype="bool", values=row_major([2], 64, values)) for values in (b"\1\0", b"\1\2"))
    for _ in range(2):
        assert plain_array(read_whole(good)).tolist() == [True, False]
        with pytest.raises(Malformed):
            read_whole(bad)
    item = plain_item([2], 64, b"\1\0")
    for _ in range(2):
        assert read_whole(item).elements == 2
        with pytest.raises(Malformed):
            read_whole(item[:-1])


def test_threads_read_beside_each_other() -> None:
    """A program may call over several clients at once: the heads that are remembered are shared by them."""

    def read_many(thread: int) -> None:
        for number in range(2_000):
            data = item_bytes(wire_tensor(np.zeros((1 + thread, 1 + number % 7), np.uint8)))
            assert read_whole(data).shape == (1 + thread, 1 + number % 7)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read_many, range(4)))
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize(("block", "is_taken"), [(15, False), (16, True), (4096, True), (4097, False)])
def test_a_block_of_values_has_bounds(block: int, is_taken: bool) -> None:
    """The smallest and the largest block are read, one less or more is not."""
    item = wrapped_item(
        block=block, dtype="f32", codec="int8-block", scales=scales(1), values=row_major([9], 72, b"\1" * 9)
    )
    if is_taken:
        assert decode_tensor(read_whole(item)).tolist() == [1] * 9
    else:
        with pytest.raises(Malformed):
            read_whole(item)


def test_as_many_dimensions_travel_as_may() -> None:
    """Sixteen, both ways; the seventeenth is refused here and there (`LIES`, and what is our own mistake)."""
    array = np.arange(2, dtype=np.int16).reshape((1,) * 15 + (2,))
    assert plain_array(read_whole(item_bytes(wire_tensor(array)))).shape == array.shape


SEEDS = [
    item_bytes(tensor)
    for tensor in (
        wire_tensor(np.arange(6, dtype=np.float32).reshape(2, 3)),
        wire_tensor(np.zeros((), np.int8)),
        wire_tensor(np.zeros((3, 0), np.uint16)),
        wire_tensor(np.array([True, False])),
        wire_tensor(np.arange(4, dtype=np.uint16).view(BFloat16)),
        encode_tensor(np.linspace(-3, 3, 70, dtype=np.float64), Codec.FLOAT16),
        encode_tensor(np.linspace(-3, 3, 70, dtype=np.float32), Codec.INT8_BLOCK),
    )
]


@settings(max_examples=400, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3), st.integers(0, 3)), max_size=4),
)
def test_mutated_items_are_refused_or_mean_exactly_their_bytes(
    seed: bytes, edits: list[tuple[int, bytes, int]]
) -> None:
    """Any damage is Malformed, or what is accepted writes the same bytes again and decodes within the input's size."""
    data = bytearray(seed)
    for at, inserted, removed in edits:
        at %= len(data) + 1
        data[at : at + removed] = inserted
    try:
        tensor, end = read_tensor(memoryview(data))
    except RemoteProtocolError:
        return
    assert item_bytes(tensor) == bytes(data[:end])
    assert decode_tensor(tensor).shape == tensor.shape
    assert tensor.decoded_bytes <= 8 * len(data)


@given(data=st.binary(max_size=100))
def test_any_bytes_give_only_the_remote_error(data: bytes) -> None:
    """Foreign bytes are a tensor or a RemoteProtocolError."""
    try:
        tensor, end = read_tensor(memoryview(data))
    except RemoteProtocolError:
        return
    assert item_bytes(tensor) == data[:end]


def test_refusing_a_huge_claim_allocates_nothing() -> None:
    """An item that claims terabytes is refused with a few kibibytes of memory."""
    tracemalloc.start()
    for _ in range(50):
        with pytest.raises(Malformed):
            read_tensor(memoryview(plain_item([1 << 20, 1 << 20], 86, bytes(8))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
BOUNDED = st.sampled_from([Codec.FLOAT16, Codec.BFLOAT16, Codec.INT8_BLOCK])


@settings(max_examples=200, deadline=None)
@given(values=st.lists(FLOATS, min_size=1, max_size=200), codec=BOUNDED, dtype=st.sampled_from(["<f4", "<f8"]))
@example(values=[1e-40] * 3, codec=Codec.INT8_BLOCK, dtype="<f4")
@example(values=[65520.0], codec=Codec.FLOAT16, dtype="<f4")
@example(values=[3.4e38], codec=Codec.BFLOAT16, dtype="<f8")
def test_codecs_keep_their_stated_bounds(values: list[float], codec: Codec, dtype: str) -> None:
    """Each value is within the bound of the module's first lines, or the tensor travelled uncoded and is exact."""
    array = np.array(values, dtype)
    tensor = read_whole(item_bytes(encode_tensor(array, codec)))
    back = decode_tensor(tensor)
    assert back.dtype == array.dtype
    error = np.abs(back.astype(np.float64) - array.astype(np.float64))
    magnitude = np.abs(array.astype(np.float64))
    if tensor.codec is Codec.NONE:
        assert not error.any()
    elif codec is Codec.FLOAT16:
        assert (error <= np.maximum(magnitude * 2.0**-11, 2.0**-25)).all()
    elif codec is Codec.BFLOAT16:
        assert (error <= np.maximum(magnitude * 2.0**-8, 2.0**-134)).all()
    else:
        blocks = [magnitude[at : at + 64].max() for at in range(0, len(values), 64)]
        assert (error <= np.repeat(blocks, 64)[: len(values)] / 253 + 2.0**-119).all()


@pytest.mark.parametrize("codec", [Codec.FLOAT16, Codec.BFLOAT16, Codec.INT8_BLOCK])
@pytest.mark.parametrize(
    "array",
    [
        np.array([1.0, np.nan], np.float32),
        np.array([np.inf], np.float64),
        np.array([1e300, 1.0]),
        np.arange(5),
        np.zeros((0, 2), np.float32),
    ],
    ids=["nan", "inf", "huge", "integers", "empty"],
)
def test_what_a_codec_cannot_carry_travels_uncoded(codec: Codec, array: Array) -> None:
    """Not finite, too large, not a float, or nothing at all: exact instead of wrong."""
    tensor = encode_tensor(array, codec)
    assert tensor.codec is Codec.NONE
    np.testing.assert_array_equal(decode_tensor(tensor), array)


def test_coded_tensors_that_would_grow_too_large_are_refused() -> None:
    """The sum of what would be allocated is known before it is."""
    tensor = encode_tensor(np.ones(1000), Codec.INT8_BLOCK)
    check_decoded_size((tensor, wire_tensor(np.ones(10_000))), 8000)
    with pytest.raises(TooLarge):
        check_decoded_size((tensor, tensor), 8000)


@pytest.mark.parametrize("array", [np.zeros(2, complex), np.array(["a"]), np.array([None]), np.zeros((1,) * 17)])
def test_arrays_without_a_wire_form_are_our_own_mistake(array: Array) -> None:
    """Complex numbers, text, objects and 17 dimensions are refused before anything is sent."""
    with pytest.raises(LocalProtocolError):
        wire_tensor(array)
