"""A hosted expert goes on from its checkpoint, sets a corrupt one aside, and turns torch's failures into its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moed.models.corpora import load_corpus
from moed.models.errors import ExpertFailed, ShapeMismatch
from moed.models.experts import ExpertSpec
from moed.models.hosting import HostedExpert, open_hosted
from moed.models.training import TrainingConfig

SPEC = ExpertSpec(name="tables-1", options={"embedding": 8, "width": 12, "ngram_buckets": 64})
TOKENS = np.arange(20, dtype=np.uint8).reshape(2, 10)


def host(folder: Path, spec: ExpertSpec = SPEC) -> HostedExpert:
    return open_hosted(spec, load_corpus("tables"), TrainingConfig(rows=4, length=16), folder, seed=3)


def test_it_answers_trains_and_comes_back_after_a_restart(tmp_path: Path) -> None:
    """The answer after the restart is the answer before it."""
    first = host(tmp_path)
    assert first.origin == "new"
    for _ in range(5):
        first.train_step()
    answer = first.forward(TOKENS)
    assert answer.shape == (2, 10, 256)
    assert answer.dtype == np.float32
    first.save()
    again = host(tmp_path)
    assert (again.origin, again.training_steps) == ("restored", 5)
    assert np.array_equal(again.forward(TOKENS), answer)


def test_tokens_may_lie_in_a_read_only_buffer(tmp_path: Path) -> None:
    """As those do that came over a session."""
    hosted = host(tmp_path)
    received = np.frombuffer(TOKENS.tobytes(), dtype=np.uint8).reshape(2, 10)
    assert np.array_equal(hosted.forward(received), hosted.forward(TOKENS))


@pytest.mark.parametrize("damage", ["cut", "another model"])
def test_a_checkpoint_that_is_not_its_own_is_set_aside(tmp_path: Path, damage: str) -> None:
    """The expert starts anew, and the file is kept for a person to look at."""
    wider = ExpertSpec(name=SPEC.name, options={**SPEC.options, "width": 16})
    host(tmp_path, wider if damage == "another model" else SPEC).save()
    path = tmp_path / "tables-1.ckpt"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    fresh = host(tmp_path)
    assert (fresh.origin, fresh.training_steps) == ("set_aside", 0)
    assert (tmp_path / "tables-1.ckpt.corrupt").exists()
    untouched = host(tmp_path / "elsewhere")
    assert np.array_equal(fresh.forward(TOKENS), untouched.forward(TOKENS))


def test_a_model_of_ones_own_that_fails_is_an_expert_error(tmp_path: Path) -> None:
    """Whatever it raises inside gives `ExpertFailed`, and so does its training; another shape gives `ShapeMismatch`."""
    own = ExpertSpec(name="own", factory="torch.nn:Linear", options={"in_features": 3, "out_features": 5})
    with pytest.raises(ExpertFailed, match="own"):
        host(tmp_path, own).forward(TOKENS)
    with pytest.raises(ExpertFailed, match="own"):
        host(tmp_path, own).train_step()
    two = ExpertSpec(
        name="two",
        factory="torch.nn:Bilinear",
        options=dict.fromkeys(("in1_features", "in2_features", "out_features"), 2),
    )
    with pytest.raises(ExpertFailed, match="TypeError"):
        host(tmp_path, two).forward(TOKENS)
    flat = ExpertSpec(name="flat", factory="torch.nn:Flatten")
    with pytest.raises(ShapeMismatch, match=r"answered \[2, 10\]"):
        host(tmp_path, flat).forward(TOKENS)
