"""Promises about the mixture and what its miners teach each other: in the running network, or made small."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio

from moed.daemon.exchange import Exchange
from moed.daemon.expert_service import ExpertService
from moed.daemon.runtime import Runtime, RuntimeConfig
from moed.models.corpora import Corpus, excerpt, load_corpus, set_apart
from moed.models.experiments.distillation import Scale as DistillationScale
from moed.models.experiments.distillation import run_distillation
from moed.models.experiments.members import Answering
from moed.models.experiments.specialist import Scale as SpecialistScale
from moed.models.experiments.specialist import niche_pay
from moed.models.experts import ExpertSpec, build_expert
from moed.models.gate import GateConfig
from moed.models.hosting import HostedExpert, open_hosted
from moed.models.plans import ValidatorConfig
from moed.models.study import Study, StudyConfig
from moed.models.training import Trainer, TrainingConfig
from moed.models.validation import ValidatorBrain
from support.counted_experts import CountedExpert
from support.daemons import wait_until
from support.locks import Guesser, Parity, Solver
from support.peering import running, until

if TYPE_CHECKING:
    from .conftest import Network


SMALL = {"embedding": 32, "width": 48, "ngram_order": 3, "ngram_buckets": 2048}
TRAINING = TrainingConfig(rows=16, length=32)
STUDY = StudyConfig(rows=12, check_rows=48)
OWN_BYTES = 12 << 10
STEPS = 100
GATED = ValidatorConfig(
    rows=4, length=64, canary_rows=0, feature_steps=2, feature_rows=16,
    gate=GateConfig(prefix_bytes=24, buckets=512, width=16),
)  # fmt: skip


def held_out_text(domain: str, seed: int, length: int = 120) -> str:
    """Text of a domain that nobody trained on."""
    row = load_corpus(domain).sample("held_out", np.random.default_rng(seed), 1, length)[0]
    text: str = row.tobytes().decode("ascii", "replace")
    return text


# in the running network


def test_b8_coalitions_change_per_input(network: Network) -> None:
    """Texts of four kinds are answered by different pairs of miners, in which the miner of that kind leads."""
    client = network.client("validator-0")
    domains = {row["uid"]: row["domain"] for row in network.rankings["miners"]}
    coalitions, led = set(), 0
    for uid, domain in domains.items():
        for seed in range(3):
            route = client.post("/v1/route", {"text": held_out_text(domain, seed)})
            asked = [one for one in route["experts"] if one["chosen"]]
            assert len(asked) == route["k"] == 2
            assert sum(one["share"] for one in route["experts"]) == pytest.approx(1, abs=1e-3)
            assert all(one["latency_ms"] > 0 for one in asked)
            coalitions.add(frozenset(one["uid"] for one in asked))
            led += max(asked, key=lambda one: one["share"])["uid"] == uid
    assert len(coalitions) >= 2
    assert led >= len(domains) * 3 * 0.7


def test_b10_an_application_is_built_on_a_validator_alone(network: Network) -> None:
    """An application that knows one socket teaches the gate with its own texts, and tells true from shuffled text."""
    client = network.client("validator-1")
    taught = client.post("/v1/teach", {"texts": [held_out_text("html", 7, 1200)], "steps": 2})
    assert taught["rows"] > taught["kept_rows"] > 0
    assert sum(taught["share_after"].values()) == pytest.approx(1, abs=1e-3)
    assert taught["share_after"] != taught["share_before"]

    def bits(text: str) -> float:
        return float(client.post("/v1/route", {"text": text})["mixture_bits"])

    right = 0
    for seed in range(6):
        words = held_out_text("prose", 20 + seed).split(" ")
        shuffled = [words[at] for at in np.random.default_rng(seed).permutation(len(words))]
        right += bits(" ".join(words)) < bits(" ".join(shuffled))
    assert right >= 5


def test_b18_miners_ask_those_who_know_what_they_lack(network: Network) -> None:
    """Every miner of the network has asked others about its own text and knows by how much each would complete it."""

    def exchanges() -> list[dict[str, Any]]:
        rows = [row for name in network.miners for row in network.client(name).get("/v1/experts")]
        return [row["exchange"] for row in rows if "exchange" in row]

    def all_scouted() -> bool:
        return len(exchanges()) == 4 and all(
            sum(one["complement_bits"] is not None for one in exchange["teachers"].values()) >= 3
            for exchange in exchanges()
        )

    wait_until("every miner to have scouted the others", all_scouted)
    for exchange in exchanges():
        assert sum(one["rows_asked"] for one in exchange["teachers"].values()) > 0
        assert len({one["complement_bits"] for one in exchange["teachers"].values()}) > 1


def test_b20_a_specialist_that_is_poor_elsewhere_earns(network: Network) -> None:
    """Each miner is the best at its own kind of text, far worse than another at every other kind, and is paid."""
    losses = network.losses["member_losses"]
    for row in network.rankings["miners"]:
        own = losses[str(row["uid"])]
        best_elsewhere = {
            domain: min(one[domain] for uid, one in losses.items() if uid != str(row["uid"])) for domain in own
        }
        assert own[row["domain"]] < best_elsewhere[row["domain"]]
        others = {one["domain"] for one in network.rankings["miners"]} - {row["domain"]}
        assert all(own[domain] > best_elsewhere[domain] for domain in others)
        assert row["emission"] > 0
        assert row["balance"] > 0


# the same code, made small


def test_b12_validators_set_the_task_and_miners_solve_it_by_any_method() -> None:
    """A task that the protocol has never heard of, plugged in beside text: who counts it out earns the task's worth,
    who has a model of text earns the text's, and one that guesses earns next to nothing."""
    corpus = load_corpus("tables")
    gate = GateConfig(k=2, prefix_bytes=12, buckets=128, width=8)
    config = ValidatorConfig(rows=8, length=32, feature_steps=2, feature_rows=8, gate=gate)
    brain = ValidatorBrain([corpus, Parity()], config, seed=2)
    miners: dict[int, Answering] = {1: Solver(), 2: CountedExpert(corpus, order=2), 3: Guesser()}
    brain.set_miners(miners)
    for _ in range(16):
        plan = brain.plan(probe=True)
        brain.learn(plan, {uid: one.answer(plan.rows_for(uid)) for uid, one in miners.items()})
    weights = brain.weights()
    assert min(weights[1], weights[2]) > 5 * weights[3]
    solved = Parity().draw("held_out", np.random.default_rng(1), 1, 32).tokens[0]
    assert brain.route(solved).uids[0] == 1
    assert brain.route(corpus.sample("held_out", np.random.default_rng(1), 1, 32)[0]).uids[0] == 2


