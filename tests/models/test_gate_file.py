"""A validator's gate in a file: taken back where it fits, set aside where it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moed.models.checkpoint import load_checkpoint, save_checkpoint
from moed.models.corpora import Corpus, load_corpus
from moed.models.gate import GateConfig
from moed.models.gate_file import GATE_KIND, open_brain, save_brain
from moed.models.plans import ValidatorConfig

SMALL = ValidatorConfig(gate=GateConfig(k=2, width=32), rows=4, length=64)
KEYS = {4: b"4" * 32, 7: b"7" * 32}


@pytest.fixture(scope="module")
def corpora() -> list[Corpus]:
    return [load_corpus("html"), load_corpus("tables")]


@pytest.fixture
def saved(tmp_path: Path, corpora: list[Corpus]) -> Path:
    """The file of a brain that knows two miners."""
    path = tmp_path / "gate.ckpt"
    brain = open_brain(path, corpora, SMALL, seed=1).brain
    brain.set_miners(KEYS)
    brain.scores.restore({4: 0.25, 7: 1.5}, {4: 3, 7: 5})
    brain.batches_learned = 12
    save_brain(path, brain, KEYS)
    return path


def test_a_brain_goes_on_from_its_file(saved: Path, corpora: list[Corpus]) -> None:
    """With gate, scores and the keys of its miners; without a file it begins."""
    opened = open_brain(saved, corpora, SMALL, seed=2)
    assert (dict(opened.keys), opened.is_set_aside) == (KEYS, False)
    assert opened.brain.uids == (4, 7)
    assert opened.brain.scores.scores == {4: 0.25, 7: 1.5}
    assert opened.brain.batches_learned == 12
    new = open_brain(saved.with_name("none.ckpt"), corpora, SMALL, seed=2)
    assert (dict(new.keys), new.is_set_aside, new.brain.uids) == ({}, False, ())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def spoil(path: Path) -> None:
    """One score that is not a number: written whole, and of no use."""
    stored = load_checkpoint(path, GATE_KIND)
    tensors = dict(stored.tensors)
    tensors["scores/values"] = torch.full_like(tensors["scores/values"], torch.nan)
    save_checkpoint(path, GATE_KIND, tensors, stored.notes)


def leave(_path: Path) -> None:
    """As it is: the configuration has changed."""


@pytest.mark.parametrize(
    ("change", "locks", "width"),
    [(cut, (0, 1), 32), (spoil, (0, 1), 32), (leave, (1, 0), 32), (leave, (0,), 32), (leave, (0, 1), 16)],
    ids=["cut", "not finite", "other order", "fewer locks", "other gate"],
)
def test_what_does_not_fit_is_set_aside(
    saved: Path, corpora: list[Corpus], change: Callable[[Path], None], locks: tuple[int, ...], width: int
) -> None:
    """Cut short, not finite, of other locks or of another gate: learning starts anew, and the file is kept."""
    change(saved)
    config = ValidatorConfig(gate=GateConfig(k=2, width=width), rows=4, length=64)
    opened = open_brain(saved, [corpora[at] for at in locks], config, seed=2)
    assert opened.is_set_aside
    assert (dict(opened.keys), opened.brain.uids, opened.brain.batches_learned) == ({}, (), 0)
    assert all(torch.isfinite(one).all() for one in opened.brain.gate.parameters())
    assert [each.name for each in saved.parent.iterdir()] == ["gate.ckpt.corrupt"]
