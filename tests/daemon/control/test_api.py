"""The local API on a real socket: what it answers, what it refuses, and who may ask."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moed.daemon.client import Client
from moed.daemon.control.connection import MAX_BODY_BYTES
from moed.daemon.control.credentials import AccessRules
from moed.daemon.control.questions import NoQuestion
from moed.daemon.control.routes import ROUTES
from moed.daemon.errors import DaemonRefused
from support.control_plane import daemon_thread
from support.dht_nodes import identity
from support.http_requests import ask, code_of, get, parse

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A daemon's socket, answered by an event loop in a thread."""
    folder = tmp_path_factory.mktemp("control")
    # Other users have to reach the socket in this test; pytest's own folders are closed to them.
    for parent in (folder, folder.parent):
        parent.chmod(0o755)
    path = Path(f"/tmp/moed-test-{os.getpid()}.sock")
    with daemon_thread(path, AccessRules(os.geteuid(), reader_gid=4242)):
        yield path


# what it answers


QUESTIONS: dict[str, dict[str, Any]] = {
    "why_reward": {"uid": 2},
    "complete": {"prompt": "The import sta", "max_bytes": 5},
    "completions": {"prompt": "The import sta", "max_tokens": 5},
    "chat_completions": {"messages": [{"role": "user", "content": "if the"}], "max_tokens": 5},
    "route": {"text": "The import sta"},
    "chain": {"limit": 3},
    "events": {"tail": 3},
    "sql": {"query": "select height, hash from blocks"},
    "config_set": {"key": "log.level", "value": "info"},
    "logs": {"tail": 3},
    "dht_get": {"key": "peer:" + identity(1).node_id.hex()},
    "dht_lookup": {"id": identity(1).node_id.hex()},
}


def test_the_document_describes_the_running_daemon(socket_path: Path) -> None:
    """Every operation of the served OpenAPI document answers in the shape that it names, or with a refusal."""
    client = Client(socket_path)
    document = client.get("/v1/openapi.json")
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == set(ROUTES)
    for (method, path), route in ROUTES.items():
        if route.name in ("stop", "capacity", "mixture_forward", "teach", "tx_send", "tx_submit"):
            continue  # one ends the daemon, the others have their own tests
        if route.name == "metrics":
            answer: Any = client.get_text(path)
        elif method == "GET":
            answer = client.get(path, QUESTIONS.get(route.name))
        else:
            answer = client.post(path, QUESTIONS.get(route.name))
        msgspec.convert(answer, route.answer, strict=True)


def test_the_document_resolves_and_names_every_question(socket_path: Path) -> None:
    """No reference leads nowhere, and each field of a question is a parameter or a property."""
    document = Client(socket_path).get("/v1/openapi.json")
    text = json.dumps(document)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in document["components"]["schemas"]
    for (method, path), route in ROUTES.items():
        if route.question is NoQuestion:
            continue
        operation = document["paths"][path][method.lower()]
        if method == "GET":
            named = {parameter["name"] for parameter in operation["parameters"]}
        else:
            reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            named = set(document["components"]["schemas"][reference.rpartition("/")[2]]["properties"])
        assert named == set(route.question.__struct_fields__)


def test_a_refusal_of_the_node_keeps_its_words(socket_path: Path) -> None:
    """Status, code, message and remedy arrive as the node gave them."""
    with pytest.raises(DaemonRefused) as caught:
        Client(socket_path).get("/v1/capacity")
    assert (caught.value.status, caught.value.code) == (503, "not_measured")
    assert str(caught.value) == "nothing was measured yet (ask again in a minute)"


def test_answers_carry_the_version(socket_path: Path) -> None:
    """Version of the daemon, version and lowest version of the API; nothing is cached."""
    status, headers, _ = ask(socket_path, get("/v1/status"))
    assert status == 200
    assert (headers["moed-api"], headers["moed-api-minimum"]) == ("1", "1")
    assert headers["moed-version"]
    assert headers["cache-control"] == "no-store"


def test_a_completion_is_the_same_in_one_piece_and_as_a_stream(socket_path: Path) -> None:
    """The pieces of the stream join to the text of the plain answer, with the same shares."""
    client = Client(socket_path)
    body = {"prompt": "The import sta", "max_bytes": 12, "temperature": 1.0, "seed": 5}
    whole = client.post("/v1/complete", body)
    events = list(client.stream("POST", "/v1/complete", body=body))
    assert [event.name for event in events] == ["piece"] * 12 + ["done"]
    assert "".join(event.data["text"] for event in events[:-1]) == whole["text"]
    assert events[-1].data["experts"] == whole["experts"]
    assert sum(whole["experts"].values()) == pytest.approx(1)


