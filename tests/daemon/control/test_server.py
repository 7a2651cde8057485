"""The control server in one loop: streams, limits, bugs, the socket file, and how it all ends."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio.testing

from moed.daemon.control import connection as connection_module
from moed.daemon.control.api import HEAVY_FOR_ADMIN, MAX_HEAVY_REQUESTS, Body, Events, Services
from moed.daemon.control.credentials import Access
from moed.daemon.control.dispatch import Dispatcher, Head
from moed.daemon.control.metrics import ControlMetrics
from moed.daemon.control.routes import ROUTES
from moed.daemon.control.server import MAX_CONNECTIONS, MAX_REFUSALS, ControlServer, open_control_socket
from moed.daemon.errors import AlreadyRunning, SocketError
from moed.daemon.logs import Logs
from support.control_plane import SmallNode, logs_in_memory, small_desk
from support.http_requests import code_of, get, parse

COMPLETE = '{"prompt":"The import sta","max_bytes":3}'
COMPLETE_REQUEST = get("/v1/complete", f"Content-Length: {len(COMPLETE)}", method="POST") + COMPLETE
STATUS_REQUEST = get("/v1/status")


@asynccontextmanager
async def serving(
    path: Path, make: Callable[[Logs], SmallNode] = SmallNode
) -> AsyncIterator[tuple[SmallNode, trio.CancelScope]]:
    """A node served in this loop, with the scope of its doors; at the end running requests are cut off."""
    with logs_in_memory() as logs:
        node, doors = make(logs), trio.CancelScope()

        async def open_doors(task_status: trio.TaskStatus[None]) -> None:
            with doors:
                desk = small_desk(node, path.with_name("home"))
                await ControlServer(path, node, desk, logs).run(requests, task_status=task_status)

        async with trio.open_nursery() as requests:
            await requests.start(open_doors)
            yield node, doors
            requests.cancel_scope.cancel()


@asynccontextmanager
async def dialled(path: Path, text: str) -> AsyncIterator[trio.SocketStream]:
    """A connection on which ``text`` was sent."""
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(text.encode())
        yield stream


async def exchange(path: Path, text: str) -> bytes:
    """Everything that the daemon sends back for ``text`` until it closes."""
    async with dialled(path, text) as stream:
        return await read_all(stream)


async def read_until(stream: trio.SocketStream, mark: bytes) -> bytes:
    """Everything up to and with ``mark``."""
    data = b""
    while mark not in data:
        more = await stream.receive_some()
        assert more, f"closed before {mark!r}: {data!r}"
        data += more
    return data


async def read_all(stream: trio.SocketStream) -> bytes:
    """Everything until the daemon closes."""
    data = b""
    while more := await stream.receive_some():
        data += more
    return data


async def until(is_so: Callable[[], bool]) -> None:
    """Return once ``is_so``; a test that waits in vain is ended by its own deadline."""
    while not is_so():
        await trio.testing.wait_all_tasks_blocked()


async def assert_answering(path: Path) -> None:
    """The next caller is served."""
    assert parse(await exchange(path, STATUS_REQUEST))[0] == 200


# streams and the end


async def test_followers_get_every_line_and_can_go_on_after_a_break(tmp_path: Path) -> None:
    """Old lines, then new ones as they come, with numbers; a second look goes on after the last number seen."""
    path = tmp_path / "moed.sock"
    with trio.fail_after(20):
        async with serving(path):
            log = structlog.get_logger()
            log.info("a.first")
            log.debug("a.quiet")
            async with dialled(path, get("/v1/logs?follow&level=info")) as stream:
                told = re.search(rb"id: (\d+)\nevent: log\n", await read_until(stream, b'"a.first"'))
                assert told is not None
                first = int(told[1])
                log.info("b.second")
                rest = await read_until(stream, b'"b.second"')
            assert b"id: %d\n" % (first + 2) in rest
            assert b"a.quiet" not in rest
            async with dialled(path, get(f"/v1/logs?follow=true&since={first + 1}")) as again:
                assert b'"a.first"' not in await read_until(again, b'"b.second"')


async def test_the_end_of_the_daemon_ends_followers_and_idle_connections_at_once(tmp_path: Path) -> None:
    """Closing the doors finishes a log stream properly and closes a connection that waits, with no deadline used."""
    path = tmp_path / "moed.sock"
    keep_open = STATUS_REQUEST.replace("Connection: close\r\n", "")
    with trio.fail_after(20):
        async with (
            serving(path) as (_, doors),
            dialled(path, get("/v1/logs?follow")) as follower,
            dialled(path, keep_open) as idle,
        ):
            await read_until(follower, b"\r\n\r\n")
            await read_until(idle, b"}\n")
            doors.cancel()
            assert (await read_all(follower)).endswith(b"0\r\n\r\n")
            assert await read_all(idle) == b""
            assert not path.exists()


async def test_a_running_request_is_finished_after_the_doors_have_closed(tmp_path: Path) -> None:
    """What was begun is answered; only then is the connection closed."""
    path = tmp_path / "moed.sock"
    with trio.fail_after(20):
        async with serving(path) as (node, doors), dialled(path, COMPLETE_REQUEST) as stream:
            node.open_gate = trio.Event()
            await until(lambda: node.running == 1)
            doors.cancel()
            await until(lambda: not path.exists())
            node.open_gate.set()
            status, headers, body = parse(await read_all(stream))
            assert (status, headers["connection"]) == (200, "close")
            assert len(json.loads(body)["text"]) == 3


async def test_a_client_that_leaves_takes_its_request_along(tmp_path: Path) -> None:
    """Work that nobody waits for is broken off, and its place is free again."""
    path = tmp_path / "moed.sock"
    with trio.fail_after(20):
        async with serving(path) as (node, _doors):
            node.open_gate = trio.Event()
            for _ in range(MAX_HEAVY_REQUESTS + 2):
                async with dialled(path, COMPLETE_REQUEST):
                    await until(lambda: node.running == 1)
                await until(lambda: node.running == 0)


async def test_a_client_that_leaves_after_another_word_takes_its_request_along_too(tmp_path: Path) -> None:
    """What it sends while it waits neither hides that it left nor fills the memory."""
    path = tmp_path / "moed.sock"
    with trio.fail_after(20):
        async with serving(path) as (node, _doors):
            node.open_gate = trio.Event()
            async with dialled(path, COMPLETE_REQUEST) as stream:
                await until(lambda: node.running == 1)
                await stream.send_all(b"G")
                await trio.testing.wait_all_tasks_blocked()
                assert node.running == 1
            await until(lambda: node.running == 0)
            async with dialled(path, COMPLETE_REQUEST) as stream:
                await until(lambda: node.running == 1)
                await stream.send_all(b"G" * (connection_module.MAX_HEAD_BYTES + 1))
                await until(lambda: node.running == 0)


async def test_requests_may_follow_one_another_at_once(tmp_path: Path) -> None:
    """A request that comes while one before it runs is answered after it, on the same connection."""
    path = tmp_path / "moed.sock"
    kept = COMPLETE_REQUEST.replace("Connection: close\r\n", "")
    with trio.fail_after(20):
        async with serving(path) as (node, _doors):
            node.open_gate = trio.Event()
            async with dialled(path, kept) as stream:
                await until(lambda: node.running == 1)
                await stream.send_all(STATUS_REQUEST[:20].encode())
                await trio.testing.wait_all_tasks_blocked()
                await stream.send_all(STATUS_REQUEST[20:].encode())
                node.open_gate.set()
                assert (await read_all(stream)).count(b"HTTP/1.1 200") == 2


# limits


async def test_heavy_requests_are_bounded(tmp_path: Path) -> None:
    """One more than the limit is told to come back; light ones are answered all the while; then there is room."""
    path = tmp_path / "moed.sock"
    with trio.fail_after(20):
        async with serving(path) as (node, _doors), AsyncExitStack() as held:
            node.open_gate = trio.Event()
            running = [
                await held.enter_async_context(dialled(path, COMPLETE_REQUEST)) for _ in range(MAX_HEAVY_REQUESTS)
            ]
            await until(lambda: node.running == MAX_HEAVY_REQUESTS)
            assert code_of(parse(await exchange(path, COMPLETE_REQUEST))) == (503, "busy")
            await assert_answering(path)
            node.open_gate.set()
            for stream in running:
                assert parse(await read_all(stream))[0] == 200
            assert parse(await exchange(path, COMPLETE_REQUEST))[0] == 200


async def test_readers_leave_places_for_an_administrator(tmp_path: Path) -> None:
    """However long they let their requests run: the last places for heavy ones are not theirs."""
    route, head = ROUTES["POST", "/v1/complete"], Head("POST", "/v1/complete", {})
    body = COMPLETE.replace("}", ',"stream":true}').encode()
    with logs_in_memory() as logs:
        node = SmallNode(logs)
        dispatcher = Dispatcher(Services(node, small_desk(node, tmp_path), logs, ControlMetrics()))
        async with AsyncExitStack() as held:
            for _ in range(MAX_HEAVY_REQUESTS - HEAVY_FOR_ADMIN):
                answer = await held.enter_async_context(dispatcher.answering(route, head, body, Access.READER))
                assert isinstance(answer, Events)
            async with dispatcher.answering(route, head, body, Access.READER) as refused:
                assert isinstance(refused, Body)
                assert (refused.status, json.loads(refused.data)["code"]) == (503, "busy")
            async with dispatcher.answering(route, head, body, Access.ADMIN) as answer:
                assert isinstance(answer, Events)


async def test_chunks_of_one_byte_keep_nobody_waiting(tmp_path: Path) -> None:
    """However small the chunks of a body, other tasks have their turn after each."""
    path, chunks, turns = tmp_path / "moed.sock", 2000, 0
    chunked = get("/v1/complete", "Transfer-Encoding: chunked", method="POST") + "1\r\n \r\n" * chunks + "0\r\n\r\n"

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    with trio.fail_after(20):
        async with serving(path), trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            assert code_of(parse(await exchange(path, chunked))) == (400, "bad_request")
            nursery.cancel_scope.cancel()
    assert turns >= chunks


async def test_connections_are_bounded(tmp_path: Path) -> None:
    """With every place taken the next caller hears so at once; a freed place is used again."""
    path = tmp_path / "moed.sock"
    with trio.fail_after(20):
        async with serving(path):
            async with AsyncExitStack() as held:
                for _ in range(MAX_CONNECTIONS):
                    await held.enter_async_context(dialled(path, ""))
                await trio.testing.wait_all_tasks_blocked()
                assert code_of(parse(await exchange(path, STATUS_REQUEST))) == (503, "too_many_connections")
            await trio.testing.wait_all_tasks_blocked()
            await assert_answering(path)


async def test_refused_connections_take_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many callers cling to their refusals, a place that is free again goes to the next one."""
    monkeypatch.setattr(connection_module, "LINGER_S", 60.0)
    path = tmp_path / "moed.sock"
    with trio.fail_after(20):
        async with serving(path), AsyncExitStack() as clinging:
            async with AsyncExitStack() as held:
                for _ in range(MAX_CONNECTIONS):
                    await held.enter_async_context(dialled(path, ""))
                await trio.testing.wait_all_tasks_blocked()
                refused = [
                    await clinging.enter_async_context(dialled(path, "")) for _ in range(MAX_CONNECTIONS + MAX_REFUSALS)
                ]
                for stream in refused:
                    assert code_of(parse(await read_all(stream))) == (503, "too_many_connections")
            await trio.testing.wait_all_tasks_blocked()
            await assert_answering(path)


