"""What operators and programs ask besides the node's work: events, SQL, settings, resources, tensors."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from moed.daemon.client import Client
from moed.daemon.errors import DaemonRefused
from moed.daemon.sql_view import MAX_COLUMNS, MAX_ROWS, MAX_VALUE_BYTES, TABLES, SqlRefused, run_sql
from moed.daemon.store import Store
from moed.protocol.codec import decode_item, read_head
from moed.protocol.receipts import CallReceipt, ReceiptSheet, claim_sheet
from moed.protocol.tensors import plain_array, read_tensor, wire_tensor
from support.chains import key, make_genesis
from support.control_plane import SmallNode, daemon_thread, logs_in_memory, small_desk
from support.http_requests import ask, get


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, SmallNode]]:
    """A daemon's socket, and the node behind it."""
    path = tmp_path_factory.mktemp("operator") / "moed.sock"
    with daemon_thread(path) as node:
        yield path, node


@pytest.fixture
def client(daemon: tuple[Path, SmallNode]) -> Client:
    """A client of that socket."""
    return Client(daemon[0], timeout_s=20)


def select(client: Client, query: str) -> list[list[Any]]:
    """The rows of one question."""
    rows: list[list[Any]] = client.post("/v1/sql", {"query": query})["rows"]
    return rows


# events


def test_events_are_numbered_and_filtered_by_name(client: Client) -> None:
    """Rising numbers; only the names asked for; the number of the last one goes on from there."""
    log = structlog.get_logger()
    for number in range(3):
        log.info("test.filtered", number=number)
        log.info("other.thing")
    found = client.get("/v1/events", {"names": "test.filt*, never.seen"})
    assert [one["number"] for one in found["events"]] == [0, 1, 2]
    numbers = [one["sequence"] for one in found["events"]]
    assert numbers == sorted(set(numbers))
    again = client.get("/v1/events", {"names": "test.filtered", "since": numbers[1]})
    assert [one["number"] for one in again["events"]] == [2]
    assert client.get("/v1/events", {"since": again["last"]})["events"] == []


def test_many_patterns_are_refused(client: Client) -> None:
    """More than can be compared with thousands of names while others wait; stars without end are no trouble."""
    assert client.get("/v1/events", {"names": "*a" * 500})["events"] == []
    with pytest.raises(DaemonRefused, match="up to 16 patterns") as caught:
        client.get("/v1/events", {"names": ",".join(f"a{number}*" for number in range(17))})
    assert (caught.value.status, caught.value.code) == (400, "bad_request")


def test_names_fit_as_file_names_do(client: Client) -> None:
    """Stars, question marks and sets, in whole names, and one of several patterns is enough."""
    log = structlog.get_logger()
    for name in ("fit.one", "fit.two", "fit.three", "misfit.one"):
        log.info(name)
    found = client.get("/v1/events", {"names": "fit.t*,fit.[on]?e"})["events"]
    assert [one["event"] for one in found] == ["fit.one", "fit.two", "fit.three"]


def test_a_follower_goes_on_where_it_was(daemon: tuple[Path, SmallNode], client: Client) -> None:
    """A second stream that names the last event that it saw gets the rest, once each, live ones too."""
    log = structlog.get_logger()
    for number in range(4):
        log.info("test.resumed", number=number)
    query = {"names": "test.resumed"}
    first = list(islice(client.stream("GET", "/v1/events", query=query), 2))
    log.info("test.resumed", number=4)
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(str(daemon[0]))
    raw.settimeout(10)
    raw.sendall(
        b"GET /v1/events?names=test.resumed&follow HTTP/1.1\r\nHost: moed\r\n"
        b"Last-Event-ID: %d\r\n\r\n" % (first[-1].number or 0)
    )
    log.info("test.resumed", number=5)
    received = b""
    while b'"number":5' not in received:
        received += raw.recv(65536)
    raw.close()
    told = [json.loads(line[6:]) for line in received.decode().splitlines() if line.startswith("data: {")]
    assert [event.data["number"] for event in first] == [0, 1]
    assert [one["number"] for one in told] == [2, 3, 4, 5]
    assert b"event: test.resumed\n" in received