def test_a_stream_that_is_refused_at_once_has_its_status(socket_path: Path) -> None:
    """Before the first piece a refusal is an HTTP status, not an event."""
    with pytest.raises(DaemonRefused) as caught:
        list(Client(socket_path).stream("POST", "/v1/complete", body={"prompt": "☃☃☃"}))
    assert (caught.value.status, caught.value.code) == (503, "no_answer")


def test_metrics_name_the_node_and_count_requests(socket_path: Path) -> None:
    """Prometheus text with the chain's height and this API's own counters."""
    client = Client(socket_path)
    client.get("/v1/peers")
    lines = client.get_text("/v1/metrics").splitlines()
    assert "moed_chain_height 5.0" in lines
    assert "moed_ready 1.0" in lines
    counted = [line for line in lines if line.startswith('moed_control_requests_total{route="peers",status="200"}')]
    assert float(counted[0].split()[-1]) >= 1
    assert any(line.startswith("process_resident_memory_bytes") for line in lines)


# what it refuses


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        (get("/v1/nothing"), (404, "not_found")),
        (get("/"), (404, "not_found")),
        (get("/v1/status", method="POST"), (405, "wrong_method")),
        (get("/v1/stop"), (405, "wrong_method")),
        (get("/v1/status", host="example.org"), (403, "foreign_host")),
        (get("/v1/status", host="localhost.example.org:80"), (403, "foreign_host")),
        (get("/v1/status", "Origin: http://localhost"), (403, "foreign_origin")),
        (get("/v1/status", "Referer: http://localhost/"), (403, "foreign_origin")),
        (get("/v1/status", "Sec-Fetch-Site: none"), (403, "foreign_origin")),
        (get("/v1/chain?limit=0"), (400, "bad_request")),
        (get("/v1/chain?limit=x"), (400, "bad_request")),
        (get("/v1/chain?limits=1"), (400, "bad_request")),
        (get("/v1/status?x=1"), (400, "bad_request")),
        (get("/v1/logs?level=loud"), (400, "bad_request")),
        (get("/v1/complete", "Content-Length: 1", method="POST") + "{", (400, "bad_request")),
        (get("/v1/complete", "Content-Length: 2", method="POST") + "{}", (400, "bad_request")),
        (get("/v1/complete", "Content-Length: 4", method="POST") + "null", (400, "bad_request")),
        (get("/v1/complete", "Content-Length: 14", method="POST") + '{"prompt":1.5}', (400, "bad_request")),
        (get("/v1/complete", "Content-Length: 2", method="POST") + "\udcff\udcff", (400, "bad_request")),
        (get("/v1/complete", "Content-Length: 200000", method="POST") + "[" * 200_000, (400, "bad_request")),
        (get("/v1/status?" + "&".join(f"x{number}" for number in range(33))), (400, "bad_request")),
        ("GET /v1/status\r\n\r\n", (400, "bad_request")),
        ("\x16\x03\x01\x02\x00\x01\r\n\r\n", (400, "bad_request")),
        (get("/" + "x" * 200_000), (431, "bad_request")),
    ],
)
def test_what_is_wrong_gets_its_status_and_code(
    socket_path: Path, request_text: str, expected: tuple[int, str]
) -> None:
    """Unknown places, methods, hosts, origins and fields: a typed refusal, then the next caller is served."""
    assert code_of(ask(socket_path, request_text.encode("utf-8", "surrogateescape"))) == expected
    assert ask(socket_path, get("/v1/status"))[0] == 200


def test_a_head_is_answered_without_a_body(socket_path: Path) -> None:
    """The words of the refusal stay away, as the method asks; their length is told."""
    status, headers, body = ask(socket_path, get("/v1/status", method="HEAD"))
    assert (status, body) == (405, b"")
    assert int(headers["content-length"]) > 0


@pytest.mark.parametrize("host", ["localhost", "moed", "LOCALHOST:80", "127.0.0.1:1", "[::1]", ""])
def test_local_hosts_are_taken(socket_path: Path, host: str) -> None:
    """Whatever local name a client puts in front of the path."""
    assert ask(socket_path, get("/v1/status", host=host))[0] == 200


