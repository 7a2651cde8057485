"""The trainable gate: from the bytes so far to one score for each miner.

**What it may see.** The score at position t is computed from bytes 0..t, which is what an expert predicts byte t + 1
from. Which miners are asked about a row is decided at its *decision point*, from the first ``prefix_bytes`` bytes
alone; how much each answer counts is decided again at every later position. So no byte is predicted with help of
itself, and positions before the decision point, whose miners were chosen by later bytes, are left out of every loss.

Once answers are there, they tell more: how well each member predicted the row's bytes so far. This *evidence* is a
fading sum of its log-probabilities of bytes up to t (prediction with expert advice, as in Herbster and Warmuth,
"Tracking the best expert", 1998), added to the gate's scores with a trained weight and a trained rate of fading.

The features are running means of learned vectors for hashed 1-, 2- and 3-grams (a bag of n-grams, as in fastText,
Joulin et al., arXiv 1607.01759). Answers are dear, and a hundred small batches of them are too few to learn the
vectors of thousands of n-grams; but text costs nothing, and a validator knows which of its tasks a row is from. So
the vectors also learn to tell the tasks apart, without asking anybody, and what the answers must teach is the few
numbers of each miner's row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from moed.protocol.codec import Record

from .ngrams import ngram_buckets


class GateConfig(Record, frozen=True):
    """The gate's size, its top ``k`` and how often it tries a miner that it would not have picked."""

    k: int = 2
    prefix_bytes: int = 48
    width: int = 32
    buckets: int = 4096
    ngram_order: int = 3
    # The chance that one of a row's k places goes to another miner, drawn evenly; falls with the square root of
    # the batches seen and never below the floor, because miners change.
    exploration: float = 0.5
    # Where training starts the evidence: its weight, and how much of it each further byte leaves.
    evidence_gain: float = 0.3
    evidence_decay: float = 0.95
    exploration_floor: float = 0.05

    def __post_init__(self) -> None:
        if not (self.evidence_gain > 0 and 0 < self.evidence_decay < 1):
            raise ValueError("evidence_gain is above 0 and evidence_decay between 0 and 1")
        if self.k < 1 or self.prefix_bytes < 1 or self.width < 1 or self.buckets < 1 or self.ngram_order < 1:
            raise ValueError("k, prefix_bytes, width, buckets and ngram_order must be at least 1")

    def exploration_at(self, batch: int) -> float:
        """The exploration chance at the 1-based ``batch``."""
        return max(self.exploration_floor, self.exploration / math.sqrt(max(1, batch)))


class Gate(nn.Module):
    """Scores miners for text; one row of weights for each uid, added and removed as miners come and go."""

    def __init__(self, config: GateConfig, uids: Iterable[int] = (), *, task_count: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.grams = nn.ModuleList(nn.Embedding(config.buckets, config.width) for _ in range(config.ngram_order))
            self.tasks = nn.Linear(config.width, task_count)
        self.evidence_gain = nn.Parameter(torch.tensor(math.log(config.evidence_gain)))
        self.evidence_decay = nn.Parameter(torch.logit(torch.tensor(config.evidence_decay)))
        self.miners = nn.ParameterDict()
        self.set_uids(uids)

    @property
    def uids(self) -> tuple[int, ...]:
        """The miners that it scores, ascending: the order of the last axis of `forward`."""
        return tuple(sorted(int(key) for key in self.miners))

    def set_uids(self, uids: Iterable[int]) -> tuple[set[int], set[int]]:
        """Make ``uids`` the scored miners; returns (added, removed). A new row starts at the mean of the others."""
        wanted, present = set(uids), set(self.uids)
        for uid in present - wanted:
            del self.miners[str(uid)]
        kept = [self.miners[str(uid)].detach() for uid in sorted(present & wanted)]
        # The mean scores like the average miner: neither shut out nor flooded before it was tried.
        start = torch.stack(kept).mean(0) if kept else torch.zeros(self.config.width + 1)
        for uid in wanted - present:
            self.miners[str(uid)] = nn.Parameter(start.clone())
        return wanted - present, present - wanted

    def forward(self, tokens: Tensor) -> Tensor:
        """Bytes [B, T] to scores [B, T, K], K in the order of `uids`; position t reads bytes up to t only."""
        weights = torch.stack([self.miners[str(uid)] for uid in self.uids])  # [K, W + 1]
        return self._features(tokens) @ weights[:, :-1].T + weights[:, -1]

    def task_scores(self, tokens: Tensor) -> Tensor:
        """Bytes [B, T] to scores [B, T, tasks]: which of the validator's tasks the bytes so far are from."""
        scores: Tensor = self.tasks(self._features(tokens))
        return scores

    def _features(self, tokens: Tensor) -> Tensor:
        keys = ngram_buckets(tokens, self.config.ngram_order, self.config.buckets)
        features: Tensor = sum(table(key) for table, key in zip(self.grams, keys, strict=True))
        seen = torch.arange(1, tokens.shape[1] + 1, device=tokens.device).unsqueeze(-1)
        return features.cumsum(dim=1) / seen  # [B, T, W]

    def evidence(self, target_log_probs: Tensor) -> Tensor:
        """What each member's record in the row adds to its score: [B, T, K] from its log-probabilities of the true
        next bytes [B, T, K]. Position t uses those of positions before t, whose targets are bytes up to t."""
        position = torch.arange(target_log_probs.shape[1], device=target_log_probs.device)
        age = position[:, None] - 1 - position  # [T, T], negative from the position itself on
        fading = torch.sigmoid(self.evidence_decay) ** age.clamp(min=0) * (age >= 0)
        return torch.einsum("ts,bsk->btk", fading, target_log_probs) * self.evidence_gain.exp()


@torch.no_grad()
def choose(
    scores: Tensor, k: int, *, allowed: Tensor | None = None, exploration: float = 0.0, draws: Tensor | None = None
) -> Tensor:
    """Pick the ``k`` best miners of each row: scores [B, K] to bool [B, K].

    ``allowed`` (bool [K] or [B, K]) limits the choice. With chance ``exploration`` the last place of a row goes to
    an allowed miner drawn evenly from those not picked; ``draws`` (uniform [B, K + 1], required then) decides both.
    """
    rows, miners = scores.shape
    open_to = torch.ones_like(scores, dtype=torch.bool) if allowed is None else allowed.expand(rows, miners)
    ranked = scores.masked_fill(~open_to, -math.inf)
    # Equal scores would always favour the lowest uid; with draws they are settled by chance.
    if draws is not None:
        ranked = ranked + draws[:, :miners] * 1e-6
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    places = min(k, miners)
    chosen = torch.zeros_like(open_to).scatter_(1, order[:, :places], value=True)
    if draws is not None and exploration > 0:
        candidates = open_to & ~chosen
        other = draws[:, :miners].masked_fill(~candidates, -1.0).argmax(dim=-1)
        explores = (draws[:, miners] < exploration) & candidates.any(dim=-1)
        last = order[:, places - 1]
        row = torch.arange(rows)[explores]
        chosen[row, last[explores]] = False
        chosen[row, other[explores]] = True
    return chosen & open_to


def decision_scores(scores: Tensor, prefix_bytes: int) -> Tensor:
    """The scores [B, K] at each row's decision point: after ``prefix_bytes`` bytes, or at the end of a shorter row."""
    return scores[:, min(prefix_bytes, scores.shape[1]) - 1]
