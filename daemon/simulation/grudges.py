"""An adversary that rules over the delays: which messages of a height come late, and to whom, so that rounds split."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

from moed.protocol.identity import NodeId


class Kind(Enum):
    """What a message is, as far as its delay goes."""

    PROPOSAL = 0
    PREVOTE = 1
    PRECOMMIT = 2


@dataclass(frozen=True, slots=True)
class Grudge:
    """What happens to the messages of one height, in its rounds before ``rounds``.

    Those of a kind in ``late`` reach the nodes named there only ``lag_s`` after they were sent, whoever passes them on;
    so do votes of kinds in ``torn`` from an author to a target in ``apart``, and everything between ``halves`` and the
    rest. Who is in ``muted`` is not heard for as long once it has the block.
    """

    lag_s: float
    rounds: int
    late: dict[Kind, frozenset[NodeId]]
    torn: frozenset[Kind] = frozenset()
    apart: frozenset[tuple[NodeId, NodeId]] = frozenset()
    halves: frozenset[NodeId] = frozenset()
    muted: frozenset[NodeId] = frozenset()

    def holds_back(self, kind: Kind, author: NodeId, source: NodeId, target: NodeId) -> bool:
        """Whether a message of this height comes late."""
        if (source in self.halves) != (target in self.halves):
            return True
        return target in self.late.get(kind, ()) or (kind in self.torn and (author, target) in self.apart)


def draw_grudge(seed: int, height: int, nodes: list[NodeId], share: float) -> Grudge | None:
    """The grudge of a height, or None in most; the same whenever it is asked for."""
    generator = random.Random(f"grudge {seed} {height}")  # noqa: S311  # repeatable, not secret
    if generator.random() >= share:
        return None

    def some(low: int, high: int) -> frozenset[NodeId]:
        return frozenset(generator.sample(nodes, min(generator.randint(low, max(low, high)), len(nodes))))

    third = max(1, (len(nodes) - 1) // 3)
    lag_s, rounds = generator.choice((8.0, 25.0, 60.0)), generator.randint(1, 3)
    pattern = generator.choice(("split", "split", "halves", "any"))
    if pattern == "halves":
        return Grudge(lag_s, rounds, {}, halves=some(1, len(nodes) - 1))
    if pattern == "any":
        return Grudge(lag_s, rounds, {kind: some(0, len(nodes)) for kind in Kind}, muted=some(0, 1))
    # Few miss the block and vote for none; some miss the votes of a few others, and so see two thirds vote but no
    # quorum: they go on, while the rest lock on the block or even decide, and those who decided may be silent then.
    unaware, unheard = some(1, third), some(1, third)
    deaf = some(1, len(nodes)) - unheard
    return Grudge(
        lag_s,
        rounds,
        {Kind.PROPOSAL: unaware},
        torn=frozenset(generator.sample((Kind.PREVOTE, Kind.PRECOMMIT), generator.randint(1, 2))),
        apart=frozenset((author, target) for author in unheard for target in deaf),
        muted=unheard if generator.random() < 0.5 else frozenset(),
    )
