"""Reading HTTP answers: as the standard library reads them, and nothing but the named errors for any bytes."""

from __future__ import annotations

import http.client
from contextlib import suppress
from io import BufferedReader, BytesIO, RawIOBase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moed.daemon.http_reply import BadReply, HttpReply


class Pieces(RawIOBase):
    """A stream that gives bytes in pieces of these lengths, over and over."""

    def __init__(self, data: bytes, lengths: list[int]) -> None:
        self._data, self._lengths, self._at = data, lengths, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        length = min(self._lengths[self._at % len(self._lengths)], len(buffer), len(self._data))
        self._at += 1
        buffer[:length], self._data = self._data[:length], self._data[length:]
        return length


class Socket:
    """What `http.client` wants of one."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> BytesIO:
        return BytesIO(self._data)


bodies = st.lists(st.binary(max_size=300), max_size=5)
lengths = st.lists(st.integers(1, 200), min_size=1, max_size=5)


def answer(parts: list[bytes], framing: str, status: int) -> bytes:
    body = b"".join(parts)
    head = b"HTTP/1.1 %d Words\r\nContent-Type: text/plain\r\nmoed-api: 1\r\n" % status
    if framing == "length":
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    if framing == "chunked":
        chunks = b"".join(b"%X\r\n%s\r\n" % (len(part), part) for part in parts if part)
        return head + b"transfer-encoding: Chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    return head + b"\r\n" + body


@given(bodies, st.sampled_from(["length", "chunked", "close"]), st.integers(200, 599), lengths)
def test_it_reads_what_the_standard_library_reads(
    parts: list[bytes], framing: str, status: int, lengths: list[int]
) -> None:
    """Status, body and lines, however the body is framed and the stream is cut."""
    if status in (204, 304):
        status = 200  # these have no body
    data = answer(parts, framing, status)
    oracle = http.client.HTTPResponse(Socket(data))  # type: ignore[arg-type]
    oracle.begin()
    body = oracle.read()
    found = HttpReply(BufferedReader(Pieces(data, lengths)))
    assert (found.status, found.read(1 << 20)) == (oracle.status, body)
    *whole, rest = body.split(b"\n")
    expected = [line.removesuffix(b"\r") for line in whole] + ([rest] if rest else [])
    assert list(HttpReply(BufferedReader(Pieces(data, lengths))).lines()) == expected


@given(bodies, st.sampled_from(["length", "chunked"]), st.data(), lengths)
def test_a_cut_answer_is_never_taken_for_a_whole_one(
    parts: list[bytes], framing: str, data: st.DataObject, lengths: list[int]
) -> None:
    """Wherever it breaks off, in its head or its body."""
    whole = answer(parts, framing, 200)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(BadReply):
        HttpReply(BufferedReader(Pieces(cut, lengths))).read(1 << 20)


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]),
)
def test_any_bytes_give_an_answer_or_its_error(junk: bytes, head: bytes) -> None:
    """A stranger's socket may say anything."""
    with suppress(BadReply):
        HttpReply(BufferedReader(BytesIO(head + junk))).read(100)


def test_what_is_too_long_is_refused() -> None:
    """A body over the bound, a line without an end, headers without an end."""
    assert HttpReply(BufferedReader(Pieces(answer([b"x" * 101], "close", 200), [50]))).read(100) is None
    for data in (b"HTTP/1.1 200 " + b"x" * 70_000, b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 101):
        with pytest.raises(BadReply, match="over"):
            HttpReply(BufferedReader(Pieces(data, [4096])))
