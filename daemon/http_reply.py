"""One HTTP/1.1 answer, read from a stream of bytes as it comes.

`http.client` reads them too, and loads TLS and e-mail for it: that was a third of the time that `moectl status` takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

MAX_LINE_BYTES = 65536
MAX_HEADERS = 100
_PIECE_BYTES = 65536


class BadReply(Exception):
    """What came is no whole HTTP answer."""


class HttpReply:
    """An answer whose head has been read. Its body is read once, by `read` or by `lines`; `close` it afterwards."""

    def __init__(self, stream: BinaryIO) -> None:
        """Read the head, which may wait. Raises `BadReply`, and `OSError` of the stream."""
        self._stream = stream
        first = self._line()
        version, _, rest = first.partition(b" ")
        code = rest[:3]
        if not version.startswith(b"HTTP/1.") or len(code) != 3 or not code.isdigit():
            raise BadReply(f"no HTTP: {first[:80]!r}")
        self.status = int(code)
        headers = self._headers()
        self._is_chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        self._length = self._length_of(headers.get(b"content-length"))

    def read(self, max_bytes: int) -> bytes | None:
        """The whole body, None if it is longer. Raises `BadReply` where it breaks off, and `OSError`."""
        data = bytearray()
        for piece in self._pieces():
            data += piece
            if len(data) > max_bytes:
                return None
        return bytes(data)

    def lines(self) -> Iterator[bytes]:
        """Each line of the body as it comes, without its end. Raises as `read` does."""
        rest = b""
        for piece in self._pieces():
            *whole, rest = (rest + piece).split(b"\n")
            yield from (line.removesuffix(b"\r") for line in whole)
        if rest:
            yield rest

    def close(self) -> None:
        """Let go of the stream."""
        self._stream.close()

    def _headers(self) -> dict[bytes, bytes]:
        headers: dict[bytes, bytes] = {}
        for _ in range(MAX_HEADERS):
            line = self._line()
            if not line.strip():
                return headers
            name, _, value = line.partition(b":")
            headers.setdefault(name.strip().lower(), value.strip())
        raise BadReply(f"no HTTP: over {MAX_HEADERS} headers")

    def _line(self) -> bytes:
        line = self._stream.readline(MAX_LINE_BYTES)
        if len(line) == MAX_LINE_BYTES:
            raise BadReply(f"no HTTP: a line over {MAX_LINE_BYTES} bytes")
        if not line.endswith(b"\n"):
            raise BadReply("it closed the connection in the middle of a line" if line else "it closed the connection")
        return line

    def _length_of(self, text: bytes | None) -> int | None:
        if self._is_chunked or text is None:
            return None
        return _number(text, 10)

    def _pieces(self) -> Iterator[bytes]:
        """The body as it comes: in chunks, of the length that was told, or to the stream's end."""
        if not self._is_chunked:
            yield from self._run_of(self._length)
            return
        while size := _number(self._line().partition(b";")[0].strip(), 16):
            yield from self._run_of(size)
            if self._line().strip():
                raise BadReply("a chunk is longer than it says")
        while self._line().strip():  # trailers
            pass

    def _run_of(self, length: int | None) -> Iterator[bytes]:
        left = length
        while left is None or left > 0:
            # a buffered reader's `read1`: what is there now, so that an event is told when it comes
            piece = self._stream.read1(_PIECE_BYTES if left is None else min(left, _PIECE_BYTES))  # type: ignore[attr-defined]
            if not piece:
                if left is None:
                    return
                raise BadReply(f"{left} bytes are missing")
            left = None if left is None else left - len(piece)
            yield piece


def _number(text: bytes, base: int) -> int:
    digits = b"0123456789abcdefABCDEF" if base == 16 else b"0123456789"
    if not text or text.strip(digits) or len(text) > 16:
        raise BadReply(f"no length: {text[:80]!r}")
    return int(text, base)
