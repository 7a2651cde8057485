"""The journal holds every entry whose append returned, however the file was cut behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moed.daemon.errors import StoreCorrupt
from moed.daemon.journal import COMPACT_BYTES, SECTOR_BYTES, FileJournal, frame_entry, parse_entries

ENTRIES = (b"one", b"", b"three", b"four", b"five, with end")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6), st.binary(max_size=40), st.data())
def test_a_cut_loses_only_the_entry_under_way(
    tmp_path: Path, acknowledged: list[bytes], under_way: bytes, data: st.DataObject
) -> None:
    """Cut anywhere inside the last, unacknowledged entry: the ones before it are whole, and writing goes on."""
    path = tmp_path / "journal"
    path.unlink(missing_ok=True)
    journal = FileJournal(path)
    for entry in acknowledged:
        journal.append(entry)
    safe = path.stat().st_size
    journal.append(under_way)
    cut = data.draw(st.integers(safe, path.stat().st_size - 1))
    with path.open("r+b") as file:
        file.truncate(cut)
    again = FileJournal(path)
    assert again.entries() == acknowledged
    again.append(b"next")
    assert FileJournal(path).entries() == [*acknowledged, b"next"]


def test_a_flipped_bit_is_no_cut(tmp_path: Path) -> None:
    """Whatever bit of acknowledged entries is damaged, it is said: to forget an entry could be to sign twice."""
    path = tmp_path / "journal"
    journal = FileJournal(path)
    for entry in ENTRIES:
        journal.append(entry)
    whole = path.read_bytes()
    for place in range(len(whole) * 8):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(StoreCorrupt):
            FileJournal(path)
        assert path.read_bytes() == data


@given(st.integers(1, 2_000), st.integers(1, 2_000), st.data())
def test_sectors_that_were_never_written_are_a_cut(before: int, size: int, data: st.DataObject) -> None:
    """A file may be as long as the entry under way and have zeros from some sector on; that entry is forgotten."""
    first, second = (frame_entry(b"\x01" * length) for length in (before, size))
    sectors = range(-(-(len(first) + 1) // SECTOR_BYTES), -(-(len(first) + len(second)) // SECTOR_BYTES))
    kept = data.draw(st.sampled_from([len(first), *(place * SECTOR_BYTES for place in sectors)]))
    torn = (first + second)[:kept].ljust(len(first) + len(second), b"\0")
    assert parse_entries(torn, "torn") == ([b"\x01" * before], len(first))


def test_zeros_at_the_end_are_no_entries(tmp_path: Path) -> None:
    """A power cut can leave a file longer than what was written, with zeros in the rest."""
    path = tmp_path / "journal"
    FileJournal(path).append(b"one")
    with path.open("ab") as file:
        file.write(bytes(100))
    again = FileJournal(path)
    assert again.entries() == [b"one"]
    again.append(b"two")
    assert FileJournal(path).entries() == [b"one", b"two"]


def test_what_is_superseded_goes_when_it_takes_room(tmp_path: Path) -> None:
    """The file is bounded however many entries make the ones before them needless, and ends with the last ones."""
    path = tmp_path / "journal"
    journal = FileJournal(path)
    sizes = []
    for number in range(40):
        journal.supersede(bytes([number]) * (COMPACT_BYTES // 8))
        journal.append(b"beside %d" % number)
        sizes.append(path.stat().st_size)
        assert FileJournal(path).entries()[-2:] == [bytes([number]) * (COMPACT_BYTES // 8), b"beside %d" % number]
    assert max(sizes) < 2 * COMPACT_BYTES


def test_a_damaged_first_entry_is_no_cut(tmp_path: Path) -> None:
    """The first entry appears whole by a rename: without it nobody knows what was signed, and that is said."""
    path = tmp_path / "journal"
    FileJournal(path).append(b"one")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreCorrupt):
        FileJournal(path)