def test_g9_a_small_niche_is_admitted_and_paid_in_proportion() -> None:
    """The more a niche counts in what is asked, the more its only specialist earns, and it always earns."""
    corpora = {name: load_corpus(name) for name in ("tables", "prose")}
    members: dict[str, Answering] = {name: CountedExpert(corpus) for name, corpus in corpora.items()}
    scale = SpecialistScale(domains=tuple(corpora), niche="tables", plans=24, validator=GATED)
    pay = [niche_pay(corpora, members, scale, weight, seed=3) for weight in (0.1, 0.4, 1.0)]
    shares = [row["niche_pay"] for row in pay]
    assert 0 < shares[0] < shares[1] < shares[2]
    for row in pay:
        assert row["niche_pay"] == pytest.approx(row["niche_share_of_stream"], abs=0.25)
        assert row["member_losses"]["tables"]["prose"] > row["member_losses"]["prose"]["prose"]


def test_g6_a_newcomer_starts_from_what_the_network_knows() -> None:
    """From the same first weights and the same little text, the newcomer that asks the mixture is at the lone one's
    best loss in fewer steps, and far below it in the end; a useless teacher has none of the credit."""
    scale = DistillationScale(
        domains=("prose", "tables"), student_domain="prose", teacher_steps=120, student_steps=STEPS,
        own_bytes=OWN_BYTES, plans=24, validator=GATED, options=SMALL, training=TRAINING, study=STUDY,
    )  # fmt: skip
    found = run_distillation(seed=1, say=lambda _text: None, scale=scale)
    students = found["students"]
    assert found["steps_share"]["newcomer"] < 0.9
    assert students["newcomer"]["final"] < students["alone"]["best"] - 0.2
    assert students["exchange"]["teacher"] == "prose"
    assert found["credit_share"]["untrained"] == 0


def trained(domain: str, folder: Path, steps: int) -> HostedExpert:
    spec = ExpertSpec(name=domain, options=dict(SMALL))
    hosted = open_hosted(spec, load_corpus(domain), TRAINING, folder, seed=5)
    for _ in range(steps):
        hosted.train_step()
    return hosted


def student(own: Corpus) -> Study:
    learned, check = set_apart(own, 0.15)
    module = build_expert(ExpertSpec(name="student", options=dict(SMALL)), 9).module
    return Study(Trainer(module, learned, TRAINING, 9), check, STUDY, 9)


def rows_asked(exchange: Exchange) -> int:
    return sum(one["rows_asked"] for one in exchange.work()["teachers"].values())


async def test_b18_a_miner_learns_from_the_peer_that_helps_it(tmp_path: Path) -> None:
    """Over real sessions and within a budget: of two peers the student takes the one that knows its kind of text, says
    what that brought, and ends far below the same student without peers."""
    own = excerpt(load_corpus("prose"), OWN_BYTES)
    hosts = {"prose": trained("prose", tmp_path, 120), "tables": trained("tables", tmp_path, 20)}
    alone, taught = student(own), student(own)
    services = {}
    async with trio.open_nursery() as nursery:
        for name, hosted in hosts.items():
            runtime = Runtime([hosted], RuntimeConfig(training_share=0.0))
            services[name] = ExpertService(runtime, lambda _key: 0.0)
            await nursery.start(runtime.run)
        async with (
            running(1, extra=services["prose"].handlers()) as one,
            running(2, extra=services["tables"].handlers()) as two,
            running(3) as pupil,
        ):
            peers = {
                name: (await pupil.peers.connect(node.address, node.identity.node_id, timeout_s=5), name)
                for name, node in (("prose", one), ("tables", two))
            }
            exchange = Exchange(taught, lambda: peers, rows_per_minute=60_000)
            began_s = time.monotonic()
            nursery.start_soon(exchange.run)
            taught_from = 0
            while not taught_from or taught.steps < taught_from + STEPS:
                assert taught.steps < 6 * STEPS, exchange.work()
                if taught.teacher is not None:  # from here on each step has new answers, however slow the machine is
                    taught_from = taught_from or taught.steps
                    asked = rows_asked(exchange)
                    with trio.move_on_after(1):
                        await until(lambda asked=asked: rows_asked(exchange) > asked)
                await trio.to_thread.run_sync(taught.step)
            minutes = (time.monotonic() - began_s) / 60
            nursery.cancel_scope.cancel()
    for _ in range(taught.steps):
        alone.step()
    work = exchange.work()
    assert work["teacher"] == "prose"
    assert work["teachers"]["prose"]["credit_bits"] > max(0.0, work["teachers"]["tables"]["credit_bits"])
    assert 0 < rows_asked(exchange) <= 60_000 * minutes + 2 * STUDY.rows
    evaluate = partial(Trainer.evaluate, rows=32)
    assert evaluate(taught.trainer) < evaluate(alone.trainer) - 0.1