@pytest.mark.parametrize("path", ["/v1/events?names=test.missed&tail=2", "/v1/logs?tail=2"])
def test_who_goes_on_after_an_event_misses_none_for_what_it_asked_at_first(
    daemon: tuple[Path, SmallNode], path: str
) -> None:
    """A browser's stream asks again with its old address; the number that it adds counts, and not the ``tail``."""
    ring = daemon[1].logs.events if "events" in path else daemon[1].logs.ring
    seen = ring.last
    for number in range(5):
        structlog.get_logger().info("test.missed", number=number)
    answer = json.loads(ask(daemon[0], get(path, f"Last-Event-ID: {seen}"))[2])
    assert [one["number"] for one in answer.get("events", answer.get("lines"))] == [0, 1, 2, 3, 4]


def test_events_do_not_depend_on_the_log_level(client: Client) -> None:
    """At level error the log is silent, and the events still tell of what happened."""
    client.post("/v1/config/set", {"key": "log.level", "value": "error"})
    try:
        structlog.get_logger().info("test.quiet")
        assert client.get("/v1/events", {"names": "test.quiet"})["events"] != []
        lines = client.get("/v1/logs", {"tail": 1000})["lines"]
        assert "test.quiet" not in [line["event"] for line in lines]
    finally:
        client.post("/v1/config/reload")


# SQL


def test_sql_reads_blocks_state_and_metrics(client: Client) -> None:
    """The chain as blocks and records, and the metrics as they are now."""
    assert select(client, "select count(*), min(height), max(height) from blocks") == [[5, 1, 5]]
    (row,) = select(client, "select hash, state_root from blocks where height = 5")
    block = client.get("/v1/chain", {"limit": 1})["blocks"][0]
    assert row == [block["hash"], block["state_root"]]
    assert select(client, "select sum(transactions) from blocks") == [[5]]
    assert select(client, "select kind, count(*) from state group by kind order by kind")[0][0] == "Account"
    assert select(client, "select value from metrics where name = 'moed_chain_height'") == [[5.0]]


def test_sql_reads_receipts_call_by_call(tmp_path: Path) -> None:
    """One row for each call of each sheet, with both parties' names."""
    genesis = make_genesis()
    calls = tuple(
        CallReceipt(sequence=number, method="expert.forward", request_bytes=7, answer_bytes=9, served_us=number)
        for number in range(1, 4)
    )
    sheet = ReceiptSheet(
        server=key(1).public_key, caller=key(2).public_key, session=bytes(32), number=1, closed_ms=5, calls=calls
    )
    with Store(tmp_path / "chain.db", genesis) as store:
        store.keep_receipts([claim_sheet(key(1), genesis.network_id, sheet)])
    query = "select caller, method, sum(served_us), sum(request_bytes), min(signed_by_both) from receipts group by 1, 2"
    answer = run_sql(tmp_path / "chain.db", CollectorRegistry(), query)
    assert answer["rows"] == [[key(2).public_key.hex(), "expert.forward", 6, 21, 0]]


@pytest.mark.parametrize(
    "query",
    [
        "select value from chain.notes",
        "select name from notes",
        "select b.height from chain.blocks b, chain.notes n where n.value > x'00'",
        "select value from chain.meta",
        "select sql from chain.sqlite_schema",
        "with blocks as (select value from notes) select * from blocks",
    ],
)
def test_sql_does_not_read_what_a_validator_hides(tmp_path: Path, query: str) -> None:
    """The tables that no view shows stay shut, whatever name they are asked for under."""
    with Store(tmp_path / "chain.db", make_genesis()) as store:
        store.remember("unrevealed weights", b"salt")
    with pytest.raises(SqlRefused, match=r"prohibited|only reading"):
        run_sql(tmp_path / "chain.db", CollectorRegistry(), query)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_has_its_columns(client: Client, table: str) -> None:
    """What the list of tables says is there."""
    answer = client.post("/v1/sql", {"query": f"select * from {table} limit 1"})
    assert tuple(answer["columns"]) == TABLES[table]


