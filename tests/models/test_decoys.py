"""A miner that copies the byte it must predict is found; an honest one never is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moed.models.corpora import load_corpus
from moed.models.decoys import MIN_DECOYS, DecoyWatch, plant_decoys
from support.counted_experts import CountedExpert, copy_ahead


def watch(domain: str, copied: float, *, rows: int = 400) -> DecoyWatch:
    """The evidence after ``rows`` rows about a miner that puts ``copied`` of its weight on the byte ahead."""
    corpus, rng = load_corpus(domain), np.random.default_rng(8)
    expert, evidence = CountedExpert(corpus), DecoyWatch()
    drawn = corpus.sample("validation", rng, rows, 65)
    tokens, decoys = plant_decoys(drawn[:, :-1], rng, 0.5, first_position=20)
    answer = copy_ahead(tokens, expert.answer(tokens), copied) if copied else expert.answer(tokens)
    everyone = {1: np.arange(rows)}
    evidence.observe(tokens, decoys, drawn[:, 1:], everyone, {1: torch.from_numpy(answer)})
    return evidence


@pytest.mark.parametrize("domain", ["python", "tables"])
def test_an_honest_expert_is_not_accused(domain: str) -> None:
    """Also where the text is so regular that it is often sure of the wrong byte."""
    assert not watch(domain, 0.0).peeks(1)


@pytest.mark.parametrize("copied", [0.2, 0.9])
def test_a_copier_is_found(copied: float) -> None:
    """One that hides the copy under four fifths of honest weight, too."""
    found = watch("python", copied)
    assert found.peeks(1)
    assert "more to a false byte" in found.evidence(1)


def test_few_decoys_prove_nothing_and_who_leaves_is_forgotten() -> None:
    """There is no verdict before `MIN_DECOYS`, and none left over for the next holder of the uid."""
    early = watch("python", 0.9, rows=MIN_DECOYS // 2)
    assert not early.peeks(1)
    found = watch("python", 0.9)
    found.keep_only([2])
    assert not found.peeks(1)


def test_a_decoy_changes_one_byte_to_another_of_the_row() -> None:
    """At or after the first allowed position, and only in rows that say so."""
    rows = np.random.default_rng(1).integers(256, size=(300, 40), dtype=np.uint8)
    sent, decoys = plant_decoys(rows, np.random.default_rng(2), 0.5, first_position=10)
    for row in range(300):
        changed = np.flatnonzero(sent[row] != rows[row]).tolist()
        assert changed == ([] if decoys[row] < 0 else [decoys[row]])
        assert all(at >= 10 and sent[row, at] in rows[row] for at in changed)
    assert 100 < (decoys >= 0).sum() < 200
