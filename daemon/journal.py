"""An append-only file of small entries that survives any cut: what `append` returned from is there, whole."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Protocol
from zlib import crc32

from .errors import StoreCorrupt, StoreFailed

_HEAD = struct.Struct(">II")  # checksum of the payload, its length
MAX_ENTRY_BYTES = 1 << 23
SECTOR_BYTES = 512
"""A disk writes no less at a time."""
_REMEDY = "restore it from a backup; without it this key could sign twice and be slashed"

COMPACT_BYTES = 1 << 18
"""A journal grows to this before what is needless in it goes: to append costs one flush, to replace a file three."""


class Journal(Protocol):
    """Entries in the order in which they were written; each is on stable storage when its call returns."""

    def entries(self) -> list[bytes]:
        """What was found when the journal was opened: everything since the last `supersede`, and maybe before."""

    def append(self, entry: bytes) -> None:
        """Add one entry."""

    def supersede(self, entry: bytes) -> None:
        """Add an entry that makes all before it needless; they go now or later."""


class FileJournal:
    """A journal in one file. An entry that a cut left unfinished at the end is dropped: nobody was told of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        data = _read(path)
        self._found, self._size_bytes = parse_entries(data, str(path))
        if self._size_bytes < len(data):
            with path.open("r+b") as file:
                file.truncate(self._size_bytes)

    def entries(self) -> list[bytes]:
        return list(self._found)

    def append(self, entry: bytes) -> None:
        if self._size_bytes == 0:
            self._replace(entry)  # so that a file without a whole first entry is damage, and no cut
            return
        framed = frame_entry(entry)
        try:
            _write_synced(self._path, os.O_APPEND, framed)
        except OSError as error:
            raise self._failed(error) from error
        self._size_bytes += len(framed)

    def supersede(self, entry: bytes) -> None:
        if self._size_bytes < COMPACT_BYTES:
            self.append(entry)
        else:
            self._replace(entry)

    def _replace(self, entry: bytes) -> None:
        temporary = self._path.with_suffix(".tmp")
        framed = frame_entry(entry)
        try:
            _write_synced(temporary, os.O_TRUNC, framed)
            os.replace(temporary, self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self._failed(error) from error
        self._size_bytes = len(framed)

    def _failed(self, error: OSError) -> StoreFailed:
        return StoreFailed(f"cannot write {self._path}: {error.strerror}", "check the disk; nothing was signed")


def _checksum(entry: bytes) -> int:
    """CRC-32 from a start value of 1: zeros, which a power cut may leave at the end of a file, are no entry."""
    return crc32(entry, 1)


def frame_entry(entry: bytes) -> bytes:
    """An entry as it stands in a file: checksum, length, content."""
    return _HEAD.pack(_checksum(entry), len(entry)) + entry


def parse_entries(data: bytes, name: str) -> tuple[list[bytes], int]:
    """The whole entries of a journal's bytes, and where the last one ends.

    Raises `StoreCorrupt`, with ``name``, if what follows is damage, and not a write that a cut ended: an entry that was
    acknowledged must never be forgotten. The first entry came by a rename after it was synced, so no cut explains its
    absence either.
    """
    entries: list[bytes] = []
    at = 0
    while (entry := _entry_at(data, at)) is not None:
        entries.append(entry)
        at += _HEAD.size + len(entry)
    if at == 0 and any(data):
        raise StoreCorrupt(f"{name} does not begin with a whole entry", _REMEDY)
    if not _is_cut(data, at):
        raise StoreCorrupt(f"{name} is damaged at byte {at}, which no power cut explains", _REMEDY)
    return entries, at


def _entry_at(data: bytes, at: int) -> bytes | None:
    """The whole entry that begins at this place, or None."""
    if at + _HEAD.size > len(data):
        return None
    checksum, size = _HEAD.unpack_from(data, at)
    entry = data[at + _HEAD.size : at + _HEAD.size + size]
    is_whole = size <= MAX_ENTRY_BYTES and len(entry) == size and _checksum(entry) == checksum
    return entry if is_whole else None


def _is_cut(data: bytes, at: int) -> bool:
    """Whether what lies from ``at`` on, and begins with no whole entry, is what a cut may leave of one write.

    That is: fewer bytes than the entry has, or zeros where a sector was never written. What contradicts it is a whole
    entry that ends with the file, or a content that has its checksum and another length than its head says.
    """
    if at + _HEAD.size > len(data) or not any(data[at : at + _HEAD.size]):
        return not _ends_with_an_entry(data, at)
    checksum, size = _HEAD.unpack_from(data, at)
    end = at + _HEAD.size + size
    if size > MAX_ENTRY_BYTES:
        return False
    if end > len(data):
        return _checksum(data[at + _HEAD.size :]) != checksum and not _ends_with_an_entry(data, at)
    written_sectors = -(-len(data.rstrip(b"\0")) // SECTOR_BYTES)
    return bool(written_sectors * SECTOR_BYTES < end)


def _ends_with_an_entry(data: bytes, after: int) -> bool:
    """Whether a whole entry that begins after this place ends with the file: then the last write was a whole one."""
    return any(
        _HEAD.unpack_from(data, at)[1] == len(data) - at - _HEAD.size and _entry_at(data, at) is not None
        for at in range(after + 1, len(data) - _HEAD.size)
    )


def _write_synced(path: Path, flags: int, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
    try:
        written = 0
        while written < len(data):
            written += os.write(descriptor, data[written:])
        os.fdatasync(descriptor)  # the length with the data; no other metadata matters
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StoreFailed(f"cannot read {path}: {error.strerror}", "check its owner and mode") from error
