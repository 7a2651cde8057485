"""`moed experiment`: how far consensus holds against a colluding team, and against a validator that copies.

Everything is played by the product's own epoch; the numbers beside it are published ones. Seeds are fixed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moed.consensus.games import CopyRules, GameRules, TeamGame, copier_advantage

from .game_chain import play_on_chain
from .tables import Table

Say = Callable[[str], None]

STAKES = (0.51, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
CABAL_WEIGHTS = tuple(step / 25 for step in range(26))
LOSING_CORNER = (0.6, 0.7, 0.8)
"""Honest stake, honest utility, cabal weight: attackers with 40 % of the stake and 30 % of the useful work."""
DRIFTS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """Honest stake and cabal weight, and the utility that just retains the stake there: mean and deviation of draws.

    The plots are those of opentensor/subtensor, docs/consensus.md; ``curve`` is read from their lines, ``mean`` and
    ``deviation`` are 20 other draws of the same game in float64.
    """

    rules: GameRules
    stake: float
    cabal_weight: float
    curve: float
    mean: float
    deviation: float

    @property
    def bound(self) -> float:
        """How far from ``mean`` the mean of our seeds may be: two deviations, or 0.001 where draws do not matter."""
        return 2 * self.deviation if self.deviation else 1e-3


PUBLISHED = (
    PublishedRow(GameRules(sigma=0.0), 0.60, 0.4, 0.6000, 0.6000, 0.0),
    PublishedRow(GameRules(sigma=0.2), 0.60, 0.6, 0.6667, 0.6670, 0.0007),
    PublishedRow(GameRules(), 0.60, 0.8, 0.7329, 0.7358, 0.0018),
    PublishedRow(GameRules(kappa=0.4), 0.51, 1.0, 0.9300, 0.9456, 0.009),
    PublishedRow(GameRules(), 0.51, 1.0, 0.8863, 0.8883, 0.007),
    PublishedRow(GameRules(kappa=0.6), 0.51, 1.0, 1.0, 1.0, 0.0),
    PublishedRow(GameRules(beta=0.0), 0.60, 1.0, 0.7882, 0.7915, 0.0014),
    PublishedRow(GameRules(beta=0.5), 0.60, 1.0, 0.7684, 0.7720, 0.0016),
    PublishedRow(GameRules(xi=0.0), 0.60, 1.0, 0.8241, 0.8266, 0.0010),
    PublishedRow(GameRules(xi=0.25), 0.60, 1.0, 0.7848, 0.7878, 0.0013),
)


def collusion(*, seeds: int, line_seeds: int, say: Say) -> dict[str, Any]:
    """The two-team game: published rows again, a line for each stake, the losing corner, and one point in blocks."""
    say(f"seeds 0 to {seeds - 1} for rows and points, 0 to {line_seeds - 1} for lines")
    rows = [retention_row(row, range(seeds)) for row in PUBLISHED]
    lines = {}
    for stake in STAKES:
        say(f"line of honest stake {stake:.0%} ...")
        lines[str(stake)] = retention_line(stake, range(line_seeds))
    say("one point through the ledger ...")
    return {
        "experiment": "collusion",
        "seeds": seeds,
        "line_seeds": line_seeds,
        "rows": rows,
        "lines": lines,
        "losing_corner": losing_corner(range(seeds)),
        "ledger": ledger_point(),
    }


def retention_row(row: PublishedRow, seeds: Sequence[int]) -> dict[str, Any]:
    """One published setting played with our own draws."""
    games = [TeamGame(seed, row.stake, row.rules) for seed in seeds]
    found = [game.retaining_utility(row.cabal_weight) for game in games]
    mean = float(np.mean(found))
    return {
        **asdict(row.rules),
        "honest_stake": row.stake,
        "cabal_weight": row.cabal_weight,
        "utility": mean,
        "deviation": float(np.std(found, ddof=1)) if len(found) > 1 else 0.0,
        "published_curve": row.curve,
        "published_mean": row.mean,
        "published_deviation": row.deviation,
        "holds": abs(mean - row.mean) <= row.bound,
    }


def retention_line(stake: float, seeds: Sequence[int]) -> list[list[float]]:
    """[honest utility, cabal weight] along the edge of retention: right of it honest stake grows. Mean over seeds."""
    games = [TeamGame(seed, stake, GameRules()) for seed in seeds]
    return [[float(np.mean([game.retaining_utility(y) for game in games])), y] for y in CABAL_WEIGHTS]


def losing_corner(seeds: Sequence[int]) -> dict[str, Any]:
    """Where attackers win: what the honest 60 % of the stake earn against 30 % of the useful work on the other side."""
    stake, utility, cabal_weight = LOSING_CORNER
    parts = [TeamGame(seed, stake, GameRules()).play(utility, cabal_weight) for seed in seeds]
    return {
        "honest_stake": stake,
        "honest_utility": utility,
        "cabal_weight": cabal_weight,
        "honest_part": float(np.mean(parts)),
        "attackers_win_in": sum(part < stake for part in parts),
        "of": len(parts),
    }


def ledger_point(seed: int = 0) -> dict[str, Any]:
    """The losing corner once more, in signed blocks on disk that are all checked again, beside the bare epoch."""
    stake, utility, cabal_weight = LOSING_CORNER
    game = TeamGame(seed, stake, GameRules())
    with tempfile.TemporaryDirectory(prefix="moed-game-") as folder:
        outcome = play_on_chain(game, utility, cabal_weight, Path(folder))
    return {
        "seed": seed,
        "honest_part": outcome.honest_part,
        "honest_part_of_epoch": game.play(utility, cabal_weight),
        "height": outcome.height,
        "state_root": outcome.state_root,
    }


def collusion_tables(found: dict[str, Any]) -> list[Table]:
    """The rows for people."""
    rows = [
        [
            *(f"{row[name]:g}" for name in ("sigma", "kappa", "beta", "xi")),
            f"{row['honest_stake']:.2f}",
            f"{row['cabal_weight']:.1f}",
            f"{row['utility']:.4f} ± {row['deviation']:.4f}",
            f"{row['published_mean']:.4f} ± {row['published_deviation']:.4f}",
            f"{row['published_curve']:.4f}",
            "yes" if row["holds"] else "NO",
        ]
        for row in found["rows"]
    ]
    heads = (">sigma", ">kappa", ">beta", ">xi", ">stake", ">cabal", ">utility", ">published", ">curve", "agrees")
    corner, ledger = found["losing_corner"], found["ledger"]
    lost = [
        ["honest stake", f"{corner['honest_stake']:.2f}"],
        ["honest utility", f"{corner['honest_utility']:.2f}"],
        ["honest part of the emission", f"{corner['honest_part']:.4f}"],
        ["draws in which the attackers win", f"{corner['attackers_win_in']} of {corner['of']}"],
        [f"the same in {ledger['height']} blocks (seed {ledger['seed']})", f"{ledger['honest_part']:.6f}"],
        ["and in the bare epoch", f"{ledger['honest_part_of_epoch']:.6f}"],
    ]
    title = f"Honest utility that just keeps the stake (mean ± deviation of {found['seeds']} seeds)"
    return [Table(title, heads, rows), Table("The losing corner", ("what", ">value"), lost)]


def weight_copy(*, seeds: int, say: Say) -> dict[str, Any]:
    """What copying pays, with weights in the open and hidden first, by how fast the miners' worth moves."""
    say(f"seeds 0 to {seeds - 1}")
    rows = [
        _copy_row(CopyRules(drift=drift, hidden=hidden, yuma_version=version), range(seeds))
        for version in (1, 3)
        for drift in DRIFTS
        for hidden in (False, True)
    ]
    return {"experiment": "weight-copy", "seeds": seeds, "rows": rows}


def _copy_row(rules: CopyRules, seeds: Sequence[int]) -> dict[str, Any]:
    found = [copier_advantage(seed, rules) for seed in seeds]
    return {
        "yuma_version": rules.yuma_version,
        "drift": rules.drift,
        "hidden": rules.hidden,
        "copier_over_honest": float(np.mean(found)),
        "deviation": float(np.std(found, ddof=1)) if len(found) > 1 else 0.0,
    }


def weight_copy_tables(found: dict[str, Any]) -> list[Table]:
    """The rows for people: one line for each drift and rule, the two modes side by side."""
    by_case: dict[tuple[int, float], dict[bool, dict[str, Any]]] = {}
    for row in found["rows"]:
        by_case.setdefault((row["yuma_version"], row["drift"]), {})[row["hidden"]] = row
    rows = [
        [str(version), f"{drift:g}", *(f"{modes[hidden]['copier_over_honest']:.3f}" for hidden in (False, True))]
        for (version, drift), modes in by_case.items()
    ]
    title = f"A copier's dividends over an honest validator's, same stake (mean of {found['seeds']} seeds)"
    return [Table(title, (">yuma", ">drift", ">weights open", ">weights hidden"), rows)]
