"""A completion is decided by its prompt, its configuration and the distributions, and by nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from moed.models.errors import ModelRefused, ShapeMismatch
from moed.models.generation import Completion, SamplingConfig


def sure_of(byte: int) -> np.ndarray:
    log_probs = np.full(256, -20.0)
    log_probs[byte] = 0.0
    return log_probs


def test_greedy_takes_the_likeliest_until_the_length() -> None:
    """And the context slides over prompt and text alike."""
    completion = Completion(b"abc", SamplingConfig(max_bytes=3, context_bytes=4))
    shown = []
    for byte in b"xyz":
        assert not completion.done
        shown.append(completion.context().tobytes())
        assert completion.step(sure_of(byte)) == byte
    assert shown == [b"abc", b"abcx", b"bcxy"]
    assert completion.done
    assert completion.text == "xyz"


def test_the_stop_bytes_end_the_text_and_are_not_in_it() -> None:
    """Also when they come over several steps."""
    completion = Completion(b"a", SamplingConfig(max_bytes=10, stop=b"\n\n"))
    for byte in b"hi\n\n":
        assert not completion.done
        completion.step(sure_of(byte))
    assert completion.done
    assert completion.written == b"hi"


def test_sampling_is_seeded_and_follows_the_chances() -> None:
    """The same seed gives the same bytes; at temperature 1 a byte comes as often as its chance says."""
    log_probs = np.full(256, -np.inf)
    log_probs[[65, 66]] = np.log([0.8, 0.2])

    def draw(seed: int) -> bytes:
        completion = Completion(b"a", SamplingConfig(max_bytes=500, temperature=1.0, seed=seed))
        while not completion.done:
            completion.step(log_probs)
        return completion.written

    assert draw(1) == draw(1) != draw(2)
    assert draw(1).count(b"A") == pytest.approx(400, abs=40)


def test_text_that_is_no_utf8_shows_a_replacement() -> None:
    """Bytes are never lost: `written` has them."""
    completion = Completion(b"a", SamplingConfig(max_bytes=1))
    completion.step(sure_of(0xFF))
    assert completion.text == "\N{REPLACEMENT CHARACTER}"
    assert completion.written == b"\xff"


@pytest.mark.parametrize("wrong", [np.zeros(255), np.full(256, np.nan), np.full(256, -np.inf), np.zeros((1, 256))])
def test_what_is_no_distribution_is_refused(wrong: np.ndarray) -> None:
    """The text stays as it was."""
    completion = Completion(b"a", SamplingConfig())
    with pytest.raises(ShapeMismatch):
        completion.step(wrong)
    assert completion.written == b""


def test_what_cannot_be_asked_for_is_refused() -> None:
    """An empty prompt, no length, a temperature that is none."""
    with pytest.raises(ModelRefused, match="at least one byte"):
        Completion(b"", SamplingConfig())
    for wrong in ({"max_bytes": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"context_bytes": 0}):
        with pytest.raises(ValueError, match=r"at least 1|between 0 and 10"):
            SamplingConfig(**wrong)