@pytest.mark.parametrize(
    "query",
    [
        "delete from chain.blocks",
        "insert into metrics values ('a', '', 1)",
        "drop view blocks",
        "create table chain.x (a)",
        "pragma user_version = 7",
        "attach database '/tmp/moed-attached.db' as other",
        "detach database chain",
        "vacuum into '/tmp/moed-vacuumed.db'",
        "select load_extension('x')",
        "select 1; select 2",
        "begin",
        "not sql at all",
        "select * from nothing",
        "select zeroblob(100000000)",
    ],
)
def test_sql_only_reads(client: Client, query: str) -> None:
    """Whatever else is asked for is refused with words, and nothing is changed or made."""
    with pytest.raises(DaemonRefused) as caught:
        select(client, query)
    assert (caught.value.status, caught.value.code) == (400, "bad_sql")
    assert not list(Path("/tmp").glob("moed-*ed.db"))
    assert select(client, "select count(*) from blocks") == [[5]]


def test_sql_ends_in_bounded_rows_and_time(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endless question is cut: by rows it says so, and one that gives none is broken off."""
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n)"
    answer = client.post("/v1/sql", {"query": f"{endless} select i from n"})
    assert (len(answer["rows"]), answer["truncated"]) == (MAX_ROWS, True)
    monkeypatch.setattr("moed.daemon.sql_view.MAX_SECONDS", 0.2)
    with pytest.raises(DaemonRefused, match="longer than"):
        select(client, f"{endless} select count(*) from n")


def test_one_row_of_sql_is_bounded(client: Client) -> None:
    """By its columns and by each value, so that no question takes gigabytes in a single row."""
    with pytest.raises(DaemonRefused, match="too many columns"):
        select(client, f"select {', '.join(['zeroblob(200000)'] * (MAX_COLUMNS + 1))}")
    with pytest.raises(DaemonRefused, match="a value is over"):
        select(client, f"select zeroblob({MAX_VALUE_BYTES + 1})")
    assert select(client, "select length(zeroblob(1000))") == [[1000]]


def test_a_block_longer_than_a_value_is_read_all_the_same(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fields are small, however large the block; only the block itself is no value."""
    whole = select(client, "select * from blocks")
    monkeypatch.setattr("moed.daemon.sql_view.MAX_VALUE_BYTES", 128)
    with pytest.raises(DaemonRefused, match="a value is over 128 bytes"):
        select(client, "select block from chain.blocks")
    assert select(client, "select * from blocks") == whole


def test_long_patterns_are_refused(client: Client) -> None:
    """Matching one takes the product of both lengths, in a single step that nothing can break off."""
    assert select(client, f"select '{'a' * 200}' like '%{'a' * 100}%'") == [[1]]
    for operator, wildcard in (("like", "%"), ("glob", "*")):
        with pytest.raises(DaemonRefused, match="pattern too complex"):
            select(client, f"select '{'a' * 200}' {operator} '{wildcard}{'a' * 200}{wildcard}'")


async def test_nobody_has_to_wait_for_a_slow_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop leaves a question's thread behind, and the thread ends at its own limit."""
    monkeypatch.setattr("moed.daemon.sql_view.MAX_SECONDS", 0.5)
    with logs_in_memory() as logs:
        desk = small_desk(SmallNode(logs), tmp_path)
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.sql, endless, CollectorRegistry())
            while not desk.questions:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert desk.questions == 1
        while desk.questions:
            await trio.lowlevel.checkpoint()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(min_size=1, max_size=80))
def test_any_text_is_answered_or_refused(client: Client, text: str) -> None:
    """No text ends a thread or a connection."""
    refused: list[DaemonRefused] = []
    try:
        select(client, text)
    except DaemonRefused as refusal:
        refused.append(refusal)
    assert all(refusal.code in ("bad_sql", "bad_request") for refusal in refused)


# settings and resources


