"""Finds each row's best experts on a grid without scoring all of them: beam search over the prefixes that live.

An expert stands at a place of an n-dimensional grid, and its score is the sum of one score for each of its coordinates
(a product key, arXiv 1907.05242; as a gate over remote experts arXiv 2002.04013). So the best prefixes of length one
are known from the first scores alone, and only below those is it asked who is there: about width × dimensions
questions, however many experts there are.

On a grid with holes a beam of fixed width can miss: the best prefixes may have nobody below them. What was pruned has a
bound, though (its score plus the best that could follow), so a row knows whether it may have missed something, and its
beam is doubled while it may.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LookUp = Callable[[Collection[str]], Mapping[str, Collection[int]]]
"""The coordinates that live right below each prefix (``"ffn.3."``); a prefix that is left out has nobody."""

NOBODY = -1


@dataclass(frozen=True, slots=True)
class Grid:
    """The places of a grid: expert ``prefix + "3.7"`` stands at (3, 7); a flat index counts the last number fastest."""

    prefix: str
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"a grid has at least one dimension and one place in each, not {self.sizes}")

    @property
    def places(self) -> int:
        """How many experts there can be."""
        return math.prod(self.sizes)

    def name(self, index: int) -> str:
        """The name of the expert at a flat index."""
        return self.prefix + ".".join(map(str, self._coordinates(index, len(self.sizes))))

    def below(self, index: int, dimensions: int) -> str:
        """The prefix of the places whose first ``dimensions`` coordinates have this flat index."""
        return self.prefix + "".join(f"{one}." for one in self._coordinates(index, dimensions))

    def split(self, indexes: Tensor) -> list[Tensor]:
        """The coordinates of flat indexes, a tensor for each dimension."""
        coordinates: list[Tensor] = []
        for size in reversed(self.sizes):
            coordinates.append(indexes % size)
            indexes = indexes.div(size, rounding_mode="floor")
        return coordinates[::-1]

    def _coordinates(self, index: int, dimensions: int) -> list[int]:
        coordinates: list[int] = []
        for size in reversed(self.sizes[:dimensions]):
            coordinates.append(index % size)
            index //= size
        return coordinates[::-1]


def split_name(name: str) -> tuple[str, tuple[int, ...]] | None:
    """(prefix, coordinates) of a name that ends in coordinates (``"ffn.3.7"``: ``"ffn."`` and 3, 7), else None."""
    parts = name.split(".")
    start = len(parts)
    while start > 1 and parts[start - 1].isascii() and parts[start - 1].isdigit():
        start -= 1
    if start == len(parts):
        return None
    return ".".join(parts[:start]) + ".", tuple(int(one) for one in parts[start:])


def children_of(names: Collection[str], prefixes: Collection[str]) -> dict[str, frozenset[int]]:
    """What a `LookUp` answers where all live names are known."""
    found: dict[str, set[int]] = {prefix: set() for prefix in prefixes}
    for name in names:
        for prefix, child in steps_to(name):
            if prefix in found:
                found[prefix].add(child)
    return {prefix: frozenset(children) for prefix, children in found.items()}


def steps_to(name: str) -> Iterator[tuple[str, int]]:
    """Each prefix of a name on a grid with the coordinate that follows it, the shortest first."""
    split = split_name(name)
    if split is not None:
        prefix, coordinates = split
        for coordinate in coordinates:
            yield prefix, coordinate
            prefix += f"{coordinate}."


@dataclass(frozen=True, slots=True)
class Best:
    """The best live places of each row, ``picked`` int64 [B, k] in falling order of score, `NOBODY` where there are
    fewer; ``is_exact`` bool [B]: nothing better can be missing."""

    picked: Tensor
    is_exact: Tensor


def search(scores: Sequence[Tensor], grid: Grid, k: int, look_up: LookUp, *, width: int, max_rounds: int = 8) -> Best:
    """The best ``k`` live places for each row of ``scores``, one tensor [B, size] for each dimension.

    Starts with a beam of ``width`` and doubles it, at most ``max_rounds`` times in all, for rows that may have missed
    something. ``look_up`` may be asked for a prefix again in a later round: it should remember.
    """
    rows = len(scores[0])
    picked = torch.full((rows, k), NOBODY, dtype=torch.int64)
    is_exact = torch.zeros(rows, dtype=torch.bool)
    for _ in range(max_rounds):
        open_rows = (~is_exact).nonzero().flatten()
        if not len(open_rows):
            break
        found, certain = _pass([one[open_rows] for one in scores], grid, k, look_up, width)
        picked[open_rows], is_exact[open_rows] = found, certain
        width *= 2
    return Best(picked, is_exact)


def _pass(scores: Sequence[Tensor], grid: Grid, k: int, look_up: LookUp, width: int) -> tuple[Tensor, Tensor]:
    """One beam search: (picked [B, k], whether nothing that was pruned could be better [B])."""
    rows, last = len(scores[0]), len(scores) - 1
    beam = torch.zeros(rows, 1, dtype=torch.int64)
    totals = torch.zeros(rows, 1)
    pruned = torch.full((rows,), -math.inf)
    for dimension, (score, size) in enumerate(zip(scores, grid.sizes, strict=True)):
        candidates = totals.unsqueeze(2) + score.unsqueeze(1)  # [B, beam, size]
        if dimension or not last:  # the first coordinates of several are not worth a question: the next one tells
            candidates = candidates.masked_fill(~_alive(beam, totals, grid, dimension, look_up), -math.inf)
        places = beam.unsqueeze(2) * size + torch.arange(size)
        flat = candidates.flatten(1)
        kept = min(k if dimension == last else width, flat.shape[1])
        best = flat.topk(min(kept + 1, flat.shape[1]), dim=1)
        if dimension != last and flat.shape[1] > kept:
            rest = torch.stack([one.max(dim=1).values for one in scores[dimension + 1 :]]).sum(dim=0)
            pruned = torch.maximum(pruned, best.values[:, kept] + rest)
        totals = best.values[:, :kept]
        beam = places.flatten(1).gather(1, best.indices[:, :kept])
    picked = torch.full((rows, k), NOBODY, dtype=torch.int64)
    picked[:, : beam.shape[1]] = torch.where(totals.isfinite(), beam, NOBODY)
    worst = totals[:, -1] if totals.shape[1] == k else torch.full((rows,), -math.inf)
    return picked, worst >= pruned


def _alive(beam: Tensor, totals: Tensor, grid: Grid, dimension: int, look_up: LookUp) -> Tensor:
    """Which coordinates live below each prefix of the beam: bool [B, beam, size]."""
    size = grid.sizes[dimension]
    wanted, where = torch.where(totals.isfinite(), beam, NOBODY).unique(  # type: ignore[no-untyped-call]  # torch's own lack
        return_inverse=True
    )
    names = [grid.below(index, dimension) if index != NOBODY else "" for index in wanted.tolist()]
    answer = look_up([name for name in names if name])
    table = torch.zeros(len(names), size, dtype=torch.bool)
    for row, name in enumerate(names):
        children = [one for one in answer.get(name, ()) if 0 <= one < size]
        table[row, children] = True
    return table[where]
