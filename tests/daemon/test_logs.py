"""Logs: what a line looks like where, what never gets into one, and what a slow follower misses."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
import structlog
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from moed.daemon.log_limiter import MAX_ABOUT_ALL, MAX_ABOUT_ONE, MAX_SUBJECTS, WINDOW_S, LogLimiter
from moed.daemon.log_ring import LogRing
from moed.daemon.logs import LEVELS, MAX_TRACEBACK_CHARS, MAX_VALUE_CHARS, bound_and_redact, configure_logging


class Terminal(StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def structlog_as_before() -> Iterator[None]:
    """Every test leaves structlog as it found it."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_a_line_for_the_journal_is_json_behind_its_priority() -> None:
    """Not on a terminal: the syslog priority that journald reads, then one JSON object."""
    stream = StringIO()
    configure_logging(stream=stream)
    log = structlog.get_logger()
    log.warning("peer.refused", peer="ab", count=3)
    log.error("store.failed")
    lines = stream.getvalue().splitlines()
    assert [line[:3] for line in lines] == ["<4>", "<3>"]
    first = json.loads(lines[0][3:])
    assert list(first)[:3] == ["timestamp", "level", "event"]
    assert (first["level"], first["event"], first["peer"], first["count"]) == ("warning", "peer.refused", "ab", 3)


def test_json_in_a_file_stays_json() -> None:
    """The operator who asks for JSON gets nothing before it, unless standard error is the journal."""
    stream = StringIO()
    configure_logging(form="json", stream=stream)
    structlog.get_logger().info("node.ready")
    assert json.loads(stream.getvalue())["event"] == "node.ready"