def test_a_live_setting_changes_until_the_next_reload(daemon: tuple[Path, SmallNode], client: Client) -> None:
    """The new value counts at once and says where it is from; a reload goes back to the file."""
    _, node = daemon

    def setting(key: str) -> dict[str, Any]:
        return next(one for one in client.get("/v1/config")["settings"] if one["key"] == key)

    assert (setting("log.level")["value"], setting("log.level")["source"]) == ("info", "default")
    assert setting("node.port")["source"].startswith("config.toml, line ")
    client.post("/v1/config/set", {"key": "log.level", "value": "warning"})
    assert (setting("log.level")["value"], setting("log.level")["source"]) == ("warning", "set while it runs")
    assert node.logs.level == "warning"
    assert client.post("/v1/config/reload") == {"changed": ["log.level"], "waiting_for_restart": []}
    assert node.logs.level == "info"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("node.port", 1, "cannot change while the daemon runs"),
        ("log.levle", "info", "unknown key log.levle .did you mean log.level"),
        ("log.level", "loud", "debug, info, warning or error"),
        ("limits.memory_mib", -1, "64 and more"),
        ("limits.memory_mib", "much", "64 and more"),
    ],
)
def test_what_cannot_be_set_is_refused(client: Client, key: str, value: Any, words: str) -> None:
    """A key that is not live or not there, and a value that is not possible."""
    with pytest.raises(DaemonRefused, match=words) as caught:
        client.post("/v1/config/set", {"key": key, "value": value})
    assert caught.value.code == "bad_setting"


def test_resources_stand_beside_their_limits(client: Client) -> None:
    """Memory and files are measured; a limit that is set live is seen."""
    client.post("/v1/config/set", {"key": "limits.memory_mib", "value": 4096})
    found = client.get("/v1/resources")
    assert found["memory"]["limit_bytes"] == 4096 << 20
    assert found["memory"]["used_bytes"] > 10 << 20
    assert 0 < found["files"]["used"] < found["files"]["limit"]
    client.post("/v1/config/reload")


# tensors


def forward(path: Path, body: bytes) -> tuple[int, str, bytes]:
    """(status, content type, body) of one forward."""
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(str(path))
    connection = http.client.HTTPConnection("localhost")
    connection.sock = raw
    connection.request("POST", "/v1/mixture/forward", body, {"Content-Type": "application/cbor"})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, answer.headers["Content-Type"], data


def as_cbor(array: Any) -> bytes:
    """One tensor item."""
    tensor = wire_tensor(array)
    return tensor.head() + bytes(tensor.payload)


def test_tensors_go_in_and_come_out(daemon: tuple[Path, SmallNode]) -> None:
    """Rows of bytes in; a distribution over the next byte for each, and the shares that made it."""
    inputs = np.frombuffer(b"The import statemThe if statement", dtype=np.uint8)[:32].reshape(2, 16)
    status, kind, data = forward(daemon[0], as_cbor(inputs))
    assert (status, kind) == (200, "application/cbor")
    view = memoryview(data)
    _, entries, at = read_head(view, 0)
    name, at = decode_item(view, at)
    experts, at = decode_item(view, at)
    second, at = decode_item(view, at)
    tensor, end = read_tensor(view, at)
    log_probs = plain_array(tensor)
    assert (entries, name, second, end) == (2, "experts", "log_probs", len(data))
    assert (log_probs.shape, log_probs.dtype) == ((2, 256), np.dtype("<f4"))
    assert np.exp(log_probs.astype(np.float64)).sum(axis=1) == pytest.approx([1, 1], abs=1e-4)
    assert [sum(shares.values()) for shares in experts] == [1, 1]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        as_cbor(np.zeros((2, 3), dtype=np.float32)),
        as_cbor(np.zeros(3, dtype=np.uint8)),
        as_cbor(np.zeros((65, 1), dtype=np.uint8)),
        as_cbor(np.zeros((2, 3), dtype=np.uint8)) + b"\x00",
        as_cbor(np.zeros((2, 3), dtype=np.uint8))[:-1],
    ],
)
def test_what_is_no_input_is_refused(daemon: tuple[Path, SmallNode], body: bytes) -> None:
    """Other dtypes, shapes and sizes, and bytes that are no tensor."""
    status, _, data = forward(daemon[0], body)
    assert (status, json.loads(data)["code"]) == (400, "bad_tensor")
