"""Tensors to one file and back: atomic, hashed by content, and nothing in the file is ever executed.

Layout: ``MOEDCKP1``, the content hash (32 bytes), the header's length (8 bytes, little-endian), the header (canonical
CBOR), then each tensor's little-endian bytes end to end. The header holds the hash of every tensor, and the *content
hash* is the tagged hash of the header: so it commits to everything, without a second copy of the weights in memory.

A file is written beside its place under a temporary name, flushed to the disk, then renamed: whenever the process or
the power dies, the name shows either the old content or the new one, whole.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moed.protocol.codec import Record, decode_record, encode_record
from moed.protocol.domains import Domain, tagged_hash
from moed.protocol.errors import RemoteProtocolError

from .errors import CheckpointCorrupt

MAGIC = b"MOEDCKP1"
_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.uint16,
    "int32": torch.int32,
    "uint32": torch.uint32,
    "int64": torch.int64,
    "uint64": torch.uint64,
    "bool": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

Note = str | int | float | bool


class TensorEntry(Record, frozen=True):
    """One tensor as the header describes it; ``digest`` is the 32-byte BLAKE2b of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: bytes


class Header(Record, frozen=True):
    """What the file holds; ``kind`` names what the tensors are for, ``notes`` what its owner wants to know."""

    kind: str
    notes: dict[str, Note]
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that passed its checks."""

    kind: str
    notes: Mapping[str, Note]
    tensors: Mapping[str, Tensor]
    content_hash: bytes


def save_checkpoint(
    path: Path, kind: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Note] | None = None
) -> bytes:
    """Replace ``path`` by a checkpoint of ``tensors``; returns its content hash once it is on the disk.

    One writer a path. Raises `OSError` as the disk does; ``path`` is then as it was before.
    """
    buffers = {name: _bytes_of(tensor) for name, tensor in sorted(tensors.items())}
    entries = tuple(
        TensorEntry(
            name=name,
            dtype=_DTYPE_NAMES[tensors[name].dtype],
            shape=tuple(tensors[name].shape),
            digest=blake2b(buffer, digest_size=32).digest(),
        )
        for name, buffer in buffers.items()
    )
    header = encode_record(Header(kind=kind, notes=dict(notes or {}), tensors=entries))
    content_hash = tagged_hash(Domain.CHECKPOINT, header)
    # One fixed name: what a kill leaves behind is overwritten by the next save and never piles up.
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(MAGIC + content_hash + len(header).to_bytes(8, "little") + header)
        for buffer in buffers.values():
            file.write(buffer)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)  # the rename itself is only on the disk after this
    return content_hash


def load_checkpoint(path: Path, kind: str) -> Checkpoint:
    """Read and check the whole file.

    Raises `CheckpointCorrupt` for anything that `save_checkpoint` of this ``kind`` did not write, and `OSError`,
    `FileNotFoundError` among them, as the disk does. Sizes are checked against the file's own before memory is taken,
    and against no other bound: whatever was written can be read.
    """
    with path.open("rb") as file:
        header, content_hash = _read_header(file, path)
        if header.kind != kind:
            raise CheckpointCorrupt(f"{path} holds {header.kind!r}, not {kind!r}")
        sizes = [_size_bytes(entry, path) for entry in header.tensors]
        left = os.fstat(file.fileno()).st_size - file.tell()
        if sum(sizes) != left:
            raise CheckpointCorrupt(f"{path} has {left} bytes of tensors where its header tells of {sum(sizes)}")
        tensors = {
            entry.name: _read_tensor(file, path, entry, size) for entry, size in zip(header.tensors, sizes, strict=True)
        }
    if len(tensors) != len(header.tensors):
        raise CheckpointCorrupt(f"{path} names a tensor twice")
    return Checkpoint(header.kind, header.notes, tensors, content_hash)


def set_aside(path: Path) -> Path:
    """Move a corrupt checkpoint out of the way, for a person to look at; returns where it is now."""
    aside = path.with_name(path.name + ".corrupt")
    path.replace(aside)
    return aside


def _read_header(file: BinaryIO, path: Path) -> tuple[Header, bytes]:
    magic, content_hash, length = file.read(len(MAGIC)), file.read(32), int.from_bytes(file.read(8), "little")
    if magic != MAGIC or length > os.fstat(file.fileno()).st_size:
        raise CheckpointCorrupt(f"{path} is no checkpoint")
    encoded = file.read(length)
    if tagged_hash(Domain.CHECKPOINT, encoded) != content_hash:
        raise CheckpointCorrupt(f"{path}: its header is not the one that was written")
    try:
        header = decode_record(encoded, Header, max_bytes=length)
    except RemoteProtocolError as error:
        raise CheckpointCorrupt(f"{path}: its header does not parse: {error}") from error
    return header, content_hash


def _size_bytes(entry: TensorEntry, path: Path) -> int:
    if entry.dtype not in _DTYPES or any(extent < 0 for extent in entry.shape):
        raise CheckpointCorrupt(f"{path}: tensor {entry.name!r} is of no known type or shape")
    return math.prod(entry.shape) * _DTYPES[entry.dtype].itemsize


def _read_tensor(file: BinaryIO, path: Path, entry: TensorEntry, size: int) -> Tensor:
    buffer = bytearray(size)
    got = file.readinto(buffer) if size else 0  # type: ignore[attr-defined]  # a file opened "rb" has it
    if got != size or blake2b(buffer, digest_size=32).digest() != entry.digest:
        raise CheckpointCorrupt(f"{path}: the bytes of tensor {entry.name!r} are not those that were written")
    dtype = _DTYPES[entry.dtype]
    if size == 0:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype).reshape(entry.shape)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's own memory where it is contiguous on the CPU, else that of a copy. Hosts are little-endian."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array: npt.NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return array.data


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
