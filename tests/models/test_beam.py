"""Beam search over a grid with holes, against the exact answer by brute force."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moed.models.beam import NOBODY, Grid, children_of, search, split_name, steps_to


class Directory:
    """A grid of which some places live; ``asked`` counts each prefix that was asked about."""

    def __init__(self, grid: Grid, share: float, seed: int) -> None:
        self.is_live = torch.rand(grid.places, generator=torch.Generator().manual_seed(seed)) < share
        self.names = [grid.name(index) for index in self.is_live.nonzero().flatten().tolist()]
        self.asked: set[str] = set()

    def look_up(self, prefixes: Collection[str]) -> Mapping[str, Collection[int]]:
        self.asked |= set(prefixes)
        return children_of(self.names, prefixes)


def exact(scores: list[torch.Tensor], is_live: torch.Tensor, k: int) -> torch.Tensor:
    """The scores of the best ``k`` live places of each row, -inf where there are fewer."""
    total = scores[0]
    for one in scores[1:]:
        total = (total.unsqueeze(-1) + one.reshape(len(one), *([1] * (total.dim() - 1)), -1)).flatten(1)
    total = total.masked_fill(~is_live, -torch.inf)
    return total.topk(k, dim=1).values


def found_scores(scores: list[torch.Tensor], grid: Grid, picked: torch.Tensor) -> torch.Tensor:
    parts = [
        one.gather(1, column) for one, column in zip(scores, grid.split(picked.clamp(min=0)), strict=True)
    ]  # fmt: skip
    return torch.stack(parts).sum(dim=0).masked_fill(picked == NOBODY, -torch.inf)


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    share=st.floats(0, 1),
    k=st.integers(1, 4),
    width=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_with_rounds_enough_it_is_exact(sizes: list[int], share: float, k: int, width: int, seed: int) -> None:
    """Whatever the holes: the best live places in order, each once, and it says that it is sure."""
    grid = Grid("e.", tuple(sizes))
    k = min(k, grid.places)
    directory = Directory(grid, share, seed)
    torch.manual_seed(seed)
    scores = [torch.randn(5, size) for size in sizes]
    best = search(scores, grid, k, directory.look_up, width=width, max_rounds=12)
    assert best.is_exact.all()
    assert torch.allclose(found_scores(scores, grid, best.picked), exact(scores, directory.is_live, k))
    for row in best.picked.tolist():
        live = [one for one in row if one != NOBODY]
        assert len(set(live)) == len(live)
        assert all(directory.is_live[one] for one in live)


def test_one_round_never_claims_more_than_it_knows() -> None:
    """Rows that say exact are exact; a narrow beam over many holes misses some, and those do not say so."""
    grid = Grid("e.", (32, 32))
    directory = Directory(grid, 0.1, seed=3)
    torch.manual_seed(3)
    scores = [torch.randn(400, 32), torch.randn(400, 32)]
    best = search(scores, grid, 4, directory.look_up, width=4, max_rounds=1)
    is_right = torch.isclose(found_scores(scores, grid, best.picked), exact(scores, directory.is_live, 4)).all(dim=1)
    assert (is_right | ~best.is_exact).all()
    assert not is_right.all()


def test_few_questions_on_a_large_grid() -> None:
    """A million places, one row: about the beam's width of questions for each dimension after the first."""
    grid = Grid("e.", (100, 100, 100))
    asked: set[str] = set()

    def everybody(prefixes: Collection[str]) -> Mapping[str, Collection[int]]:
        asked.update(prefixes)
        return {prefix: range(100) for prefix in prefixes}

    torch.manual_seed(1)
    best = search([torch.randn(1, 100) for _ in range(3)], grid, 4, everybody, width=8)
    assert best.is_exact.all()
    assert len(asked) <= 2 * 8


def test_names_and_their_places() -> None:
    """A name's coordinates are its trailing numbers; each prefix knows the next one; a strange child is left out."""
    grid = Grid("ffn.", (3, 4))
    assert [grid.name(index) for index in (0, 5, 11)] == ["ffn.0.0", "ffn.1.1", "ffn.2.3"]
    assert grid.below(2, 1) == "ffn.2."
    assert split_name("a.b.3.7") == ("a.b.", (3, 7))
    assert split_name("prose") is None
    assert split_name("7") is None
    assert list(steps_to("ffn.2.3")) == [("ffn.", 2), ("ffn.2.", 3)]
    best = search([torch.zeros(1, 3), torch.zeros(1, 4)], grid, 2, lambda _: {"ffn.1.": (9, -1, 2)}, width=3)
    assert best.picked.tolist() == [[6, NOBODY]]
    with pytest.raises(ValueError, match="at least one"):
        Grid("x", ())
