"""The OpenAI-compatible routes: their own client works unchanged, and every answer says where it came from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moed.daemon.client import Client
from moed.daemon.errors import DaemonRefused
from support.control_plane import daemon_thread
from support.http_requests import ask, get

PROMPT = "The import sta"


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A daemon's socket."""
    path = tmp_path_factory.mktemp("openai") / "moed.sock"
    with daemon_thread(path):
        yield path


@pytest.fixture
def openai(socket_path: Path) -> Iterator[Any]:
    """Their client, told nothing but where the socket is."""
    library = pytest.importorskip("openai", reason="the openai client is not installed")
    http = pytest.importorskip(library.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])
    with library.OpenAI(
        base_url="http://localhost/v1",
        api_key="the socket's credentials decide",
        http_client=library.DefaultHttpxClient(transport=http.HTTPTransport(uds=str(socket_path))),
        max_retries=0,
    ) as client:
        yield client


def test_the_openai_client_lists_the_mixture(openai: Any) -> None:
    """One model, which can be asked for by its name."""
    assert [model.id for model in openai.models.list()] == ["moed"]
    assert openai.models.retrieve("moed").owned_by == "test"


def test_the_openai_client_completes(openai: Any, socket_path: Path) -> None:
    """The same bytes as from the daemon's own route, with usage and provenance."""
    answer = openai.completions.create(model="moed", prompt=PROMPT, max_tokens=12, temperature=0)
    own = Client(socket_path).post("/v1/complete", {"prompt": PROMPT, "max_bytes": 12})
    assert answer.choices[0].text == own["text"]
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), 12)
    assert answer.moed["experts"] == pytest.approx(own["experts"])
    assert answer.moed["cost"]["calls"] == sum(answer.moed["calls"].values()) == 24


def test_the_openai_client_streams(openai: Any) -> None:
    """The chunks join to the text of the plain answer; the last ones carry the provenance and the usage."""
    asked = {"model": "moed", "prompt": PROMPT, "max_tokens": 12, "temperature": 1, "seed": 3}
    whole = openai.completions.create(**asked)
    chunks = list(openai.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-2].moed == whole.moed
    assert chunks[-1].usage == whole.usage


def test_the_openai_client_chats(openai: Any) -> None:
    """Messages are laid out one under another; plain and streamed replies are the same."""
    messages = [
        {"role": "system", "content": "The import statement"},
        {"role": "user", "content": [{"type": "text", "text": "if the"}]},
    ]
    asked = {"model": "moed", "messages": messages, "max_completion_tokens": 9, "temperature": 0}
    whole = openai.chat.completions.create(**asked)
    assert whole.choices[0].message.role == "assistant"
    as_text = openai.completions.create(
        model="moed", prompt="The import statement\nif the\n", max_tokens=9, temperature=0
    )
    assert whole.choices[0].message.content == as_text.choices[0].text
    chunks = list(openai.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].moed == whole.moed


def test_the_openai_client_gets_their_errors(openai: Any) -> None:
    """A refusal arrives as the exception that their client has for its status, with our code."""
    import openai as library

    with pytest.raises(library.NotFoundError) as caught:
        openai.completions.create(model="gpt-4", prompt="x")
    assert caught.value.code == "model_not_found"
    with pytest.raises(library.BadRequestError, match="only be left out"):
        openai.completions.create(model="moed", prompt=PROMPT, n=2)
    with pytest.raises(library.InternalServerError, match="no model knows"):
        list(openai.completions.create(model="moed", prompt="☃☃☃", stream=True))


# without their client


def complete(path: Path, **question: Any) -> Any:
    return Client(path).post("/v1/completions", {"prompt": PROMPT, "temperature": 0, **question})


