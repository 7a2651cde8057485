"""The whole loop without a network: four experts, a validator's brain, plans, answers, learning, scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from moed.models.checkpoint import load_checkpoint, save_checkpoint
from moed.models.corpora import Corpus, load_corpus
from moed.models.errors import CheckpointCorrupt, CorpusUnavailable, ModelRefused, NotEnoughAnswers
from moed.models.evaluation import held_out_losses, held_out_plans
from moed.models.gate import GateConfig
from moed.models.generation import Completion, SamplingConfig
from moed.models.plans import ValidatorConfig
from moed.models.validation import ValidatorBrain
from support.counted_experts import CountedExpert, ask, copy_ahead

DOMAINS = ("prose", "python", "tables")
UIDS = (4, 7, 9)
SMALL = ValidatorConfig(
    rows=6, length=64, feature_steps=3, feature_rows=24, gate=GateConfig(prefix_bytes=24, buckets=1024, width=16)
)


@pytest.fixture(scope="module")
def corpora() -> list[Corpus]:
    return [load_corpus(domain) for domain in DOMAINS]


@pytest.fixture(scope="module")
def experts(corpora: list[Corpus]) -> dict[int, CountedExpert]:
    """One for each domain, under the uids in order."""
    return {uid: CountedExpert(corpus) for uid, corpus in zip(UIDS, corpora, strict=True)}


def make_brain(corpora: list[Corpus], seed: int = 1, config: ValidatorConfig = SMALL) -> ValidatorBrain:
    brain = ValidatorBrain(corpora, config, seed)
    brain.set_miners(UIDS)
    return brain


@pytest.fixture(scope="module")
def trained(corpora: list[Corpus], experts: dict[int, CountedExpert]) -> ValidatorBrain:
    brain = make_brain(corpora)
    for _ in range(40):
        plan = brain.plan()
        brain.learn(plan, ask(experts, plan))
    return brain


def test_locks_that_cannot_be_asked_about_are_refused_at_once(corpora: list[Corpus]) -> None:
    """Two of one name could not be told apart in a plan; a row longer than the text would fail in the middle of one."""
    with pytest.raises(ModelRefused, match="two locks are called 'prose'"):
        ValidatorBrain([corpora[0], corpora[1], corpora[0]], SMALL, 1)
    with pytest.raises(CorpusUnavailable, match="16385 bytes in a row"):
        ValidatorBrain(corpora, ValidatorConfig(length=1 << 14), 1)


def test_the_mixture_beats_its_members_and_routes(trained: ValidatorBrain, experts: dict[int, CountedExpert]) -> None:
    """On held-out text, after forty small plans: below the best single and the uniform average, near the oracle, and
    each domain goes mostly to the expert that knows it."""
    plans = held_out_plans(trained, 20)
    report = held_out_losses(trained, [(plan, ask(experts, plan)) for plan in plans])
    assert report.mixture < 0.9 * report.best_single
    assert report.mixture < 0.95 * report.uniform_average
    assert report.mixture < 1.1 * report.oracle
    assert report.oracle <= report.best_single
    assert report.rows == 60
    for domain, uid in zip(DOMAINS, UIDS, strict=True):
        share = report.share[domain]
        assert max(share, key=share.__getitem__) == uid
        assert sum(share.values()) == pytest.approx(1, abs=1e-4)
        assert min(report.member_losses, key=lambda other: report.member_losses[other][domain]) == uid


def test_every_member_earns_and_weights_are_whole(trained: ValidatorBrain) -> None:
    """Each of three specialists adds something; probes came once in four plans."""
    weights = trained.weights()
    assert set(weights) == set(UIDS)
    assert all(isinstance(weight, int) and 0 < weight <= 65_535 for weight in weights.values())
    assert trained.scores.counts == dict.fromkeys(UIDS, 10)


def test_a_miner_that_never_answers_is_worth_nothing(corpora: list[Corpus], experts: dict[int, CountedExpert]) -> None:
    """The mixture goes on with the others, and the silent one's value and weight are zero."""
    brain = make_brain(corpora)
    for _ in range(4):
        plan = brain.plan(probe=True)
        report = brain.learn(plan, {uid: a for uid, a in ask(experts, plan).items() if uid != 7})
        assert report.unanswered == (7,)
        assert report.values is not None
        assert report.values[7] == pytest.approx(0)
        assert report.share[7] == 0
    assert brain.weights()[7] == 0
    assert brain.weights()[4] > 0


