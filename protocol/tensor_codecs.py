"""Shorter wire forms of float tensors, with stated error bounds, and back.

For float32 and float64 tensors whose values are all finite; x is a value, x' what arrives:

    float16      |x - x'| <= max(2**-11 |x|, 2**-25)     (IEEE 754 half, round to nearest)
    bfloat16     |x - x'| <= max(2**-8 |x|, 2**-134)     (the upper half of a float32, round to nearest even)
    int8-block   |x - x'| <= m/253 + 2**-119             (m: the largest |x| of its block of 64; scale m/127)

A tensor that a codec cannot carry within its bound (another dtype, no elements, infinite or not a number, too large for
the shorter format) travels uncoded instead: lossy is what the caller asked for, wrong is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .tensors import CODED_DTYPES, BFloat16, Codec, DType, WireTensor, dtype_of, plain_array, wire_tensor

if TYPE_CHECKING:
    from .tensors import Array

    Floats = np.ndarray[Any, np.dtype[np.float32]]

BLOCK = 64
# Below this the scale of a block would lose its own precision; such a block is sent as zeros.
_SMALLEST_BLOCK_MAX = 2.0**-119


def encode_tensor(array: Array, codec: Codec = Codec.NONE) -> WireTensor:
    """``array`` for the wire, shortened by ``codec`` where that keeps its bound, else as it is.

    Raises `LocalProtocolError` for a dtype that has no wire form.
    """
    dtype = dtype_of(array)
    if codec is Codec.NONE or dtype not in CODED_DTYPES or array.size == 0 or not np.isfinite(array).all():
        return wire_tensor(array)
    if codec is Codec.INT8_BLOCK:
        return _to_int8_blocks(array, dtype) or wire_tensor(array)
    short = _to_half(array) if codec is Codec.FLOAT16 else _to_bfloat16(array)
    if short is None:
        return wire_tensor(array)
    return WireTensor(dtype, array.shape, wire_tensor(short).payload, codec)


def decode_tensor(tensor: WireTensor) -> Array:
    """The array of ``tensor``: a view over the received bytes if uncoded, else newly allocated.

    Check `tensors.check_decoded_size` first: a coded tensor grows up to eightfold.
    """
    if tensor.codec is Codec.NONE:
        return plain_array(tensor)
    if tensor.codec is Codec.INT8_BLOCK:
        decoded = _from_int8_blocks(tensor)
    elif tensor.codec is Codec.FLOAT16:
        decoded = plain_array(tensor)
    else:
        decoded = bfloat16_to_float32(plain_array(tensor))
    return decoded.astype(tensor.dtype.memory, copy=False)


def float32_to_bfloat16(values: Floats) -> BFloat16:
    """Round to nearest even, NaN kept quiet; a value beyond the largest bfloat16 becomes infinite."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16  # wraps only for NaN, replaced below
    rounded = np.where(np.isnan(values), (bits >> 16) | 0x40, rounded)
    return rounded.astype(np.uint16).view(BFloat16)


def bfloat16_to_float32(bits: Array) -> Floats:
    """The exact float32 values of bfloat16 bits."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def _to_half(array: Array) -> Array | None:
    with np.errstate(over="ignore"):
        short: Array = array.astype(np.float16)
    return short if np.isfinite(short).all() else None


def _to_bfloat16(array: Array) -> BFloat16 | None:
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    short = float32_to_bfloat16(single)
    return short if np.isfinite(bfloat16_to_float32(short)).all() else None


def _to_int8_blocks(array: Array, dtype: DType) -> WireTensor | None:
    with np.errstate(over="ignore"):
        flat = np.ascontiguousarray(array, np.float32).reshape(-1)
    padded = np.zeros(-(-flat.size // BLOCK) * BLOCK, np.float32)
    padded[: flat.size] = flat
    blocks = padded.reshape(-1, BLOCK)  # (blocks, values of a block)
    largest = np.abs(blocks).max(axis=1)
    scales = np.where(largest < _SMALLEST_BLOCK_MAX, 0, largest / np.float32(127)).astype("<f4")
    with np.errstate(over="ignore"):
        if not np.isfinite(scales * 127).all():  # a float64 beyond float32, or a float32 at its very end
            return None
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    values = np.clip(np.rint(blocks * inverse[:, None]), -127, 127).astype(np.int8)
    payload = values.reshape(-1)[: flat.size].view(np.uint8).data
    return WireTensor(dtype, array.shape, payload, Codec.INT8_BLOCK, scales.view(np.uint8).data, BLOCK)


def _from_int8_blocks(tensor: WireTensor) -> Floats:
    values = plain_array(tensor).reshape(-1).astype(np.float32)
    scales = np.frombuffer(tensor.scales, "<f4")
    whole = values.size // tensor.block
    blocks = values[: whole * tensor.block].reshape(whole, tensor.block)
    with np.errstate(over="ignore"):  # a foreign scale may be too large: infinite, as it says
        blocks *= scales[:whole, None]
        if whole < scales.size:
            values[whole * tensor.block :] *= scales[whole]
    return values.reshape(tensor.shape)
