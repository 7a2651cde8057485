"""The shapes of the OpenAI-compatible routes: what their clients send, and what they expect back.

A field that this module does not name is passed over, because clients send many; one that is named and would change
the answer in a way that the mixture cannot follow is refused. Lengths count bytes: a token is one byte here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .answers import Share
from .questions import MAX_COMPLETION_BYTES

MODEL = "moed"
MAX_PROMPTS = 16
MAX_STOPS = 4
DEFAULT_TOKENS = 16  # what their completions give where nobody says a number
DEFAULT_CHAT_TOKENS = 128

_Tokens = Annotated[int, Meta(ge=1, le=MAX_COMPLETION_BYTES)]
_Temperature = Annotated[float, Meta(ge=0, le=2)]
_Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Text = Annotated[str, Meta(max_length=65536)]
_Stop = Annotated[str, Meta(min_length=1, max_length=256)]
_Stops = Annotated[list[_Stop], Meta(max_length=MAX_STOPS)]


class _Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """What both kinds of question have."""

    model: Annotated[str, Meta(max_length=256)] = MODEL
    max_tokens: _Tokens | None = None
    temperature: _Temperature | None = None
    seed: _Seed | None = None
    stop: _Stop | _Stops | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    n: int | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None


class CompletionsQuestion(_Sampling, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: _Text | Annotated[list[_Text], Meta(min_length=1, max_length=MAX_PROMPTS)]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One turn; parts of ``content`` that are no text are refused."""

    role: Literal["system", "developer", "user", "assistant"]
    content: _Text | Annotated[list[dict[str, Any]], Meta(max_length=64)]


class ChatQuestion(_Sampling, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=256)]
    max_completion_tokens: _Tokens | None = None
    logprobs: bool | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The mixture of the network."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """Every model that can be named: one, since the gate picks the experts."""

    object: str
    data: list[Model]


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Forward rows that experts answered, and what their miners ask for them in 10⁻⁹ credits (null: not known)."""

    calls: int
    units: int | None


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where an answer came from: the mean share of each miner by uid, its forward rows, and the cost."""

    experts: dict[str, Share]
    calls: dict[str, int]
    cost: Cost


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths in bytes."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One continuation."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class TextCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of /v1/completions; ``moed`` says who it came from."""

    id: str
    object: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    moed: Origin


class ChatReply(msgspec.Struct, frozen=True, kw_only=True):
    """What the mixture says."""

    role: str
    content: str


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One reply."""

    index: int
    message: ChatReply
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of /v1/chat/completions; ``moed`` says who it came from."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    moed: Origin
