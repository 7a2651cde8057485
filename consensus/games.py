"""Games that attackers play against consensus: two teams that rank their own, and a validator that copies.

The two-team game is that of the reference's docs/consensus.md (opentensor/subtensor): honest validators put a share
``honest_utility`` of their weight on honest servers, because that is what the cabal's servers leave them; the cabal
puts any ``cabal_weight`` on its own. Honest validators keep their stake where their team's part of the emission is at
least their part of the stake. Randomness comes in as numpy generators made from a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .dense_rows import DenseRows
from .epoch_inputs import EpochInputs
from .fixedpoint import ONE, U16_MAX
from .sparse_rows import SparseRows
from .yuma import epoch

Floats = npt.NDArray[np.float64]
Normal = Callable[[int], Floats]
"""Gives so many standard normal numbers."""

TOTAL_STAKE = 21 * 10**15
STAKE_DEVIATION = 0.3
GRID_POINTS = 51
GRID_STEP = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class GameRules:
    """What is varied: the spread of single weights, kappa, the bonds penalty beta, and the validators' part xi."""

    sigma: float = 0.4
    kappa: float = 0.5
    beta: float = 1.0
    xi: float = 0.5


class TeamGame:
    """One draw of stakes and tastes for two teams; `play` it for any weights on one's own team.

    Uids: honest validators, cabal validators, honest servers, cabal servers; each team has its share of both kinds.
    """

    def __init__(
        self,
        seed: int,
        honest_stake: float,
        rules: GameRules,
        *,
        validators: int = 64,
        servers: int = 448,
        normal: Normal | None = None,
    ) -> None:
        """Draw by numpy from ``seed``, or by ``normal``: stakes by team first, then each validator's tastes by team."""
        normal = np.random.default_rng(seed).standard_normal if normal is None else normal
        self.rules = rules
        self.honest_stake = honest_stake
        self.validators, self.servers = validators, servers
        self.honest_validators = _part(honest_stake, validators)
        self.honest_servers = _part(honest_stake, servers)
        teams = (self.honest_validators, honest_stake), (validators - self.honest_validators, 1 - honest_stake)
        shares = [_shared_out(np.maximum(0, 1 + STAKE_DEVIATION * normal(members)), share) for members, share in teams]
        self.stake = np.zeros(self.uids, np.int64)
        self.stake[:validators] = np.concatenate(shares) * TOTAL_STAKE
        quadrants = self.honest_servers, servers - self.honest_servers
        tastes = [np.concatenate([normal(size) for size in quadrants]) for _ in range(validators)]
        self._taste = np.maximum(0, 1 + rules.sigma * np.array(tastes))

    @property
    def uids(self) -> int:
        return self.validators + self.servers

    def weights(self, honest_utility: float, cabal_weight: float) -> npt.NDArray[np.uint16]:
        """What each validator sets on each server [validators, servers], the row's largest at 65535."""
        rows = np.empty((self.validators, self.servers))
        honest = slice(None, self.honest_validators), honest_utility
        cabal = slice(self.honest_validators, None), 1 - cabal_weight
        for team, on_honest in (honest, cabal):
            rows[team, : self.honest_servers] = _shared_out(self._taste[team, : self.honest_servers], on_honest)
            rows[team, self.honest_servers :] = _shared_out(self._taste[team, self.honest_servers :], 1 - on_honest)
        units = np.floor(rows * U16_MAX)
        upscaled: npt.NDArray[np.uint16] = np.floor(units * U16_MAX / units.max(axis=1, keepdims=True) + 0.5).astype(
            np.uint16
        )
        return upscaled

    def inputs(self, honest_utility: float, cabal_weight: float) -> EpochInputs:
        """The one epoch that the game is, without bonds of earlier ones."""
        return EpochInputs(
            n=self.uids,
            block=1,
            last_tempo_block=0,
            emission=10**9,
            stake=self.stake,
            validator_permit=np.arange(self.uids) < self.validators,
            last_update=np.ones(self.uids, np.int64),
            block_at_registration=np.zeros(self.uids, np.int64),
            weights_u16=_full_rows(self.weights(honest_utility, cabal_weight)),
            bonds_u16=_no_rows(self.uids),
            kappa_u16=int(self.rules.kappa * U16_MAX),
            bonds_penalty_u16=int(self.rules.beta * U16_MAX),
            max_allowed_validators=self.validators,
        )

    def honest_part(self, incentive: Floats, dividends: Floats) -> float:
        """The honest team's part of the emission, of two vectors [uids] that sum to 1 each."""
        servers = incentive[self.validators : self.validators + self.honest_servers].sum()
        validators = dividends[: self.honest_validators].sum()
        return float(self.rules.xi * validators + (1 - self.rules.xi) * servers)

    def play(self, honest_utility: float, cabal_weight: float) -> float:
        """The honest team's part of the emission."""
        result = epoch(self.inputs(honest_utility, cabal_weight))
        return self.honest_part(result.incentive_bits / ONE, result.dividends_bits / ONE)

    def retaining_utility(self, cabal_weight: float) -> float:
        """The least honest utility at which the honest team keeps its part of the stake; 1 if none is enough.

        As in the published plots: the line through a grid of step `GRID_STEP`, straight between two of its points.
        The crossing is found by halving, since more honest utility never earns the honest team less.
        """
        low, high = 0, GRID_POINTS - 1
        parts = {one: self.play(one * GRID_STEP, cabal_weight) for one in (low, high)}
        if parts[high] < self.honest_stake:
            return 1.0
        if parts[low] >= self.honest_stake:
            return 0.0
        while high - low > 1:
            middle = (low + high) // 2
            parts[middle] = self.play(middle * GRID_STEP, cabal_weight)
            low, high = (middle, high) if parts[middle] < self.honest_stake else (low, middle)
        return (low + (self.honest_stake - parts[low]) / (parts[high] - parts[low])) * GRID_STEP


