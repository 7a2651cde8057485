"""The experts that a miner can serve: what they promise, the built-in models, and bringing one's own.

The one encoding so far is ``text.next``: bytes uint8 [B, T] to float32 log-probabilities [B, T, 256], where
position t tells of byte t + 1 and depends on bytes up to t only. What is inside (another tokenizer, another
architecture) is the miner's affair.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from moed.protocol.codec import Record

from .device import CPU, Device
from .errors import ModelRefused, ShapeMismatch
from .factories import call_factory
from .ngrams import ngram_buckets

TEXT_NEXT = "text.next"
BYTE_VALUES = 256
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

Options = Mapping[str, int | float | str | bool]


class GruConfig(Record, frozen=True):
    """A gated recurrent network over bytes: ``embedding`` and ``width`` are vector lengths.

    Each byte comes with vectors of the n-grams up to ``ngram_order`` that end at it, hashed to ``ngram_buckets``
    rows a length (1 switches them off). A table row costs a look-up and not a multiplication, so they teach a
    model that has seconds and not hours: after 12 s of one core 1.90 bits per byte on Python source, 2.37
    without them at width 192, 3.5 for the transformer.
    """

    embedding: int = 64
    width: int = 128
    layers: int = 1
    ngram_order: int = 4
    ngram_buckets: int = 8192

    def __post_init__(self) -> None:
        _require_positive(self)


class TransformerConfig(Record, frozen=True):
    """A causal pre-norm transformer over bytes; it reads at most ``context_bytes`` in a row."""

    width: int = 96
    layers: int = 2
    heads: int = 4
    context_bytes: int = 256

    def __post_init__(self) -> None:
        _require_positive(self)
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class NgramConfig(Record, frozen=True):
    """The baseline: chances of the next byte by the n-grams up to ``order`` that end here, hashed to ``buckets``."""

    order: int = 3
    buckets: int = 4096

    def __post_init__(self) -> None:
        _require_positive(self)


class ExpertSpec(Record, frozen=True):
    """One expert as the local configuration names it.

    ``factory`` (``pkg.mod:make``) brings one's own model and is called with ``options`` as keywords; without it
    ``model`` names a built-in one and ``options`` are its configuration's fields. Never read from the network.
    """

    name: str
    kind: str = TEXT_NEXT
    model: str = "gru"
    factory: str | None = None
    options: dict[str, int | float | str | bool] = msgspec.field(default_factory=dict)
    max_rows: int = 64
    max_length: int = 256

    def __post_init__(self) -> None:
        # The name becomes a file name and travels in records.
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"an expert's name is 1 to 64 of a-z, 0-9, '.', '_', '-', not {self.name!r}")
        if self.max_rows < 1 or self.max_length < 1:
            raise ValueError("max_rows and max_length must be at least 1")


@dataclass(frozen=True, slots=True)
class Expert:
    """A built expert: the module and the limits that it is served under."""

    spec: ExpertSpec
    module: nn.Module

    @property
    def parameter_count(self) -> int:
        """How many trainable numbers the module has."""
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)


def _require_positive(config: Record) -> None:
    for name in config.__struct_fields__:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(config, name)}")


class GruExpert(nn.Module):
    """Embedding of bytes and hashed n-grams, GRU, linear head; a second head reads the embedding directly."""

    def __init__(self, config: GruConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(BYTE_VALUES, config.embedding)
        tables = [nn.Embedding(config.ngram_buckets, config.embedding) for _ in range(config.ngram_order - 1)]
        for table in tables:
            # Quieter than the bytes' own vectors (1.0), which are right from the first step on.
            nn.init.normal_(table.weight, std=0.3)
        self.grams = nn.ModuleList(tables)
        self.recurrent = nn.GRU(config.embedding, config.width, config.layers, batch_first=True)
        self.head = nn.Linear(config.width, BYTE_VALUES)
        self.direct_head = nn.Linear(config.embedding, BYTE_VALUES, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Bytes [B, T] to log-probabilities [B, T, 256] of the byte after each."""
        embedded = self.embedding(tokens.long())
        keys = ngram_buckets(tokens, self.config.ngram_order, self.config.ngram_buckets)
        for table, key in zip(self.grams, keys[1:], strict=True):
            embedded = embedded + table(key)
        hidden, _ = self.recurrent(embedded)
        return functional.log_softmax(self.head(hidden) + self.direct_head(embedded), dim=-1)


