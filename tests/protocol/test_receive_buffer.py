"""The receive buffer keeps what arrives, whatever is asked of it while a read is under way."""

from __future__ import annotations

from moed.protocol.receive_buffer import LARGE_BUFFER_BYTES, SMALL_BUFFER_BYTES, ReceiveBuffer

MESSAGE = bytes(range(256)) * 200


def give(buffer: ReceiveBuffer, data: bytes) -> None:
    """Write ``data`` as a socket does: in pieces, each into the space offered."""
    while data:
        space = buffer.space()
        count = min(len(space), len(data))
        space[:count] = data[:count]
        buffer.received(count)
        buffer.compact()
        data = data[count:]
        if buffer.take_message(65_535) is not None:
            buffer.compact()


def test_a_trim_during_a_read_loses_nothing() -> None:
    """The space that was given out is still the one that is read from, even if a trim was asked for meanwhile."""
    buffer = ReceiveBuffer()
    give(buffer, len(MESSAGE).to_bytes(2, "big") + MESSAGE)
    space = buffer.space()
    assert len(space) > SMALL_BUFFER_BYTES
    buffer.trim()
    framed = (3).to_bytes(2, "big") + b"abc"
    space[: len(framed)] = framed
    buffer.received(len(framed))
    taken = buffer.take_message(65_535)
    assert taken is not None
    assert bytes(taken) == b"abc"


def test_a_trim_gives_the_large_buffer_back() -> None:
    """After large messages an idle session is small again, and grows again when it must."""
    buffer = ReceiveBuffer()
    give(buffer, len(MESSAGE).to_bytes(2, "big") + MESSAGE)
    assert len(buffer.space()) == LARGE_BUFFER_BYTES
    buffer.trim()
    assert len(buffer.space()) == SMALL_BUFFER_BYTES
