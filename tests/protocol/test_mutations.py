"""Tensor items changed at random: nothing but the remote error, little memory, and one encoding for what is accepted.

``MOED_MUTATIONS=1000000`` runs a million of them (about two minutes); by default a slice.
"""

from __future__ import annotations

import os
import random
import tracemalloc
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from moed.protocol.errors import RemoteProtocolError
from moed.protocol.messages import Announced, RequestHead, encode_message, read_announced
from moed.protocol.tensor_codecs import decode_tensor, encode_tensor
from moed.protocol.tensors import BFloat16, Codec, check_decoded_size, read_tensor

if TYPE_CHECKING:
    from moed.protocol.tensors import Array

MUTATIONS = int(os.environ.get("MOED_MUTATIONS", "6000"))
SEED = 20_240
SPARE_BYTES = 1_000_000


def _items() -> list[bytes]:
    """One item of each form, small ones among them, so that a change often hits a head."""
    draw = np.random.default_rng(SEED)
    arrays: list[Array] = [
        draw.standard_normal((3, 5)).astype(np.float32),
        draw.standard_normal((2, 2, 2)),
        draw.integers(-9, 9, (4,), dtype=np.int16),
        draw.integers(0, 9, (70, 300), dtype=np.uint8),
        draw.random((3, 3)) > 0.5,
        np.zeros((0, 4), np.float32),
        np.asarray(1.5, np.float32),
        draw.integers(0, 9, (5,), dtype=np.uint16).view(BFloat16),
    ]
    wire = [encode_tensor(array) for array in arrays]
    floats = draw.standard_normal((7, 40)).astype(np.float32)
    wire += [encode_tensor(floats, codec) for codec in Codec if codec is not Codec.NONE]
    return [tensor.head() + bytes(tensor.payload) for tensor in wire]


def _mutants(count: int) -> Iterator[bytearray]:
    chance = random.Random(SEED)
    items = _items()
    for number in range(count):
        data = bytearray(items[number % len(items)])
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            # heads are short: most changes shall hit them and not the values
            at = (
                min(int(chance.expovariate(1 / 12)), len(data) - 1)
                if chance.random() < 0.8
                else chance.randrange(len(data))
            )
            kind = chance.randrange(5)
            if kind == 0:
                data[at] ^= 1 << chance.randrange(8)
            elif kind == 1:
                data[at] = chance.randrange(256)
            elif kind == 2:
                data[at:at] = chance.randbytes(chance.randint(1, 9))
            elif kind == 3 and len(data) > 1:
                del data[at : at + chance.randint(1, 4)]
            elif len(data) > 1:
                del data[chance.randrange(1, len(data)) :]
            if not data:
                data = bytearray(b"\x00")
        yield data


def test_mutated_items_are_refused_or_mean_exactly_their_bytes_in_bulk() -> None:
    """Memory stays under twice the input and 1 MB, and what is accepted encodes to the same bytes."""
    accepted = refused = 0
    tracemalloc.start()
    try:
        for data in _mutants(MUTATIONS):
            view = memoryview(data)
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            try:
                tensor, end = read_tensor(view)
                check_decoded_size((tensor,), 2 * len(data))
                decode_tensor(tensor)
            except RemoteProtocolError:
                refused += 1
            else:
                accepted += 1
                assert tensor.head() + bytes(tensor.payload) == data[:end]
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before <= 2 * len(data) + SPARE_BYTES, data.hex()
    finally:
        tracemalloc.stop()
    assert accepted > MUTATIONS // 100
    assert refused > MUTATIONS // 4


def test_the_first_bytes_of_a_request_give_only_the_remote_error() -> None:
    """Cut and changed anywhere: nothing, a refusal, or the head that it says."""
    head = RequestHead(method="expert.forward", body={"expert": "x", "codec": "float32"})
    first = bytes(encode_message(head, [np.zeros((64, 1024), np.float32)])[0])
    chance = random.Random(SEED)
    found = 0
    for _ in range(MUTATIONS // 3):
        data = bytearray(first[: chance.randint(1, len(first))] if chance.random() < 0.3 else first)
        if chance.random() < 0.7:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        try:
            announced = read_announced(memoryview(data), 64 * 4096 + len(first))
        except RemoteProtocolError:
            continue
        assert announced is None or isinstance(announced, Announced)
        found += announced is not None
    assert found > MUTATIONS // 50