class CausalBlock(nn.Module):
    """Causal self-attention and a feed-forward step, each on a normalised copy and added back."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.step_norm = nn.LayerNorm(width)
        self.step = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        mixed = self.queries_keys_values(self.attention_norm(x))
        # [B, T, 3 W] -> three of [B, heads, T, W / heads]
        split = mixed.view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(split[0], split[1], split[2], is_causal=True)
        # [B, heads, T, W / heads] -> [B, T, W]
        x = x + self.attention_out(attended.transpose(1, 2).reshape(rows, length, width))
        out: Tensor = x + self.step(self.step_norm(x))
        return out


class NgramExpert(nn.Module):
    """A log-linear model: one table of 256 scores for each length of n-gram, added up."""

    def __init__(self, config: NgramConfig) -> None:
        super().__init__()
        self.config = config
        self.tables = nn.ModuleList(nn.Embedding(config.buckets, BYTE_VALUES) for _ in range(config.order))
        for table in self.tables.parameters():
            nn.init.normal_(table, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Bytes [B, T] to log-probabilities [B, T, 256] of the byte after each."""
        keys = ngram_buckets(tokens, self.config.order, self.config.buckets)
        scores = torch.stack([table(key) for table, key in zip(self.tables, keys, strict=True)]).sum(dim=0)
        return functional.log_softmax(scores, dim=-1)


class TransformerExpert(nn.Module):
    """A small GPT over bytes with learned positions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.context_bytes = config.context_bytes
        self.embedding = nn.Embedding(BYTE_VALUES, config.width)
        self.positions = nn.Embedding(config.context_bytes, config.width)
        self.blocks = nn.ModuleList(CausalBlock(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, BYTE_VALUES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Bytes [B, T] to log-probabilities [B, T, 256]; raises `ShapeMismatch` over ``context_bytes``."""
        length = tokens.shape[1]
        if length > self.context_bytes:
            raise ShapeMismatch(f"rows of {length} bytes exceed this model's {self.context_bytes}")
        x = self.embedding(tokens.long()) + self.positions(torch.arange(length, device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return functional.log_softmax(self.head(self.norm(x)), dim=-1)


# Built-in models by name: the configuration record and what is built from it.
MODELS: Mapping[str, tuple[type[Record], Callable[[Any], nn.Module]]] = {
    "gru": (GruConfig, GruExpert),
    "transformer": (TransformerConfig, TransformerExpert),
    "ngram": (NgramConfig, NgramExpert),
}


def build_expert(spec: ExpertSpec, seed: int, device: Device = CPU) -> Expert:
    """Build the module that ``spec`` names on ``device``, its weights drawn from ``seed`` alike for every device, the
    global generator untouched.

    Raises `ModelRefused` naming the field that cannot be right.
    """
    if spec.kind != TEXT_NEXT:
        raise ModelRefused(f"expert {spec.name!r}: kind {spec.kind!r} is not known; use {TEXT_NEXT!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _own_module(spec) if spec.factory is not None else _built_in_module(spec)
    return Expert(spec, device.place(module))


def _built_in_module(spec: ExpertSpec) -> nn.Module:
    if spec.model not in MODELS:
        raise ModelRefused(
            f"expert {spec.name!r}: no model {spec.model!r}; use one of {', '.join(MODELS)} or a factory"
        )
    config_type, make = MODELS[spec.model]
    try:
        config = msgspec.convert(spec.options, config_type, strict=True)
    except msgspec.ValidationError as error:
        raise ModelRefused(f"expert {spec.name!r}: options of {spec.model}: {error}") from error
    return make(config)


def _own_module(spec: ExpertSpec) -> nn.Module:
    """The module that the operator's own factory makes. Only the local configuration names a factory."""
    try:
        module = call_factory(spec.factory or "", **spec.options)
    except ModelRefused as error:
        raise ModelRefused(f"expert {spec.name!r}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelRefused(
            f"expert {spec.name!r}: factory {spec.factory!r} made a {type(module).__name__}, not a torch Module"
        )
    return module


def check_tokens(spec: ExpertSpec, shape: tuple[int, ...], dtype: str) -> None:
    """Raise `ShapeMismatch` unless tokens of ``shape`` and ``dtype`` are a batch that ``spec`` takes."""
    if dtype != "uint8" or len(shape) != 2 or min(shape) < 1:
        raise ShapeMismatch(f"expert {spec.name!r} takes uint8 [B, T], not {dtype} {list(shape)}")
    if shape[0] > spec.max_rows or shape[1] > spec.max_length:
        raise ShapeMismatch(
            f"expert {spec.name!r} takes at most [{spec.max_rows}, {spec.max_length}], not {list(shape)}"
        )