def test_invalid_answers_are_named_and_change_nothing_else(
    corpora: list[Corpus], experts: dict[int, CountedExpert]
) -> None:
    """Not a number from one and a wrong shape from another: the third still teaches, and all weights stay finite."""
    brain = make_brain(corpora)
    plan = brain.plan(probe=True)
    answers = ask(experts, plan)
    answers[4] = np.full((6, 64, 256), np.nan, dtype=np.float32)
    answers[9] = np.zeros((1, 2), dtype=np.float32)
    report = brain.learn(plan, answers)
    assert report.invalid == {4: "invalid_answer", 9: "invalid_answer"}
    assert report.unanswered == ()
    assert report.share == {4: 0, 7: 1, 9: 0}
    assert all(bool(torch.isfinite(p).all()) for p in brain.gate.parameters())


def test_answers_of_the_lowest_chances_do_not_end_the_gate(
    corpora: list[Corpus], experts: dict[int, CountedExpert]
) -> None:
    """One byte certain and all others at the end of float32: finite, a distribution, and what a row's bytes add up to
    is not. Everybody's weights, and the one who answered so alone, stay numbers."""
    brain = make_brain(corpora)
    for honest in (UIDS[1:], ()):
        plan = brain.plan(probe=True)
        certain = np.full((len(plan.tokens), SMALL.length, 256), -3e38, dtype=np.float32)
        certain[..., 0] = 0.0
        answers: dict[int, object] = {uid: experts[uid].answer(plan.rows_for(uid)) for uid in honest}
        report = brain.learn(plan, {**answers, UIDS[0]: certain})
        assert report.loss_bits is not None
        assert np.isfinite([report.loss_bits, *report.share.values(), *(report.values or {}).values()]).all()
    assert all(torch.isfinite(one).all() for one in brain.gate.parameters())
    assert np.isfinite(list(brain.scores.scores.values())).all()


def test_no_answer_at_all_is_reported_and_learned_from_nothing(corpora: list[Corpus]) -> None:
    """The gate stays as it was."""
    brain = make_brain(corpora)
    before = {name: value.clone() for name, value in brain.gate.state_dict().items()}
    report = brain.learn(brain.plan(), {})
    assert report.loss_bits is None
    assert report.rows_unanswered == 6
    assert all(torch.equal(value, before[name]) for name, value in brain.gate.state_dict().items())


def test_a_route_plan_asks_two_miners_a_row(corpora: list[Corpus]) -> None:
    """Each row is somebody's twice, only reachable miners are asked, and what is sent is what was assigned."""
    brain = make_brain(corpora)
    plan = brain.plan(probe=False)
    asked = np.concatenate(list(plan.assignment.values()))
    assert sorted(asked.tolist()) == sorted([*range(6)] * 2)
    for uid, rows in plan.assignment.items():
        assert (plan.rows_for(uid) == plan.tokens[rows]).all()
    assert set(brain.plan(probe=False, reachable={7}).assignment) == {7}
    with pytest.raises(NotEnoughAnswers):
        brain.plan(reachable=set())


def test_only_honest_positions_count(corpora: list[Corpus]) -> None:
    """Nothing before the decision point is scored, nothing from a decoy on, and targets are the true next bytes."""
    brain = make_brain(corpora, config=dataclass_with(SMALL, decoy_chance=1.0))
    plan = brain.plan(probe=True)
    assert (plan.decoys >= 24).any()
    for row in range(6):
        end = plan.decoys[row] if plan.decoys[row] >= 0 else 64
        assert np.flatnonzero(plan.scored[row]).tolist() == list(range(23, end))
        true = plan.tokens[row].copy()
        if plan.decoys[row] >= 0:
            true[plan.decoys[row]] = plan.targets[row, plan.decoys[row] - 1]
        assert (true[1:] == plan.targets[row, :-1]).all()


def dataclass_with(config: ValidatorConfig, **changes: float) -> ValidatorConfig:
    fields = {name: getattr(config, name) for name in config.__struct_fields__}
    return ValidatorConfig(**{**fields, **changes})


def test_a_miner_that_copies_the_byte_ahead_ends_with_no_answer(
    corpora: list[Corpus], experts: dict[int, CountedExpert]
) -> None:
    """It would have the lowest loss of all; once the decoys have shown it, it counts as silent."""
    brain = make_brain(corpora, config=dataclass_with(SMALL, decoy_chance=0.5))
    for _ in range(40):
        plan = brain.plan(probe=True)
        answers = ask(experts, plan)
        answers[4] = copy_ahead(plan.rows_for(4), experts[4].answer(plan.rows_for(4)), 0.9)
        report = brain.learn(plan, answers)
    assert report.invalid == {4: "peeked_ahead"}
    assert report.values is not None
    assert report.values[4] == 0


def test_miners_may_leave_while_a_plan_is_out(corpora: list[Corpus], experts: dict[int, CountedExpert]) -> None:
    """Their late answers are ignored, a newcomer is asked next time, and a place that changed hands starts anew."""
    brain = make_brain(corpora)
    plan = brain.plan(probe=True)
    answers = ask(experts, plan)
    brain.set_miners([7, 11])
    report = brain.learn(plan, answers)
    assert set(report.share) == {7}
    assert set(brain.plan(probe=True).assignment) == {7, 11}
    assert set(brain.scores.scores) == {7}
    brain.forget_miner(7)
    assert brain.scores.scores == {}
    assert brain.uids == (7, 11)


