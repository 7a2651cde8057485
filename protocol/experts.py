"""What nodes ask of an expert, and what a batch for it must look like: checked by head, before any tensor is read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from .codec import Record
from .errors import Malformed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .tensors import TensorHead, WireTensor

BYTE_VALUES = 256
MAX_VALUE_BYTES = 8
"""The widest number that travels."""
_ANSWER_HEAD_BYTES = 64 << 10

FORWARD, BACKWARD, INFO = "expert.forward", "expert.backward", "expert.info"

ExpertName = Annotated[str, Meta(min_length=1, max_length=64)]
# "float32" is how the values travel uncoded, whatever their dtype.
AnswerCodec = Literal["float32", "float16", "bfloat16", "int8-block"]


class ForwardRequest(Record, frozen=True, kw_only=True):
    """Asks one expert to answer the batch that travels beside it; ``codec`` is how the answer should travel."""

    expert: ExpertName
    codec: AnswerCodec = "float32"


class BackwardRequest(Record, frozen=True, kw_only=True):
    """Asks for the gradient at the inputs, from two tensors: the inputs and the gradient at the outputs.

    The expert may learn from it.
    """

    expert: ExpertName
    codec: AnswerCodec = "float32"


class InfoRequest(Record, frozen=True, kw_only=True):
    """Asks what is served here: all of it, or one expert."""

    expert: ExpertName | None = None


class Load(Record, frozen=True, kw_only=True):
    """How busy a device is; it comes with every answer. ``queue_delay_ms`` is a moving average."""

    queue_delay_ms: float
    waiting_rows: int


class BatchSchema(Record, frozen=True, kw_only=True):
    """The batches that an expert takes: ``dtype`` as on the wire, shape ``[rows, length]``.

    ``is_exact``: rows are vectors of exactly ``max_length`` values, else sequences of at most so many.
    """

    dtype: str
    max_rows: int
    max_length: int
    is_exact: bool = False

    def misfit(self, dtype: str, shape: Sequence[int]) -> str | None:
        """Why a batch of this dtype and shape is none, in words; None if it is one but for its size."""
        length = f"{self.max_length}" if self.is_exact else "T"
        if dtype != self.dtype or len(shape) != 2 or min(shape) < 1 or (self.is_exact and shape[1] != self.max_length):
            return f"takes {self.dtype} [B, {length}], not {dtype} {list(shape)}"
        return None

    def excess(self, shape: Sequence[int]) -> str | None:
        """Why a batch is too large, in words; None if it is not."""
        if shape[0] > self.max_rows or shape[1] > self.max_length:
            return f"takes at most {[self.max_rows, self.max_length]}, not {list(shape)}"
        return None


class ExpertInfo(Record, frozen=True, kw_only=True):
    """What one expert takes and gives: ``output_shape`` is that of one row, 0 standing for the row's own length."""

    name: ExpertName
    kind: str
    takes: BatchSchema
    output_dtype: str
    output_shape: tuple[int, ...]
    forwards_per_s: float
    has_backward: bool

    @property
    def gradients(self) -> BatchSchema:
        """The gradients at the outputs that come with a backward pass: vectors of the output's own length."""
        width = self.output_shape[-1]
        return BatchSchema(dtype=self.output_dtype, max_rows=self.takes.max_rows, max_length=width, is_exact=True)


class InfoAnswer(Record, frozen=True, kw_only=True):
    """The answer to `InfoRequest`."""

    experts: tuple[ExpertInfo, ...]
    load: Load


def longest_text_answer(shape: Sequence[int]) -> int:
    """The bytes of an honest answer of `text.next` to tokens of ``shape`` [B, T], in whatever codec, at most."""
    return math.prod(shape) * BYTE_VALUES * MAX_VALUE_BYTES + _ANSWER_HEAD_BYTES


def check_batches(schemas: Sequence[BatchSchema], tensors: Sequence[WireTensor | TensorHead], expert: str) -> None:
    """Raise `Malformed` unless there is one tensor for each of ``schemas`` and each is a batch of it, all of as many
    rows, by their heads alone."""
    if len(tensors) != len(schemas):
        raise Malformed(f"{len(schemas)} tensors are expected, not {len(tensors)}")
    for schema, tensor in zip(schemas, tensors, strict=True):
        problem = schema.misfit(tensor.dtype.wire_name, tensor.shape) or schema.excess(tensor.shape)
        if problem:
            raise Malformed(f"expert {expert!r} {problem}")
    if len({tensor.shape[0] for tensor in tensors}) > 1:
        raise Malformed("there are not as many gradients as rows of inputs")
