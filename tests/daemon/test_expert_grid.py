"""What a server announces of its experts, and what a seeker reads from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from moed.daemon.expert_grid import MAX_COORDINATE, MAX_REMEMBERED, REMEMBER_S, GridDirectory, grid_topics
from moed.protocol.identity import NodeId, node_id_of
from moed.protocol.records import MAX_NOTE_BYTES, TopicEntry

SERVERS = {bytes([number]) * 32: names for number, names in enumerate((["f.0.1", "f.0.7"], ["f.0.7", "f.3.2"], ["x"]))}


def node(number: int) -> NodeId:
    return node_id_of(bytes([number]) * 32)


class Topics:
    """The topic entries of `SERVERS`, and how often each topic was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def find(self, topic: str) -> list[TopicEntry]:
        self.asked.append(topic)
        return [
            TopicEntry(topic=topic, note=notes[topic], owner=owner)
            for owner, notes in ((owner, grid_topics(names)) for owner, names in SERVERS.items())
            if topic in notes
        ]


async def test_a_seeker_reads_who_lives_below_a_prefix(autojump_clock: MockClock) -> None:
    """Children of several servers are joined, each topic is asked for once and again when it is old."""
    topics = Topics()
    directory = GridDirectory(topics.find)
    live = await directory.live(["f.0.", "f.3.", "f.5."])
    assert {prefix: set(children) for prefix, children in live.items()} == {"f.0.": {1, 7}, "f.3.": {2}, "f.5.": set()}
    assert list(directory.owners("f.0.7")) == [node(0), node(1)]
    assert directory.owners("f.1.1") == []
    assert directory.owners("x") == []
    await directory.live(["f.0."])
    assert len(topics.asked) == 3
    autojump_clock.jump(REMEMBER_S + 1)
    await directory.live(["f.0."])
    assert len(topics.asked) == 4


async def test_more_prefixes_than_are_remembered_are_all_answered() -> None:
    """What is read pushes out what is remembered, that of the same question among it."""
    directory = GridDirectory(Topics().find)
    await directory.live(["f.0."])
    many = ["f.0.", *(f"g.{number}." for number in range(MAX_REMEMBERED))]
    live = await directory.live(many)
    assert live.keys() == set(many)
    assert set(live["f.0."]) == {1, 7}


async def test_an_expert_is_found_by_its_name_alone() -> None:
    """On a grid or not, by one question, asked once."""
    topics = Topics()
    directory = GridDirectory(topics.find)
    for _ in range(2):
        await directory.find(["x", "f.3.2", "nobody", "f.9.9"])
    assert sorted(topics.asked) == ["expert:nobody", "expert:x", "grid:f.3.", "grid:f.9."]
    assert list(directory.owners("x")) == [node(2)]
    assert list(directory.owners("f.3.2")) == [node(1)]
    assert list(directory.owners("nobody")) == list(directory.owners("f.9.9")) == []


async def test_a_place_is_live_while_one_of_its_servers_is() -> None:
    """A server that does not answer takes only those with it that nobody else serves."""
    out: set[NodeId] = {node(1)}
    directory = GridDirectory(Topics().find, is_out=lambda owner: owner in out)
    live = await directory.live(["f.0.", "f.3."])
    assert {prefix: set(children) for prefix, children in live.items()} == {"f.0.": {1, 7}, "f.3.": set()}


@given(st.sets(st.integers(0, MAX_COORDINATE), min_size=1))
def test_a_note_holds_any_children_in_its_bounds(children: set[int]) -> None:
    """Up to 1,024 of them in 128 bytes."""
    (note,) = grid_topics([f"f.3.{child}" for child in children]).values()
    assert len(note) <= MAX_NOTE_BYTES
    bits = int.from_bytes(note, "little")
    assert {one for one in range(MAX_COORDINATE + 1) if bits >> one & 1} == children


def test_what_cannot_be_announced_is_refused() -> None:
    """A coordinate beyond the note, or a name too long for a topic."""
    assert grid_topics(["prose"]) == {"expert:prose": b""}
    with pytest.raises(ValueError, match="too long"):
        grid_topics(["x" * 58])
    assert list(grid_topics(["f.7"])) == ["grid:f."]
    assert list(grid_topics(["f.1.2.3"])) == ["grid:f.1.", "grid:f.1.2."]
    with pytest.raises(ValueError, match="coordinates"):
        grid_topics(["f.0.1024"])
