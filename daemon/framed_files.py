"""Files of frames, known when they are cut or changed: a magic line, the network's id, frames, a hash of it all.

A frame is its length (4 bytes, big-endian) and so many bytes; an empty one ends them, and BLAKE2b-256 of everything
before it follows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from moed.consensus.blocks import MAX_BLOCK_RECORD_BYTES

from .errors import ChainFileError, StoreFailed

MAX_FRAME_BYTES = 2 * MAX_BLOCK_RECORD_BYTES
_LENGTH_BYTES = 4
_HASH_BYTES = 32
_AGAIN = "get the file again"
BLOCKS_MAGIC = b"moed chain 1\n"
STATE_MAGIC = b"moed state 1\n"


class FrameWriter:
    """Writes frames and hashes them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = blake2b(digest_size=_HASH_BYTES)

    def write(self, frame: bytes) -> None:
        """Add one frame, which must not be empty."""
        self._put(len(frame).to_bytes(_LENGTH_BYTES, "big") + frame)

    def _put(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(data)

    def begin(self, magic: bytes, network_id: bytes) -> None:
        self._put(magic + network_id)

    def end(self) -> None:
        self._put(b"\0" * _LENGTH_BYTES)
        self._file.write(self._hash.digest())


@contextmanager
def writing(path: Path, magic: bytes, network_id: bytes) -> Iterator[FrameWriter]:
    """A new file, which appears under its name when all of it is on the disk. Raises `StoreFailed`."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            writer = FrameWriter(file)
            writer.begin(magic, network_id)
            yield writer
            writer.end()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreFailed(f"cannot write {path}: {error.strerror}", "check the folder and the free space") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_frames(path: Path, magic: bytes, network_id: bytes) -> Iterator[bytes]:
    """The frames of a file, one by one. Whether it is whole and unchanged is known, and said, after the last one.

    Raises `ChainFileError`.
    """
    try:
        with path.open("rb") as file:
            yield from _Reader(file, path).frames(magic, network_id)
    except OSError as error:
        raise ChainFileError(f"cannot read {path}: {error.strerror}", "check its name, owner and mode") from error


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._hash = blake2b(digest_size=_HASH_BYTES)

    def frames(self, magic: bytes, network_id: bytes) -> Iterator[bytes]:
        begins = self._file.read(len(magic))
        if begins != magic:
            raise ChainFileError(*_mistaken(self._path, begins))
        self._hash.update(begins)
        found = self._take(len(network_id))
        if found != network_id:
            raise ChainFileError(
                f"{self._path} is of network {found.hex()[:12]}, and the genesis here of {network_id.hex()[:12]}",
                "import it into a home of that network",
            )
        while size := int.from_bytes(self._take(_LENGTH_BYTES), "big"):
            if size > MAX_FRAME_BYTES:
                raise ChainFileError(f"{self._path} holds a part of {size} bytes", _AGAIN)
            yield self._take(size)
        if self._file.read(_HASH_BYTES + 1) != self._hash.digest():
            raise ChainFileError(f"{self._path} is not what was exported: its hash differs", _AGAIN)

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise ChainFileError(f"{self._path} ends in the middle", f"{_AGAIN}; what it held is kept")
        self._hash.update(data)
        return data


def _mistaken(path: Path, begins: bytes) -> tuple[str, str]:
    """What to say of a file that is not of the wanted sort, by how it begins."""
    if begins == STATE_MAGIC:
        return f"{path} is a snapshot", "add --validators FILE: it is believed if those signed it"
    if begins == BLOCKS_MAGIC:
        return f"{path} holds blocks and is no snapshot", "import it without --validators: its blocks are executed"
    return f"{path} is no chain file", "name a file of `moed chain export` or `moed chain snapshot`"
