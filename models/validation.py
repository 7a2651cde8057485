"""The validator's brain, without a network: whom to ask what, and what to learn from the answers.

    plan = brain.plan()                      # rows of the private stream, and which miners to ask about which
    answers = {uid: log-probabilities}       # the caller asks, in parallel, whoever answers in time
    report = brain.learn(plan, answers)      # trains the gate; a *probe* plan also measures every miner's value

A missing, late or invalid answer is left out and the weights of those who answered are renormalised.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from .answers import ReadAnswers, read_answers
from .corpora import SPLITS, Corpus, Split, Tokens
from .decoys import plant_decoys
from .errors import CheckpointCorrupt, ModelRefused, NotEnoughAnswers
from .gate import Gate, choose, decision_scores
from .judging import Judging
from .likeness import draw_canaries
from .locks import Baseline, Lock, as_lock
from .mixture import Fallback, coalition_bits, foresight_loss, mix_distributions, mixture_bits, mixture_log_weights
from .optimizer import Adam, clip_gradients
from .plans import LearnReport, Mixed, Plan, Purpose, Route, ValidatorConfig
from .promptness import Promptness
from .scoring import Coalitions, Floats, ScoreBook, integer_weights, shapley


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What the gate learns from: the answered rows of one plan, K miners in the order of ``uids``."""

    uids: tuple[int, ...]
    tokens: Tensor
    weights: Tensor
    target_log_probs: Tensor
    answered: Tensor


