"""Frames as bytes: what is written is read back, and nothing else parses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moed.protocol.errors import Malformed
from moed.protocol.frames import (
    Data,
    Frame,
    Goodbye,
    GoodbyeCode,
    Open,
    Ping,
    Pong,
    Priority,
    Reset,
    ResetCode,
    Role,
    Window,
    encode_frame,
    read_frames,
)

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)


@st.composite
def opens(draw: st.DrawFn) -> Open:
    """An OPEN frame whose inline bytes fit its size."""
    inline = draw(st.binary(max_size=50))
    size = draw(st.integers(max(len(inline), 1), 2**64 - 1))
    role, priority = draw(st.sampled_from(Role)), draw(st.sampled_from(Priority))
    return Open(draw(U64), role, priority, draw(U32), size, inline)


HEADS = st.one_of(
    opens(),
    st.builds(Window, U64, U32),
    st.builds(Reset, U64, st.sampled_from(ResetCode)),
    st.builds(Ping, U64),
    st.builds(Pong, U64),
    st.builds(Goodbye, st.sampled_from(GoodbyeCode)),
)


@given(frames=st.lists(HEADS, min_size=1, max_size=6), last=st.none() | st.builds(Data, U64, st.integers(1, 2**32 - 1)))
def test_what_is_written_is_read_back(frames: list[Frame], last: Data | None) -> None:
    """A block of any frames, DATA at its end, parses to the same frames."""
    frames = frames if last is None else [*frames, last]
    block = b"".join(encode_frame(frame) for frame in frames)
    assert list(read_frames(memoryview(block))) == frames


@given(block=st.binary(max_size=120))
def test_any_block_parses_to_itself_or_is_malformed(block: bytes) -> None:
    """What is accepted is exactly what we would have written."""
    try:
        frames = list(read_frames(memoryview(block)))
    except Malformed:
        return
    assert b"".join(encode_frame(frame) for frame in frames) == block


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\x00",
        b"\x08",
        encode_frame(Ping(1))[:-1],
        encode_frame(Goodbye(GoodbyeCode.SHUTDOWN))[:1] + b"\x09",
        encode_frame(Data(1, 5)) + encode_frame(Ping(1)),
        encode_frame(Open(1, Role.REQUEST, Priority.NORMAL, 0, 3, b"abc"))[:-1],
    ],
)
def test_malformed_blocks_are_refused(block: bytes) -> None:
    """Empty, unknown, cut off, or going on after DATA."""
    with pytest.raises(Malformed):
        list(read_frames(memoryview(block)))