def test_a_restart_keeps_what_was_learned(trained: ValidatorBrain, corpora: list[Corpus], tmp_path: Path) -> None:
    """Gate, scores and batches come back from the file; a brain of another size refuses them."""
    save_checkpoint(tmp_path / "gate.ckpt", "gate", trained.state())
    stored = load_checkpoint(tmp_path / "gate.ckpt", "gate").tensors
    again = ValidatorBrain(corpora, SMALL, seed=2)
    again.restore(stored)
    assert again.weights() == trained.weights()
    assert again.batches_learned == trained.batches_learned
    tokens = torch.randint(256, (2, 30), dtype=torch.uint8)
    assert torch.equal(again.gate(tokens), trained.gate(tokens))
    other = ValidatorBrain(corpora[:2], SMALL, seed=2)
    with pytest.raises(CheckpointCorrupt, match="another configuration"):
        other.restore(stored)


def test_a_completion_goes_to_the_expert_of_its_text(
    trained: ValidatorBrain, experts: dict[int, CountedExpert]
) -> None:
    """The prompt's own domain gets most of the weight, the written bytes are the mixture's, and a miner that sends
    nonsense is named and left out."""
    completion = Completion(b"Return the value of the named attribute of the object. The ", SamplingConfig(max_bytes=8))
    while not completion.done:
        context = completion.context()
        route = trained.route(context)
        mixed = trained.mix(route, context, {uid: experts[uid].answer(context[None]) for uid in route.uids})
        assert np.exp(mixed.log_probs).sum() == pytest.approx(1, abs=1e-4)
        completion.step(mixed.log_probs)
    assert max(mixed.weights, key=mixed.weights.__getitem__) == 4
    assert len(completion.written) == 8
    context = completion.context()
    route = trained.route(context)
    answers: dict[int, object] = {uid: experts[uid].answer(context[None]) for uid in route.uids}
    answers[route.uids[0]] = "nonsense"
    left = trained.mix(route, context, answers)
    assert left.refused == {route.uids[0]: "invalid_answer"}
    assert left.weights == {route.uids[1]: 1.0}
    with pytest.raises(NotEnoughAnswers):
        trained.mix(route, context, {})


def test_held_out_compares_everyone_on_the_same_rows(
    trained: ValidatorBrain, experts: dict[int, CountedExpert]
) -> None:
    """A miner that missed some plans takes their rows out for all; one that missed most is no member; too few rows are
    an error and not a number."""
    plans = held_out_plans(trained, 8)
    pairs = [(plan, ask(experts, plan)) for plan in plans]
    del pairs[0][1][4]
    report = held_out_losses(trained, pairs)
    assert report.rows == 24 - 6
    assert set(report.member_losses) == set(UIDS)
    for _, answers in pairs[1:]:
        answers.pop(9)
    assert set(held_out_losses(trained, pairs).member_losses) == {4, 7}
    with pytest.raises(NotEnoughAnswers):
        held_out_losses(trained, [(plan, {}) for plan in plans])
    with pytest.raises(NotEnoughAnswers):
        held_out_losses(trained, [])


def test_members_without_a_row_in_common_are_not_compared_with_each_other(
    trained: ValidatorBrain, experts: dict[int, CountedExpert]
) -> None:
    """Of two that answered a half each, the other one than the first's, one stays out; so does who knows one domain."""
    plans = held_out_plans(trained, 8)
    pairs = [(plan, ask(experts, plan)) for plan in plans]
    for at, (_, answers) in enumerate(pairs):
        answers.pop(4 if at % 2 else 9)
    report = held_out_losses(trained, pairs)
    assert (set(report.member_losses), report.rows) == ({4, 7}, 12)
    for _, answers in pairs:
        answers.pop(7)
        answers.pop(9, None)
    assert set(held_out_losses(trained, pairs).member_losses) == {4}


def test_the_held_out_rows_are_the_same_for_every_validator(corpora: list[Corpus]) -> None:
    """Whatever its seed: so their reports can be compared."""
    one, other = (held_out_plans(make_brain(corpora, seed), 4) for seed in (1, 2))
    assert all((a.tokens == b.tokens).all() for a, b in zip(one, other, strict=True))
    assert [plan.purpose for plan in one] == ["probe"] * len(one)


def test_two_validators_draw_different_private_streams(corpora: list[Corpus]) -> None:
    """A miner that saw one validator's rows cannot know another's."""
    one, other = (make_brain(corpora, seed).plan(probe=True) for seed in (1, 2))
    assert not (one.targets == other.targets).all()