def test_json_into_the_journal_has_its_priority(tmp_path: Any) -> None:
    """systemd names the journal's stream by device and inode."""
    with open(tmp_path / "journal", "w+") as stream:
        found = os.fstat(stream.fileno())
        configure_logging(form="json", stream=stream, environ={"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        structlog.get_logger().info("node.ready")
        stream.seek(0)
        assert stream.read().startswith('<6>{"timestamp"')


def test_a_terminal_gets_colours_and_no_foreign_escapes() -> None:
    """What a peer said cannot move the cursor: its escape is shown as text."""
    stream = Terminal()
    configure_logging(stream=stream)
    structlog.get_logger().info("peer.said", words="\x1b[2Jboo")
    assert "\x1b[" in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()
    assert "\\x1b[2Jboo" in stream.getvalue()


def test_the_level_changes_while_it_runs() -> None:
    """A lower level keeps more from the next event on; loggers made before follow."""
    logs = configure_logging("warning", stream=StringIO())
    log = structlog.get_logger().bind(part="x")
    log.info("a.lost")
    logs.set_level("debug")
    log.debug("b.kept")
    logs.set_level("error")
    log.warning("c.lost")
    assert [json.loads(line.json)["event"] for line in logs.ring.read(0).lines] == ["b.kept"]
    with pytest.raises(KeyError):
        logs.set_level("loud")
    assert logs.level == "error"


def test_secrets_are_left_out_wherever_they_hide() -> None:
    """By the name of a field or of a key inside one."""
    stream = StringIO()
    logs = configure_logging(stream=stream)
    structlog.get_logger().error(
        "key.made", seed=b"hush", private_key="hush", nested={"password": "hush", "port": 1}, api_token=["hush"]
    )
    assert "hush" not in stream.getvalue()
    assert b"hush" not in logs.ring.read(0).lines[0].json
    assert json.loads(logs.ring.read(0).lines[0].json)["nested"] == {"password": "[secret]", "port": 1}


def test_a_traceback_is_one_field_of_bounded_size() -> None:
    """The end of it is kept: there the error stands."""
    logs = configure_logging(stream=StringIO())

    def dig(depth: int) -> None:
        if depth == 0:
            raise ValueError("the bottom")
        try:
            dig(depth - 1)
        except ValueError as error:
            raise ValueError(f"level {depth}") from error

    try:
        dig(200)
    except ValueError:
        structlog.get_logger().exception("request.crashed")
    told = json.loads(logs.ring.read(0).lines[0].json)["exception"]
    assert told.endswith("ValueError: level 200")
    assert len(told) <= MAX_TRACEBACK_CHARS + 1


def test_libraries_log_here_too() -> None:
    """What a library warns of by the standard way is an event with its name."""
    logs = configure_logging(stream=StringIO())
    logging.getLogger("kademlia.network").warning("lost %s", "a node")
    logging.getLogger("kademlia.network").info("chatter")
    (line,) = logs.ring.read(0).lines
    told = json.loads(line.json)
    assert (told["event"], told["library"], told["message"]) == ("library.logged", "kademlia.network", "lost a node")
    assert line.level == LEVELS["warning"]


def test_a_closed_standard_error_stops_nothing() -> None:
    """The ring still gets the event."""
    stream = StringIO()
    logs = configure_logging(stream=stream)
    stream.close()
    before = logs.ring.last
    structlog.get_logger().info("node.ready")
    assert logs.ring.last == before + 1


class Nameless:
    """An object whose words cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.just("\udcff")
    | st.just("x" * 9000)
    | st.builds(Nameless),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.sets(st.integers()),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), anything, max_size=4))
def test_any_fields_make_one_bounded_line_of_json(fields: dict[str, Any]) -> None:
    """Whatever a caller or peer puts into a field, a line is JSON and no value is longer than the limit."""
    ring = LogRing()
    line = ring.append(20, bound_and_redact(None, "info", {**fields, "event": "a.b", "level": "info"}))
    assert b"\n" not in line
    told = json.loads(line)
    assert told["event"] == "a.b"
    assert all(len(value) <= MAX_VALUE_CHARS + 1 for value in told.values() if isinstance(value, str))


@given(
    capacity=st.integers(1, 8),
    levels=st.lists(st.sampled_from(sorted(LEVELS.values())), max_size=20),
    after=st.integers(0, 25),
    wanted=st.sampled_from(sorted(LEVELS.values())),
    limit=st.integers(1, 9),
)
def test_the_ring_reads_as_a_plain_list_would(
    capacity: int, levels: list[int], after: int, wanted: int, limit: int
) -> None:
    """Against a list of everything: the last ``capacity`` are kept, the count of the lost is right."""
    ring = LogRing(capacity)
    for number, level in enumerate(levels):
        ring.append(level, {"number": number})
    numbered = list(enumerate(levels, start=1))
    kept = numbered[-capacity:]
    start = after if after <= len(levels) else 0
    batch = ring.read(after, level=wanted, limit=limit)
    matching = [sequence for sequence, level in kept if sequence > start and level >= wanted]
    assert [line.sequence for line in batch.lines] == matching[:limit]
    assert batch.dropped == sum(start < sequence <= len(levels) - len(kept) for sequence, _ in numbered)
    if len(matching) < limit:  # else it may have stopped at the last match, before lines that do not match
        assert batch.last == len(levels)
    tail = ring.read(ring.before_last(limit, level=wanted), level=wanted, limit=100)
    in_all = [sequence for sequence, level in kept if level >= wanted]
    assert [line.sequence for line in tail.lines] == in_all[-limit:]


async def test_followers_are_woken_from_any_thread() -> None:
    """Two that wait get the same new event, from a worker thread and from the loop itself."""
    ring = LogRing()
    seen: list[int] = []

    async def follow() -> None:
        await ring.wait_beyond(0)
        seen.append(ring.read(0).lines[0].sequence)
        await ring.wait_beyond(1)
        seen.append(ring.read(1).lines[0].sequence)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked()
            await trio.to_thread.run_sync(ring.append, 20, {"event": "a.b"})
            await trio.testing.wait_all_tasks_blocked()
            ring.append(20, {"event": "c.d"})
    assert sorted(seen) == [1, 1, 2, 2]


def test_an_append_after_the_followers_run_is_over_is_kept() -> None:
    """The last words of a stopping daemon come after its event loop."""
    ring = LogRing()

    async def wait_a_moment() -> None:
        with trio.move_on_after(0.01):
            await ring.wait_beyond(0)

    trio.run(wait_a_moment)
    ring.append(20, {"event": "node.stopped"})
    assert ring.last == 1


def test_one_dead_peer_does_not_fill_the_journal() -> None:
    """Ten lines of one event about one peer in a minute; the next that passes says how many were left out."""
    now = [0.0]
    limiter = LogLimiter(lambda: now[0])
    event = {"event": "session.closed", "peer": "ab"}
    admitted = [limiter.admit(event) for _ in range(14_000)]
    assert admitted[:MAX_ABOUT_ONE] == [0] * MAX_ABOUT_ONE
    assert set(admitted[MAX_ABOUT_ONE:]) == {None}
    assert limiter.admit({"event": "session.closed", "peer": "cd"}) == 0
    assert limiter.admit({"event": "session.opened", "peer": "ab"}) == 0
    now[0] += WINDOW_S
    assert limiter.admit(event) == 14_000 - MAX_ABOUT_ONE
    assert limiter.admit(event) == 0
    assert limiter.left_out == {"session.closed": 14_000 - MAX_ABOUT_ONE}


def test_many_strangers_do_not_fill_it_either() -> None:
    """Each has a name of its own; the event as a whole is bounded, and so is the memory."""
    limiter = LogLimiter(lambda: 0.0)
    admitted = [limiter.admit({"event": "door.refused", "host": number}) for number in range(3 * MAX_SUBJECTS)]
    assert sum(left_out is not None for left_out in admitted) == MAX_ABOUT_ALL
    assert len(limiter._windows) <= MAX_SUBJECTS


def test_debug_lines_come_in_full() -> None:
    """Who turns debug on wants them all; from info on the limit holds, and says so in the next line."""
    logs = configure_logging("debug", stream=StringIO())
    for _ in range(MAX_ABOUT_ALL + 5):
        structlog.get_logger().debug("a.detail")
        structlog.get_logger().info("a.fact")
    events = [json.loads(line.json)["event"] for line in logs.ring.read(0, limit=1000).lines]
    assert events.count("a.detail") == MAX_ABOUT_ALL + 5
    assert events.count("a.fact") == MAX_ABOUT_ALL