def _part(stake: float, of: int) -> int:
    """A team's number of validators or servers: in proportion to its stake, and at least one for each team."""
    return min(max(int(stake * of), 1), of - 1)


def _shared_out(values: Floats, share: float) -> Floats:
    scaled: Floats = values / values.sum(axis=-1, keepdims=True) * share
    return scaled


def _full_rows(weights: npt.NDArray[np.uint16]) -> SparseRows:
    """The rows of validators, the first uids, who rate every miner, the uids after them: ``weights`` [V, M]."""
    validators, miners = weights.shape
    starts = np.minimum(np.arange(validators + miners + 1), validators) * miners
    rated = np.tile(np.arange(validators, validators + miners, dtype=np.uint16), validators)
    return SparseRows(starts, rated, weights.ravel())


def _no_rows(n: int) -> SparseRows:
    nothing = np.zeros(0, np.uint16)
    return SparseRows(np.zeros(n + 1, np.int64), nothing, nothing)


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRules:
    """A market whose miners' worth moves by a random walk in its logarithm, ``drift`` in an epoch.

    Honest validators see it with an error of ``noise``; the copier does no work and writes the consensus that it can
    read: that of the epoch under way where weights are open, that of the epoch before where they are hidden first.
    """

    drift: float
    hidden: bool
    noise: float = 0.1
    validators: int = 9
    miners: int = 48
    epochs: int = 60
    yuma_version: int = 1


def copier_advantage(seed: int, rules: CopyRules) -> float:
    """The copier's dividends for its stake, over the honest validators' mean: 1.0 is as much as working earns.

    All stakes are equal, so that no single one decides. The first quarter of the epochs only builds up bonds.
    """
    draw = np.random.default_rng(seed)
    worth = np.zeros(rules.miners)
    bonds: SparseRows | DenseRows = _no_rows(rules.validators + rules.miners)
    earned = np.zeros(rules.validators)
    visible: Floats | None = None
    for number in range(rules.epochs):
        worth = worth + draw.normal(0, rules.drift, rules.miners)
        seen = np.exp(worth + draw.normal(0, rules.noise, (rules.validators - 1, rules.miners)))
        fresh = _consensus(seen)
        copied = visible if rules.hidden and visible is not None else fresh
        visible = fresh
        result = epoch(_market(np.vstack([seen, copied[None]]), rules, bonds))
        bonds = result.stored_bonds_u16
        if number >= rules.epochs // 4:
            earned += result.dividends_bits[: rules.validators] / ONE
    return float(earned[-1] / earned[:-1].mean())


def _consensus(rows: Floats) -> Floats:
    """What the honest rows agree on: the median of equal stakes."""
    agreed: Floats = np.median(rows / rows.sum(axis=1, keepdims=True), axis=0)
    return agreed


def _market(rows: Floats, rules: CopyRules, bonds: SparseRows | DenseRows) -> EpochInputs:
    n = rules.validators + rules.miners
    upscaled = np.round(rows / rows.max(axis=1, keepdims=True) * U16_MAX).astype(np.uint16)
    return EpochInputs(
        n=n,
        block=2,
        last_tempo_block=1,
        emission=10**9,
        stake=[10**9] * rules.validators + [0] * rules.miners,
        validator_permit=[uid < rules.validators for uid in range(n)],
        last_update=[2] * n,
        block_at_registration=[0] * n,
        weights_u16=_full_rows(upscaled),
        bonds_u16=bonds,
        yuma_version=rules.yuma_version,
        max_allowed_validators=rules.validators,
    )