def test_several_prompts_give_several_choices(socket_path: Path) -> None:
    """In the order of the prompts, each as if asked alone."""
    both = complete(socket_path, prompt=[PROMPT, "def wra"], max_tokens=8)
    alone = [complete(socket_path, prompt=prompt, max_tokens=8) for prompt in (PROMPT, "def wra")]
    assert [choice["text"] for choice in both["choices"]] == [one["choices"][0]["text"] for one in alone]
    assert [choice["index"] for choice in both["choices"]] == [0, 1]
    assert both["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("as_list", [True, False])
def test_a_stop_ends_the_text_and_is_not_part_of_it(socket_path: Path, as_list: bool) -> None:
    """Plain and streamed, also where the stop comes in several pieces."""
    text = complete(socket_path, max_tokens=24)["choices"][0]["text"]
    stop = text[6:10]
    given = [stop, "☃"] if as_list else stop
    answer = complete(socket_path, max_tokens=24, stop=given)
    assert answer["choices"][0] == {
        "index": 0,
        "text": text[: text.index(stop)],
        "finish_reason": "stop",
        "logprobs": None,
    }
    assert answer["usage"]["completion_tokens"] == text.index(stop)
    lines = _stream_lines(socket_path, prompt=PROMPT, temperature=0, max_tokens=24, stop=given, stream=True)
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text[: text.index(stop)]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_reply_that_stops_before_any_text_is_a_reply(socket_path: Path) -> None:
    """Its chunks say whose it is, and why it ended, as those of any other."""
    first = complete(socket_path, prompt="if the\n", max_tokens=1)["choices"][0]["text"]
    messages = [{"role": "user", "content": "if the"}]
    lines = _stream_lines(
        socket_path, "/v1/chat/completions", messages=messages, temperature=0, stop=first, stream=True
    )
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [choice["finish_reason"] for choice in choices] == [None, "stop"]


def test_a_refusal_behind_a_prompt_that_stopped_at_once_is_told_as_theirs(socket_path: Path) -> None:
    """What went out already was an answer, so that the refusal has no status of its own any more."""
    first = complete(socket_path, max_tokens=1)["choices"][0]["text"]
    lines = _stream_lines(socket_path, prompt=[PROMPT, "☃☃☃"], temperature=0, stop=first, stream=True)
    assert json.loads(lines[0])["choices"][0]["finish_reason"] == "stop"
    assert json.loads(lines[1])["error"]["code"] == "no_answer"


def _stream_lines(path: Path, route: str = "/v1/completions", **question: Any) -> list[str]:
    body = json.dumps(question)
    request = get(route, f"Content-Length: {len(body.encode())}", method="POST") + body
    status, headers, answer = ask(path, request)
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    return [line[6:].rstrip() for line in answer.decode().splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize(
    "question",
    [
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [1, 2]},
        {"max_tokens": 0},
        {"max_tokens": 1 << 20},
        {"temperature": -1},
        {"stop": ""},
        {"stop": ["a"] * 5},
        {"logprobs": 3},
        {"echo": True},
        {"top_p": 0.5},
        {"frequency_penalty": 0.5},
        {"presence_penalty": -1},
        {"logit_bias": {"65": 100}},
    ],
)
def test_what_cannot_be_followed_is_refused(socket_path: Path, question: dict[str, Any]) -> None:
    """With status 400: never an answer to another question than was asked."""
    with pytest.raises(DaemonRefused) as caught:
        complete(socket_path, **question)
    assert caught.value.status == 400


@pytest.mark.parametrize(("name", "value", "only"), [("logprobs", 3, "null"), ("echo", True, "false"), ("n", 2, "1")])
def test_what_is_possible_is_told_in_json(socket_path: Path, name: str, value: Any, only: str) -> None:
    """As the caller would have to write it."""
    with pytest.raises(DaemonRefused, match=f"{name} can only be left out or {only}"):
        complete(socket_path, **{name: value})


def test_fields_that_change_nothing_are_passed_over(socket_path: Path) -> None:
    """Their clients send a user name, penalties of zero and the like."""
    plain = complete(socket_path)
    assert (
        complete(socket_path, user="me", presence_penalty=0, logit_bias={}, top_p=1, n=1)["choices"] == plain["choices"]
    )
