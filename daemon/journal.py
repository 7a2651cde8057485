"""An append-only file of small entries that survives any cut: what `append` returned from is there, whole."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from zlib import crc32

from .errors import StoreCorrupt, StoreFailed

_HEAD = struct.Struct(">II")  # checksum of the payload, its length
MAX_ENTRY_BYTES = 1 << 23


class Journal(Protocol):
    """Entries in the order in which they were written; each is on stable storage when its call returns."""

    def entries(self) -> list[bytes]:
        """Everything since the last `restart`, that one's entries first."""

    def append(self, entry: bytes) -> None:
        """Add one entry."""

    def restart(self, entries: Sequence[bytes]) -> None:
        """Replace everything by ``entries``, all or nothing."""


class FileJournal:
    """A journal in one file. An entry that a cut left unfinished at the end is dropped: nobody was told of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries, whole = _read(path)
        if path.exists() and whole < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(whole)

    def entries(self) -> list[bytes]:
        return list(self._entries)

    def append(self, entry: bytes) -> None:
        if not self._entries:
            self.restart([entry])  # so that a file without a whole first entry is damage, and no cut
            return
        try:
            _write_synced(self._path, os.O_APPEND, _framed(entry))
        except OSError as error:
            raise self._failed(error) from error
        self._entries.append(entry)

    def restart(self, entries: Sequence[bytes]) -> None:
        temporary = self._path.with_suffix(".tmp")
        try:
            _write_synced(temporary, os.O_TRUNC, b"".join(_framed(entry) for entry in entries))
            os.replace(temporary, self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self._failed(error) from error
        self._entries = list(entries)

    def _failed(self, error: OSError) -> StoreFailed:
        return StoreFailed(f"cannot write {self._path}: {error.strerror}", "check the disk; nothing was signed")


def _checksum(entry: bytes) -> int:
    """CRC-32 from a start value of 1: zeros, which a power cut may leave at the end of a file, are no entry."""
    return crc32(entry, 1)


def _framed(entry: bytes) -> bytes:
    return _HEAD.pack(_checksum(entry), len(entry)) + entry


def _write_synced(path: Path, flags: int, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
    try:
        written = 0
        while written < len(data):
            written += os.write(descriptor, data[written:])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> tuple[list[bytes], int]:
    """The whole entries of a file, and where the last one ends."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise StoreFailed(f"cannot read {path}: {error.strerror}", "check its owner and mode") from error
    entries: list[bytes] = []
    at = 0
    while at + _HEAD.size <= len(data):
        checksum, size = _HEAD.unpack_from(data, at)
        entry = data[at + _HEAD.size : at + _HEAD.size + size]
        if size > MAX_ENTRY_BYTES or len(entry) < size or _checksum(entry) != checksum:
            break
        entries.append(entry)
        at += _HEAD.size + size
    if at == 0 and any(data):
        # the first entry came by a rename after it was synced, so no cut explains this
        raise StoreCorrupt(f"{path} does not begin with a whole entry", "restore it from a backup")
    return entries, at