def test_a_body_over_the_limit_is_refused(socket_path: Path) -> None:
    """With a length or in chunks; the answer arrives although not all was read."""
    too_large = MAX_BODY_BYTES + 1
    with_length = get("/v1/complete", f"Content-Length: {too_large}", method="POST").encode() + b"x" * too_large
    assert code_of(ask(socket_path, with_length)) == (413, "too_large")
    with pytest.raises(DaemonRefused, match="body is over"):
        Client(socket_path).post("/v1/complete", {"prompt": "x" * (3 << 20)})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(min_size=1, max_size=300), st.booleans())
def test_random_bytes_hurt_nobody(socket_path: Path, noise: bytes, after_a_head: bool) -> None:
    """Whatever bytes come, alone or after a good request line, the daemon closes and answers the next caller."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(socket_path))
        raw.sendall((b"POST /v1/complete HTTP/1.1\r\nHost: moed\r\n" if after_a_head else b"") + noise)
        raw.shutdown(socket.SHUT_WR)
        raw.settimeout(10)
        while True:
            try:
                if not raw.recv(65536):
                    break
            except ConnectionResetError:
                break
    assert Client(socket_path).get("/v1/status")["ready"] is True


def test_a_kept_connection_takes_requests_one_after_another(socket_path: Path) -> None:
    """Two requests sent at once are answered in order on one connection, and the second closes it."""
    first = "GET /v1/status HTTP/1.1\r\nHost: moed\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        raw.connect(str(socket_path))
        raw.sendall((first + get("/v1/peers")).encode())
        data = b"".join(iter(lambda: raw.recv(65536), b""))
    assert data.count(b"HTTP/1.1 200") == 2
    assert data.index(b'"state_root"') < data.index(b'"address"')


def test_a_client_that_closed_its_sending_side_is_answered(socket_path: Path) -> None:
    """As ``nc -N`` does."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        raw.connect(str(socket_path))
        raw.sendall(b"GET /v1/status HTTP/1.0\r\n\r\n")
        raw.shutdown(socket.SHUT_WR)
        assert parse(b"".join(iter(lambda: raw.recv(65536), b"")))[0] == 200


# who may


def ask_as(path: Path, target: str, *, uid: int, groups: str, method: str = "GET") -> tuple[int, str]:
    """(status, code) that another user's curl gets."""
    answer = subprocess.run(
        ["setpriv", f"--reuid={uid}", f"--regid={uid}", groups, "curl", "-sS", "-X", method, "-w", "\n%{http_code}",
         "--unix-socket", str(path), f"http://localhost{target}"],
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    body, _, status = answer.stdout.rpartition("\n")
    return int(status), json.loads(body).get("code", "")


@needs_root
@needs_curl
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_other_users_by_their_groups(socket_path: Path) -> None:
    """A stranger is refused everything; a member of the group reads, by supplementary group too, and stops nothing."""
    assert ask_as(socket_path, "/v1/status", uid=NOBODY, groups="--clear-groups") == (403, "forbidden")
    assert ask_as(socket_path, "/v1/nothing", uid=NOBODY, groups="--clear-groups") == (403, "forbidden")
    assert ask_as(socket_path, "/v1/status", uid=NOBODY, groups="--groups=4242,9") == (200, "")
    assert ask_as(socket_path, "/v1/stop", uid=NOBODY, groups="--groups=4242", method="POST") == (403, "forbidden")
    assert ask_as(socket_path, "/v1/status", uid=4242, groups="--clear-groups") == (200, "")


@needs_curl
def test_curl_works(socket_path: Path) -> None:
    """The commands of the documentation, plain and as a stream."""
    plain = subprocess.run(
        ["curl", "-sS", "--fail", "--unix-socket", str(socket_path), "http://localhost/v1/status"],
        capture_output=True, timeout=20,
    )  # fmt: skip
    assert json.loads(plain.stdout)["height"] == 5
    stream = subprocess.run(
        ["curl", "-sSN", "--fail", "--unix-socket", str(socket_path), "http://localhost/v1/complete",
         "-d", '{"prompt": "The import sta", "max_bytes": 2, "stream": true}'],
        capture_output=True, timeout=20,
    )  # fmt: skip
    assert stream.stdout.count(b"event: piece\ndata: ") == 2
