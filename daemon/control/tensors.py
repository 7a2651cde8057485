"""The mixture for programs that hold tensors: CBOR in, CBOR out, nothing printed as text on the way.

    POST /v1/mixture/forward     body: one tensor item, uint8 [B, T]: B contexts of T bytes
                                 answer: {"experts": [{uid: share}, …], "log_probs": tensor float32 [B, 256]}

Tensors are RFC 8746 items (`moed.protocol.tensors`), so any CBOR library can make and read them.
"""

from __future__ import annotations

import numpy as np

from moed.protocol.codec import MAP, encode, write_head
from moed.protocol.errors import RemoteProtocolError
from moed.protocol.tensors import plain_array, read_tensor, wire_tensor

from .api import Answer, Ask, Body, ControlRefused, Services

CBOR = "application/cbor"
MAX_FORWARD_ROWS = 64
MAX_FORWARD_BYTES = 65536


async def forward(services: Services, ask: Ask) -> Answer:
    """POST /v1/mixture/forward."""
    inputs = _inputs(ask.body)
    log_probs, experts = await services.plane.forward(inputs)
    values = wire_tensor(np.asarray(log_probs, dtype=np.float32))
    parts: list[bytes | memoryview] = [write_head(MAP, 2), encode("experts"), encode(experts), encode("log_probs")]
    parts += [values.head(), values.payload]
    return Body(b"".join(parts), CBOR)


def _inputs(data: bytes) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    try:
        tensor, end = read_tensor(memoryview(data))
    except RemoteProtocolError as error:
        raise _wrong(f"the body is no tensor: {error}") from error
    if end != len(data):
        raise _wrong(f"{len(data) - end} bytes follow the tensor")
    if len(tensor.shape) != 2 or tensor.values_dtype is not tensor.dtype:
        raise _wrong(f"inputs have two dimensions, not {len(tensor.shape)}")
    rows, length = tensor.shape
    if not (1 <= rows <= MAX_FORWARD_ROWS and length >= 1 and rows * length <= MAX_FORWARD_BYTES):
        raise _wrong(f"{rows} x {length} bytes are too many: {MAX_FORWARD_ROWS} rows and {MAX_FORWARD_BYTES} bytes")
    array = plain_array(tensor)
    if array.dtype != np.uint8:
        raise _wrong(f"inputs are bytes (uint8), not {array.dtype}")
    return array.reshape(rows, length)


def _wrong(message: str) -> ControlRefused:
    return ControlRefused(400, "bad_tensor", message, "send one uint8 tensor [B, T] as CBOR (RFC 8746)")
