"""The routes that OpenAI clients know: models, completions, chat completions, plain and as a stream.

The mixture continues bytes, so a conversation is laid out as text: its messages one under another, and the reply goes
on from there. Streams end with ``data: [DONE]``; the last chunk carries usage and ``moed``, the provenance.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from . import openai_shapes as shapes
from .api import Answer, Ask, Body, ControlRefused, Events, Services, closing, event, json_body
from .completions import Provenance, cost_of

_DONE = b"[DONE]"
_SEED_BITS = (1 << 63) - 1
DEFAULT_TEMPERATURE = 1.0  # of their interface
_SAMPLED_PLAINLY: Mapping[str, Sequence[Any]] = {
    "n": (None, 1),
    "top_p": (None, 1),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
}
"""What both kinds of question may say of how to draw, besides the temperature."""


async def list_models(services: Services, _ask: Ask) -> Answer:
    """GET /v1/models."""
    return json_body(shapes.ModelList(object="list", data=[await _model(services)]))


async def show_model(services: Services, _ask: Ask) -> Answer:
    """GET /v1/models/moed."""
    return json_body(await _model(services))


async def _model(services: Services) -> shapes.Model:
    status = await services.plane.status()
    started = int(time.time() - status["uptime_s"])
    owner = str(status.get("network_name") or status["network"])
    return shapes.Model(id=shapes.MODEL, object="model", created=started, owned_by=owner)


async def completions(services: Services, ask: Ask) -> Answer:
    """POST /v1/completions."""
    question: shapes.CompletionsQuestion = ask.question
    _refuse_unfit(question, best_of=(None, 1), echo=(None, False), logprobs=(None,), suffix=(None, ""))
    prompts = [question.prompt] if isinstance(question.prompt, str) else question.prompt
    tasks = [_task(question, prompt, question.max_tokens or shapes.DEFAULT_TOKENS) for prompt in prompts]
    return await _answer(services, question, _TextForm(), tasks)


async def chat_completions(services: Services, ask: Ask) -> Answer:
    """POST /v1/chat/completions."""
    question: shapes.ChatQuestion = ask.question
    _refuse_unfit(
        question,
        logprobs=(None, False),
        tools=(None, []),
        functions=(None, []),
        response_format=(None, {"type": "text"}),
    )
    prompt = "".join(_words(message) + "\n" for message in question.messages)
    length = question.max_completion_tokens or question.max_tokens or shapes.DEFAULT_CHAT_TOKENS
    return await _answer(services, question, _ChatForm(), [_task(question, prompt, length)])


def _words(message: shapes.ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    parts = [part.get("text") for part in message.content if part.get("type") == "text"]
    if len(parts) != len(message.content) or not all(isinstance(part, str) for part in parts):
        raise _unfit("messages.content", "only parts of type text are understood")
    return "".join(str(part) for part in parts)


def _refuse_unfit(question: shapes.CompletionsQuestion | shapes.ChatQuestion, **allowed: Sequence[Any]) -> None:
    """Refuse what would change the answer in a way that the mixture cannot follow."""
    if question.model != shapes.MODEL:
        raise ControlRefused(404, "model_not_found", f"there is no model {question.model!r}", "use the model moed")
    for name, values in {**_SAMPLED_PLAINLY, **allowed}.items():
        if getattr(question, name) not in values:
            only = msgspec.json.encode(values[-1]).decode()
            raise _unfit(name, f"{name} can only be left out or {only}")


def _unfit(name: str, message: str) -> ControlRefused:
    return ControlRefused(400, "unsupported_parameter", message, f"leave out {name}")


# one continuation


@dataclass(slots=True)
class _Task:
    """One prompt to continue, and what has come of it."""

    prompt: bytes
    max_bytes: int
    temperature: float
    seed: int | None
    stops: tuple[str, ...]
    provenance: Provenance = field(default_factory=Provenance)
    written_bytes: int = 0
    finish: Literal["stop", "length"] = "length"


def _task(question: shapes.CompletionsQuestion | shapes.ChatQuestion, prompt: str, max_bytes: int) -> _Task:
    if not prompt.strip("\n"):
        raise ControlRefused(400, "bad_request", "the prompt is empty", "give at least one byte to go on from")
    stops = (question.stop,) if isinstance(question.stop, str) else tuple(question.stop or ())
    temperature = DEFAULT_TEMPERATURE if question.temperature is None else question.temperature
    seed = None if question.seed is None else question.seed & _SEED_BITS
    return _Task(prompt.encode(), max_bytes, temperature, seed, stops)


async def _texts(services: Services, task: _Task) -> AsyncGenerator[str]:
    """Pieces of the continuation up to the first stop; what may be the start of one waits until that is decided."""
    pieces: AsyncIterator[dict[str, Any]] = services.plane.complete(
        task.prompt, max_bytes=task.max_bytes, temperature=task.temperature, seed=task.seed
    )
    waiting = ""
    async with closing(pieces):
        async for piece in pieces:
            task.provenance.add(piece)
            waiting += piece["text"]
            found = [at for at in map(waiting.find, task.stops) if at >= 0]
            if found:
                task.finish = "stop"
                waiting = waiting[: min(found)]
                break
            held = max((_overlap(waiting, stop) for stop in task.stops), default=0)
            ready, waiting = waiting[: len(waiting) - held], waiting[len(waiting) - held :]
            if ready:
                task.written_bytes += len(ready.encode())
                yield ready
    if waiting:
        task.written_bytes += len(waiting.encode())
        yield waiting


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` could be the start of ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


# answers in their two forms


class _TextForm:
    """The objects of /v1/completions."""

    prefix = "cmpl-"
    whole = "text_completion"
    chunk = "text_completion"

    def choice(self, index: int, text: str, finish: Literal["stop", "length"]) -> Any:
        return shapes.TextChoice(index=index, text=text, finish_reason=finish)

    def delta(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}

    def opening(self, _index: int) -> dict[str, Any] | None:
        return None

    answer: type[msgspec.Struct] = shapes.TextCompletion


class _ChatForm:
    """The objects of /v1/chat/completions."""

    prefix = "chatcmpl-"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def choice(self, index: int, text: str, finish: Literal["stop", "length"]) -> Any:
        reply = shapes.ChatReply(role="assistant", content=text)
        return shapes.ChatChoice(index=index, message=reply, finish_reason=finish)

    def delta(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        said = {"content": text} if text else {}
        return {"index": index, "delta": said, "logprobs": None, "finish_reason": finish}

    def opening(self, index: int) -> dict[str, Any] | None:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}

    answer: type[msgspec.Struct] = shapes.ChatCompletion


_Form = _TextForm | _ChatForm


async def _answer(
    services: Services, question: shapes.CompletionsQuestion | shapes.ChatQuestion, form: _Form, tasks: list[_Task]
) -> Answer:
    head = {"id": form.prefix + secrets.token_hex(12), "created": int(time.time()), "model": shapes.MODEL}
    if question.stream:
        has_usage = bool((question.stream_options or {}).get("include_usage"))
        return Events(_chunks(services, form, tasks, head, has_usage))
    choices = []
    for index, task in enumerate(tasks):
        text = "".join([piece async for piece in _texts(services, task)])
        choices.append(form.choice(index, text, task.finish))
    summary = {"usage": _usage(tasks), "moed": await _origin(services, tasks)}
    return Body(msgspec.json.encode(form.answer(**head, object=form.whole, choices=choices, **summary)) + b"\n")


async def _chunks(
    services: Services, form: _Form, tasks: list[_Task], head: dict[str, Any], has_usage: bool
) -> AsyncGenerator[bytes]:
    def chunk(choices: list[Any], **more: Any) -> bytes:
        return event({**head, "object": form.chunk, "choices": choices, **more})

    is_open = False
    try:
        for index, task in enumerate(tasks):
            opening = form.opening(index)
            texts = _texts(services, task)
            async with closing(texts):
                async for text in texts:
                    # Not before the first text: a refusal then still has an HTTP status of its own.
                    if opening is not None:
                        yield chunk([opening])
                    opening, is_open = None, True
                    yield chunk([form.delta(index, text, None)])
            if opening is not None:  # it stopped before any text
                yield chunk([opening])
            is_open = True
            is_last = task is tasks[-1]
            more = {"moed": await _origin(services, tasks)} if is_last else {}
            yield chunk([form.delta(index, "", task.finish)], **more)
    except ControlRefused as refusal:
        if not is_open:
            raise
        error = {"message": str(refusal), "type": "server_error", "code": refusal.code, "param": None}
        yield event({"error": error})
        return
    if has_usage:
        yield chunk([], usage=_usage(tasks))
    yield event(_DONE)


def _usage(tasks: Sequence[_Task]) -> shapes.Usage:
    asked = sum(len(task.prompt) for task in tasks)
    written = sum(task.written_bytes for task in tasks)
    return shapes.Usage(prompt_tokens=asked, completion_tokens=written, total_tokens=asked + written)


async def _origin(services: Services, tasks: Sequence[_Task]) -> shapes.Origin:
    """Shares of all prompts together, each counted by the text that it got."""
    calls: dict[str, int] = {}
    sums: dict[str, float] = {}
    weight = sum(max(task.written_bytes, 1) for task in tasks)
    for task in tasks:
        for uid, count in task.provenance.calls().items():
            calls[uid] = calls.get(uid, 0) + count
        for uid, share in task.provenance.shares().items():
            sums[uid] = sums.get(uid, 0.0) + share * max(task.written_bytes, 1) / weight
    cost = shapes.Cost(calls=sum(calls.values()), units=await cost_of(services, calls))
    return shapes.Origin(experts=dict(sorted(sums.items())), calls=dict(sorted(calls.items())), cost=cost)