class ValidatorBrain:
    """Gate, scores and private stream of one validator. Not thread-safe; owns no I/O.

    ``seed`` decides the stream and the exploration: draw it from the system's entropy, or miners could foresee what
    they will be asked. ``gate_seed`` only decides the gate's first weights.
    """

    def __init__(
        self, locks: Sequence[Lock | Corpus], config: ValidatorConfig, seed: int, *, gate_seed: int = 0
    ) -> None:
        """Raises `ModelRefused` and `CorpusUnavailable` for locks that cannot be asked about."""
        self.config = config
        self.locks = tuple(as_lock(one) for one in locks)
        _check_locks(self.locks, config.length)
        self.baseline = Baseline(self.locks, seed=seed, length=config.length)
        self.gate = Gate(config.gate, task_count=len(self.locks), seed=gate_seed)
        self.scores = ScoreBook(config.score_alpha)
        self.judging = Judging(self.locks, first_scored=config.gate.prefix_bytes - 1)
        self.promptness = Promptness()
        self.plans_made = 0
        self.batches_learned = 0
        self._rng = np.random.default_rng(seed)
        self._memory: deque[_Lesson] = deque(maxlen=config.memory_plans)
        self._adam = Adam(beta2=0.95)

    @property
    def uids(self) -> tuple[int, ...]:
        """The miners that it knows, ascending."""
        return self.gate.uids

    def set_miners(self, uids: Iterable[int], seniority: Mapping[int, int] | None = None) -> None:
        """Make ``uids`` the known miners. What was learned about one that left is forgotten.

        ``seniority`` is when each came; of two whose answers are the same the one that came later is the copy.
        """
        added, removed = self.gate.set_uids(uids)
        for uid in added | removed:
            self._adam.forget(f"miners.{uid}")
        self.scores.keep_only(self.uids)
        self.judging.keep_only(self.uids, seniority or {})
        self.promptness.keep_only(self.uids)
        if removed:
            self._memory.clear()  # the lessons name miners that the gate has no row for any more

    def forget_miner(self, uid: int) -> None:
        """Start ``uid`` anew: another key holds the place now."""
        everybody = self.uids
        self.set_miners(set(everybody) - {uid})
        self.set_miners(everybody)

    def plan(self, *, reachable: Collection[int] | None = None, probe: bool | None = None) -> Plan:
        """The next plan over the private stream; ``reachable`` limits whom to ask, ``probe`` overrides the turn.

        Raises `NotEnoughAnswers` where there is no miner to ask.
        """
        self.plans_made += 1
        if probe is None:
            probe = self.plans_made % self.config.probe_every == 1 % self.config.probe_every
        canaries = self.config.canary_rows if probe else 0
        return self.plan_over(
            "validation", self._rng, self._balanced_domains(), reachable=reachable, probe=probe, canaries=canaries
        )

    def _balanced_domains(self) -> npt.NDArray[np.int64]:
        """Which lock each row is from: every one equally often, the remainder by chance."""
        rows, count = self.config.rows, len(self.locks)
        return np.concatenate([self._rng.permutation(count) for _ in range(-(-rows // count))])[:rows]

    def plan_over(
        self,
        split: Split,
        rng: np.random.Generator,
        domains: npt.NDArray[np.int64],
        *,
        reachable: Collection[int] | None = None,
        probe: bool = True,
        has_decoys: bool = True,
        canaries: int = 0,
    ) -> Plan:
        """A plan over one row of ``split`` for each lock index in ``domains``, drawn from ``rng``, and canaries.

        Raises `NotEnoughAnswers` where there is no miner to ask.
        """
        uids = tuple(uid for uid in self.uids if reachable is None or uid in reachable)
        if not uids:
            raise NotEnoughAnswers("there is no miner to ask")
        length = self.config.length
        drawn = [self.locks[at].draw(split, rng, 1, length) for at in domains]
        tokens, decoys = self._plant(np.concatenate([one.tokens for one in drawn]), domains, rng, has_decoys)
        targets = np.concatenate([one.targets for one in drawn])
        # From a false byte on, the context is not the text any more, so nothing after it counts.
        ends = np.where(decoys < 0, length, decoys)
        position = np.arange(length)
        counts = (position >= self._first_scored) & (position < ends[:, None])
        weights = np.concatenate([one.scored * self.locks[at].weight for one, at in zip(drawn, domains, strict=True)])
        names = tuple(self.locks[at].name for at in domains)
        weights = (counts * weights).astype(np.float32)
        if canaries:
            shown = draw_canaries(self.locks, rng, canaries, length)
            tokens, targets = np.concatenate([tokens, shown]), np.concatenate([targets, shown])
            weights = np.concatenate([weights, np.zeros((canaries, length), dtype=np.float32)])
            decoys = np.concatenate([decoys, np.full(canaries, -1)])
            names += ("canary",) * canaries
        everyone = np.arange(len(tokens))
        assignment = dict.fromkeys(uids, everyone) if probe else self._route_rows(torch.from_numpy(tokens), uids, rng)
        purpose: Purpose = "probe" if probe else "route"
        return Plan(purpose, tokens, targets, weights, decoys, names, uids, assignment, canaries)

    @property
    def _first_scored(self) -> int:
        """The first position that is decided after the choice of miners."""
        return self.config.gate.prefix_bytes - 1

    def _plant(
        self, tokens: Tokens, domains: npt.NDArray[np.int64], rng: np.random.Generator, has_decoys: bool
    ) -> tuple[Tokens, npt.NDArray[np.int64]]:
        """The rows as sent and the place of the decoy in each, -1 for none: only where text goes on."""
        chance = self.config.decoy_chance if has_decoys else 0.0
        sent, decoys = plant_decoys(tokens, rng, chance, first_position=self._first_scored + 1)
        is_text = np.array([self.locks[at].continues_text for at in domains])
        return np.where(is_text[:, None], sent, tokens), np.where(is_text, decoys, -1)

    def _route_rows(
        self, tokens: Tensor, uids: tuple[int, ...], rng: np.random.Generator
    ) -> dict[int, npt.NDArray[np.int64]]:
        config = self.config.gate
        decision = self._decision_scores(tokens, uids)
        draws = torch.from_numpy(rng.random((len(tokens), len(uids) + 1)))
        chosen = choose(decision, config.k, exploration=config.exploration_at(self.batches_learned + 1), draws=draws)
        rows_of = {uid: np.flatnonzero(chosen[:, at].numpy()) for at, uid in enumerate(uids)}
        return {uid: rows for uid, rows in rows_of.items() if len(rows)}

    @torch.no_grad()
    def _decision_scores(self, tokens: Tensor, uids: tuple[int, ...]) -> Tensor:
        prefix = self.config.gate.prefix_bytes
        return decision_scores(self.gate_scores(tokens[:, :prefix], uids), prefix)

    def gate_scores(self, tokens: Tensor, uids: tuple[int, ...]) -> Tensor:
        """Gate scores [B, T, K] with K in the order of ``uids``, which may be fewer than the gate knows."""
        known = {uid: at for at, uid in enumerate(self.gate.uids)}
        scores: Tensor = self.gate(tokens)
        return scores[..., [known[uid] for uid in uids]]

    def learn(self, plan: Plan, answers: Mapping[int, object]) -> LearnReport:
        """Train the gate on the answers to ``plan``; a probe also measures each miner's value.

        Only miners that are still known are learned from. Nothing in ``answers`` can raise: what is not a valid
        answer is named in the report.
        """
        plan = self.still_known(plan)
        read = self.judging.read(plan, answers)
        some = read.answered.any(dim=-1) & torch.from_numpy(plan.is_task)
        # a lock may draw rows of which nothing counts: they teach nothing, and there is no mean over them
        counts = some & torch.from_numpy(plan.scored.any(axis=1))
        is_measured = plan.purpose == "probe" and bool(plan.uids) and bool(plan.scored.any())
        values = self._measure(plan, read) if is_measured else None
        loss, share = (None, {}) if not bool(counts.any()) else self._train(plan, read, counts)
        invalid = {uid: error.code for uid, error in read.invalid.items()}
        missing = tuple(uid for uid in plan.assignment if uid not in read.log_probs and uid not in invalid)
        return LearnReport(loss, int((~some & torch.from_numpy(plan.is_task)).sum()), missing, invalid, share, values)

    def still_known(self, plan: Plan) -> Plan:
        """``plan`` without the miners that left while it was out."""
        if set(plan.uids) <= set(self.uids):
            return plan
        uids = tuple(uid for uid in plan.uids if uid in self.uids)
        assignment = {uid: rows for uid, rows in plan.assignment.items() if uid in uids}
        return replace(plan, uids=uids, assignment=assignment)

    def _train(self, plan: Plan, read: ReadAnswers, some: Tensor) -> tuple[float, dict[int, float]]:
        lesson = _Lesson(
            plan.uids,
            torch.from_numpy(plan.tokens)[some],
            torch.from_numpy(plan.weights)[some],
            read.target_log_probs[some],
            read.answered[some],
        )
        loss, share = self._gradient_step(lesson)
        for _ in range(self.config.replays if self._memory else 0):
            self._gradient_step(self._memory[self._rng.integers(len(self._memory))])
        self._memory.append(lesson)
        for _ in range(self.config.feature_steps if len(self.locks) > 1 else 0):
            self._feature_step()
        self.batches_learned += 1
        return loss, dict(zip(plan.uids, share.tolist(), strict=True))

    def _feature_step(self) -> None:
        """Teach the gate's features to tell the tasks apart, on text that costs no answers.

        From the miners' split: it is the largest, and no answer to it is ever scored.
        """
        rows, length = self.config.feature_rows, self.config.gate.prefix_bytes
        labels = self._rng.integers(len(self.locks), size=rows)
        drawn = np.concatenate([self.locks[at].draw("train", self._rng, 1, length).tokens for at in labels])
        scores = self.gate.task_scores(torch.from_numpy(drawn))[:, length // 4 :]
        wanted = torch.from_numpy(labels).unsqueeze(1).expand(scores.shape[:2])
        loss = functional.cross_entropy(scores.flatten(0, 1), wanted.flatten())
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships this method without types
        self._step_gate()

    def _step_gate(self) -> None:
        """One step of Adam; a gradient that is not finite is none, or a lock that errs once would be the gate's end."""
        if math.isfinite(clip_gradients(self.gate.parameters(), 1.0)):
            self._adam.step(self.gate.named_parameters(), self.config.rate.at(self.batches_learned + 1))
        self.gate.zero_grad(set_to_none=True)

    def _gradient_step(self, lesson: _Lesson) -> tuple[float, Tensor]:
        """One step of the gate; returns the mixture's loss and each miner's mean weight before it."""
        scores = self.gate_scores(lesson.tokens, lesson.uids)
        weighed = scores + self.gate.evidence(lesson.target_log_probs)
        bits = mixture_bits(weighed, lesson.target_log_probs, lesson.answered)
        loss = (bits * lesson.weights).sum() / lesson.weights.sum()
        # Evidence would soon do all the work where there are answers, and teach nothing about whom to ask: so the
        # decision must also foresee what the row will show.
        decision = decision_scores(scores, self.config.gate.prefix_bytes)
        scored = lesson.weights > 0
        foreseen = foresight_loss(decision, lesson.target_log_probs, lesson.answered, scored)
        (loss + foreseen).backward()  # type: ignore[no-untyped-call]  # torch ships this method without types
        self._step_gate()
        with torch.no_grad():
            answered = lesson.answered.unsqueeze(1).expand_as(scores)
            weights = mixture_log_weights(weighed, answered).exp()
        return float(loss.detach()), weights[scored].mean(dim=0)

    @torch.no_grad()
    def _measure(self, plan: Plan, read: ReadAnswers) -> dict[int, float]:
        """Each miner's Shapley value in bits per byte that the mixture saves over the baseline, put in the scores."""
        scores = self.gate_scores(torch.from_numpy(plan.tokens), plan.uids)
        decision = decision_scores(scores, self.config.gate.prefix_bytes)
        weighed = scores + self.gate.evidence(read.target_log_probs)
        weights = torch.from_numpy(plan.weights)
        fallback = self.fallback(self.judge_baseline(plan), scores)

        def value(coalitions: Coalitions) -> Floats:
            nobody = np.zeros((1, len(plan.uids)), dtype=bool)
            bits = coalition_bits(
                torch.from_numpy(np.vstack([nobody, coalitions])), weighed, decision, read.target_log_probs,
                read.answered, weights, self.config.gate.k, fallback,
            )  # fmt: skip
            return (bits[0] - bits[1:]).double().numpy()

        shares = shapley(value, len(plan.uids), self._rng)
        values = {uid: float(shares[at]) for at, uid in enumerate(plan.uids)}
        self.scores.record(values)
        return values

    def judge_baseline(self, plan: Plan) -> Tensor:
        """What the baseline's answers to ``plan`` would be worth, [B, T]."""
        return self.judging.judge(
            plan, self.baseline.answer(torch.from_numpy(plan.tokens)), torch.arange(len(plan.tokens))
        )

    @torch.no_grad()
    def fallback(self, judged: Tensor, scores: Tensor) -> Fallback:
        """The baseline, with its record ``judged`` [B, T], as a member that scores as the average of [B, T, K]."""
        record = self.gate.evidence(judged.unsqueeze(-1)).squeeze(-1)
        return Fallback(scores.mean(dim=-1) + record, judged)

    def weights(self) -> dict[int, int]:
        """Whole-number weights for the chain: what each miner adds on average, times how well it keeps time.

        A miner that was never measured, or was found out, weighs 0.
        """
        found_out, scores = self.judging.findings(self.uids), self.scores.scores
        return integer_weights(
            {uid: 0.0 if uid in found_out else scores.get(uid, 0.0) * self.promptness.of(uid) for uid in self.uids}
        )

    def route(self, context: Tokens, *, reachable: Collection[int] | None = None) -> Route:
        """The top-k miners for one context (uint8 [T]), by the scores after its last byte.

        Raises `NotEnoughAnswers` where there is no miner to ask.
        """
        uids = tuple(uid for uid in self.uids if reachable is None or uid in reachable)
        if not uids:
            raise NotEnoughAnswers("there is no miner to ask")
        with torch.no_grad():
            # A copy: the context may be a read-only view, which torch would warn about.
            scores = self.gate_scores(torch.from_numpy(context.copy()).unsqueeze(0), uids)[0, -1]
        best = scores.argsort(descending=True, stable=True)[: self.config.gate.k].tolist()
        return Route(tuple(uids[at] for at in best), tuple(float(scores[at]) for at in best))

    def mix(self, route: Route, context: Tokens, answers: Mapping[int, object]) -> Mixed:
        """Mix the answers [1, T, 256] to ``context`` (uint8 [T]) of the miners of ``route``.

        As in training, a miner's weight is its gate score and how well it predicted the context so far. Raises
        `NotEnoughAnswers` where no answer is valid.
        """
        read = read_answers(
            {uid: answers[uid] for uid in route.uids if uid in answers},
            route.uids,
            dict.fromkeys(route.uids, np.zeros(1, dtype=np.int64)),
            # The byte after the last is what is asked for; evidence at the last position does not reach it.
            np.append(context[1:], np.uint8(0))[None],
        )
        valid = [at for at, uid in enumerate(route.uids) if uid in read.log_probs]
        if not valid:
            raise NotEnoughAnswers(f"none of the {len(route.uids)} miners asked gave a valid answer")
        with torch.no_grad():
            evidence = self.gate.evidence(read.target_log_probs)[0, -1]
            scores = (torch.tensor(route.scores) + evidence)[valid]
            last = torch.stack([read.log_probs[route.uids[at]][0, -1] for at in valid])
            mixed, weights = mix_distributions(scores, last), scores.softmax(dim=0).tolist()
        refused = {uid: error.code for uid, error in read.invalid.items()}
        return Mixed(mixed.numpy(), {route.uids[at]: w for at, w in zip(valid, weights, strict=True)}, refused)

    def state(self) -> dict[str, Tensor]:
        """Gate, optimizer and scores as tensors to store."""
        stored = {f"gate/{name}": value for name, value in self.gate.state_dict().items()}
        stored |= {f"adam/{name}": value for name, value in self._adam.state().items()}
        scores, counts = self.scores.scores, self.scores.counts
        stored["scores/uids"] = torch.tensor(list(scores), dtype=torch.int64)
        stored["scores/values"] = torch.tensor(list(scores.values()), dtype=torch.float64)
        stored["scores/counts"] = torch.tensor(list(counts.values()), dtype=torch.int64)
        stored["batches_learned"] = torch.tensor(self.batches_learned, dtype=torch.int64)
        return stored

    def restore(self, stored: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave. Raises `CheckpointCorrupt` where it belongs to another configuration, and where
        it is not all finite: no learning would mend that."""
        prefix = "gate/miners."
        try:
            self.gate.set_uids(int(name.removeprefix(prefix)) for name in stored if name.startswith(prefix))
            self.gate.load_state_dict({n.removeprefix("gate/"): v for n, v in stored.items() if n.startswith("gate/")})
            self._adam.restore({n.removeprefix("adam/"): v for n, v in stored.items() if n.startswith("adam/")})
            uids = stored["scores/uids"].tolist()
            self.scores.restore(
                dict(zip(uids, stored["scores/values"].tolist(), strict=True)),
                dict(zip(uids, stored["scores/counts"].tolist(), strict=True)),
            )
            self.batches_learned = int(stored["batches_learned"])
        except (RuntimeError, KeyError, ValueError) as error:  # other names, shapes or lengths
            raise CheckpointCorrupt(f"the stored gate is of another configuration: {error}") from error
        if not all(bool(torch.isfinite(one).all()) for one in stored.values()):
            raise CheckpointCorrupt("the stored gate holds numbers that are not finite")


def _check_locks(locks: Sequence[Lock], length: int) -> None:
    """Raise `ModelRefused` for two locks of one name, and `CorpusUnavailable` where a split has no row so long."""
    names = [lock.name for lock in locks]
    if len(set(names)) < len(names):
        raise ModelRefused(f"two locks are called {max(names, key=names.count)!r}; give each its own name")
    for lock in locks:
        for split in SPLITS:
            lock.draw(split, np.random.default_rng(0), 1, length)