async def test_a_client_that_dawdles_is_let_go(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Half a head, and half a body: closed after the documented time, the latter with words."""
    path = tmp_path / "moed.sock"
    async with serving(path):
        started = trio.current_time()
        assert await exchange(path, "GET /v1/status HT") == b""
        assert trio.current_time() - started == pytest.approx(connection_module.IDLE_TIMEOUT_S, abs=2)
        half = get("/v1/complete", "Content-Length: 10", method="POST") + "{"
        assert code_of(parse(await exchange(path, half))) == (408, "too_slow")


async def test_a_follower_that_stops_reading_is_let_go(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Its connection is closed once a write has made no progress for the documented time; the log goes on."""
    path = tmp_path / "moed.sock"
    async with serving(path) as (node, _doors), dialled(path, get("/v1/logs?follow")) as stream:
        await trio.testing.wait_all_tasks_blocked()
        before = node.logs.ring.last
        for number in range(2000):
            structlog.get_logger().debug("noise.made", number=number, filling="x" * 1000)
        await trio.sleep(connection_module.SEND_TIMEOUT_S + connection_module.LINGER_S + 1)
        try:
            told = await read_all(stream)
        except trio.BrokenResourceError:
            told = b""
        assert b'"number":1999' not in told
        assert not told.endswith(b"0\r\n\r\n")
        assert node.logs.ring.last >= before + 2000


async def test_one_who_reads_slowly_gets_a_long_answer_whole(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """The limit is for a piece to be taken, not for all of them."""
    path = tmp_path / "moed.sock"
    long = {"lines": ["x" * 1000] * 4000}

    class Talkative(SmallNode):
        async def losses(self) -> dict[str, Any]:
            return long

    async with (
        serving(path, Talkative),
        dialled(path, get("/v1/losses", "Content-Length: 2", method="POST") + "{}") as stream,
    ):
        answer, started = b"", trio.current_time()
        while more := await stream.receive_some(connection_module.PIECE_BYTES):
            answer += more
            await trio.sleep(connection_module.SEND_TIMEOUT_S / 10)
        assert trio.current_time() - started > connection_module.SEND_TIMEOUT_S
        assert json.loads(parse(answer)[2]) == long


# bugs


class BrokenNode(SmallNode):
    """A node with a bug in two of its answers."""

    async def peers(self) -> list[dict[str, Any]]:
        raise ZeroDivisionError("a bug")

    async def complete(self, prompt: bytes, **_: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"text": prompt.decode(), "experts": {"2": 1.0}}
        raise ZeroDivisionError("a bug on the way")


async def test_a_bug_costs_one_request_and_is_told_under_an_id(tmp_path: Path) -> None:
    """500 with an id; the traceback stands in the log under that id, not in the answer; the next caller is served."""
    path = tmp_path / "moed.sock"
    stream_request = COMPLETE_REQUEST.replace("Connection", "Accept: text/event-stream\r\nConnection")
    with trio.fail_after(20):
        async with serving(path, BrokenNode) as (node, _doors):
            answer = parse(await exchange(path, get("/v1/peers")))
            assert code_of(answer) == (500, "bug")
            streamed = await exchange(path, stream_request)
            assert b"event: piece\n" in streamed
            assert b'event: error\ndata: {"code":"bug"' in streamed
            await assert_answering(path)
            events = [json.loads(line.json) for line in node.logs.ring.read(0).lines]
    crashed = [event for event in events if event["event"] == "request.crashed"]
    assert [event["route"] for event in crashed] == ["/v1/peers", "/v1/complete"]
    assert crashed[0]["bug_id"] in json.loads(answer[2])["message"]
    assert "ZeroDivisionError" in crashed[0]["exception"]


# the socket itself


async def test_the_socket_is_open_to_all_and_gone_afterwards(tmp_path: Path) -> None:
    """Mode 0666 while it listens; a clean end leaves nothing."""
    path = tmp_path / "sub" / "moed.sock"
    async with open_control_socket(path):
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert os.listdir(path.parent) == []


async def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    """A socket that answers is left alone, and goes on answering."""
    path = tmp_path / "moed.sock"
    async with serving(path):
        with pytest.raises(AlreadyRunning, match="another daemon is running here"):
            async with open_control_socket(path):
                pass
        await assert_answering(path)


async def test_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    """What a killed daemon left behind does not stop the next one."""
    path = tmp_path / "moed.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(path):
        await assert_answering(path)


async def test_another_daemons_socket_is_not_removed_at_the_end(tmp_path: Path) -> None:
    """Who removes only what is his own cannot take another's away."""
    path = tmp_path / "moed.sock"
    async with open_control_socket(path):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.exists()


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("file", "is in the way and no socket"),
        ("no/such/moed.sock", "No such file or directory"),
        ("file/moed.sock", "cannot make the control socket"),
        ("x" * 110, "longer than 107 bytes"),
    ],
)
async def test_a_place_that_cannot_hold_a_socket_is_named(tmp_path: Path, place: str, words: str) -> None:
    """A file in the way, no folder, a path over the kernel's limit: each one line with a remedy."""
    (tmp_path / "file").write_text("not yours")
    with pytest.raises(SocketError, match=words) as caught:
        async with open_control_socket(tmp_path / place):
            pass
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "not yours"
