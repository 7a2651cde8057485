"""Nothing but log-probabilities gets through, whatever a miner sends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moed.models.answers import LEAST_LOG_PROB, read_answer, read_answers
from moed.models.errors import InvalidAnswer


def uniform(rows: int = 2, length: int = 3, dtype: type[np.floating] = np.float32) -> np.ndarray:
    return np.full((rows, length, 256), -np.log(256), dtype=dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_log_probabilities_are_read_exactly_normalised(dtype: type[np.floating]) -> None:
    """Rounding on the wire is divided out, so that probabilities sum to one again."""
    read = read_answer(uniform(dtype=dtype), 2, 3)
    assert read.dtype == torch.float32
    assert torch.allclose(read.exp().sum(-1), torch.ones(2, 3), atol=1e-6)


def broken(**places: float) -> np.ndarray:
    answer = uniform()
    answer[1, 2, 7] = places["value"]
    return answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "not NoneType"),
        ([[1.0]], "not list"),
        (uniform().astype(np.float64), "not float64"),
        (uniform().astype(object), "not object"),
        (uniform()[:1], "not \\[1, 3, 256\\]"),
        (uniform()[..., :255], "not \\[2, 3, 255\\]"),
        (uniform().reshape(-1), "not \\[1536\\]"),
        (broken(value=np.nan), "not finite"),
        (broken(value=-np.inf), "not finite"),
        (broken(value=0.0), "sum to one"),
        (np.zeros((2, 3, 256), dtype=np.float32), "sum to one"),
        (uniform() - 1, "sum to one"),
        (np.full((2, 3, 256), 3e38, dtype=np.float32), "sum to one"),
    ],
)
def test_everything_else_is_refused(answer: object, message: str) -> None:
    """Wrong type, shape, numbers that are not finite, and sums other than one."""
    with pytest.raises(InvalidAnswer, match=message):
        read_answer(answer, 2, 3)


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float16, np.float64, np.int32, np.uint8]),
        st.sampled_from([(2, 3, 256), (1, 3, 256), (2, 256), ()]),
    )
)
def test_arbitrary_arrays_are_read_or_refused(array: np.ndarray) -> None:
    """Either distributions come out, or `InvalidAnswer`; nothing else happens."""
    try:
        read = read_answer(array, 2, 3)
    except InvalidAnswer:
        return
    assert bool(torch.isfinite(read).all())


def test_no_chance_is_less_than_the_least() -> None:
    """What is given to a byte that is out of the question stays a number that can be added up over a row."""
    certain = np.full((1, 1, 256), -3e38, dtype=np.float32)
    certain[..., 7] = 0.0
    read = read_answer(certain, 1, 1)
    assert read[0, 0, 7] == 0
    assert read.min() == LEAST_LOG_PROB


def test_a_refused_or_missing_answer_counts_as_none() -> None:
    """Who answered well is marked at its rows; who did not is nowhere, and the reason is kept."""
    targets = np.zeros((4, 3), dtype=np.uint8)
    assignment = {1: np.array([0, 2]), 2: np.array([1]), 3: np.array([3])}
    read = read_answers({1: uniform(), 2: "nonsense", 9: uniform()}, (1, 2, 3), assignment, targets)
    assert read.answered.tolist() == [[True, False, False], [False] * 3, [True, False, False], [False] * 3]
    assert read.target_log_probs[0, 0, 0].item() == pytest.approx(-np.log(256))
    assert list(read.invalid) == [2]
    assert list(read.log_probs) == [1]
