"""The batches that an expert takes, judged by their heads: what misfits and what is too large is named."""

from __future__ import annotations

import numpy as np
import pytest

from moed.protocol.errors import Malformed
from moed.protocol.experts import BatchSchema, check_batches, longest_text_answer
from moed.protocol.messages import ReplyHead, encode_message
from moed.protocol.tensors import wire_tensor

TEXT = BatchSchema(dtype="u8", max_rows=4, max_length=8)
VECTORS = BatchSchema(dtype="f32", max_rows=4, max_length=8, is_exact=True)


@pytest.mark.parametrize(
    ("schema", "dtype", "shape", "is_fit"),
    [
        (TEXT, "u8", (1, 1), True),
        (TEXT, "u8", (4, 8), True),
        (TEXT, "u8", (5, 8), False),
        (TEXT, "u8", (4, 9), False),
        (TEXT, "u8", (0, 8), False),
        (TEXT, "u8", (4, 0), False),
        (TEXT, "u8", (8,), False),
        (TEXT, "u8", (1, 1, 8), False),
        (TEXT, "f32", (1, 1), False),
        (VECTORS, "f32", (4, 8), True),
        (VECTORS, "f32", (4, 7), False),
        (VECTORS, "f32", (5, 8), False),
        (VECTORS, "f64", (4, 8), False),
    ],
)
def test_what_misfits_is_named(schema: BatchSchema, dtype: str, shape: tuple[int, ...], is_fit: bool) -> None:
    """At each bound and one beyond it; a shape of too few dimensions is never measured by the third."""
    problem = schema.misfit(dtype, shape) or schema.excess(shape)
    assert (problem is None) == is_fit
    if problem is not None:
        assert str(list(shape)) in problem


def test_a_call_has_the_tensors_that_its_method_takes() -> None:
    """One for each schema, each a batch of it, and for a backward pass as many gradients as rows."""
    narrow = BatchSchema(dtype="f32", max_rows=4, max_length=3, is_exact=True)
    one, other = (wire_tensor(np.zeros((rows, 8), np.float32)) for rows in (2, 3))
    gradient = wire_tensor(np.zeros((2, 3), np.float32))
    check_batches([VECTORS], [one], "layer")
    check_batches([VECTORS, VECTORS], [one, one], "layer")
    check_batches([VECTORS, narrow], [one, gradient], "layer")
    both = [VECTORS, VECTORS]
    for schemas, tensors in (
        ([VECTORS], []),
        ([VECTORS], [one, one]),
        (both, [one]),
        (both, [one, other]),
        (both, [one, gradient]),
        ([VECTORS, narrow], [other, gradient]),
        ([VECTORS, narrow], [gradient, one]),
    ):
        with pytest.raises(Malformed):
            check_batches(schemas, tensors, "layer")


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_an_honest_answer_is_within_its_bound(dtype: str) -> None:
    """The widest values uncoded, with their head, are no longer than a caller has to allow; twice as many are."""
    shape = (3, 5)
    whole = sum(len(part) for part in encode_message(ReplyHead(body=None), [np.zeros((*shape, 256), dtype)]))
    assert whole <= longest_text_answer(shape)
    long = sum(len(part) for part in encode_message(ReplyHead(body=None), [np.zeros((3, 50, 256), "<f8")]))
    assert long > longest_text_answer(shape)
