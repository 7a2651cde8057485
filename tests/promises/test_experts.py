"""Promises about what a miner answers, to whom first, and what never leaves it: real sessions and models, no devnet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trio
from trio.testing import MockClock

from moed.consensus.transition import Head
from moed.daemon.expert_service import ExpertService
from moed.daemon.miner import stake_share
from moed.daemon.network.errors import RemoteRefusal
from moed.daemon.network.peers import Peer
from moed.daemon.remote_experts import ExpertClient
from moed.daemon.runtime import Runtime, RuntimeConfig
from moed.models.batching import QueueLimits
from moed.models.corpora import load_corpus
from moed.models.experts import ExpertSpec
from moed.models.gate import GateConfig
from moed.models.hosting import HostedExpert, open_hosted
from moed.models.plans import ValidatorConfig
from moed.models.training import TrainingConfig
from moed.models.validation import ValidatorBrain
from moed.protocol.codec import encode
from moed.protocol.experts import BACKWARD, FORWARD, INFO
from moed.protocol.records import ExpertSummary
from support.chains import key, make_genesis
from support.peering import Running, running

ROWS, LENGTH = 4, 16
MODELS: dict[str, dict[str, Any]] = {
    "gru": {"model": "gru", "options": {"embedding": 8, "width": 8, "ngram_buckets": 64}},
    "transformer": {"model": "transformer", "options": {"width": 16, "layers": 1, "heads": 2, "context_bytes": 64}},
}


def host(folder: Path, name: str) -> HostedExpert:
    spec = ExpertSpec(name=name, max_rows=16, max_length=64, **MODELS[name])
    return open_hosted(spec, load_corpus("tables"), TrainingConfig(rows=2, length=8), folder, seed=3)


@asynccontextmanager
async def miner(number: int, hosted: HostedExpert) -> AsyncIterator[Running]:
    """A node that serves one text model, as a miner does."""
    runtime = Runtime([hosted], RuntimeConfig(training_share=0.0))
    service = ExpertService(runtime, lambda _key: 0.0)
    async with trio.open_nursery() as nursery, running(number, extra=service.handlers()) as node:
        await nursery.start(runtime.run)
        yield node
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def two_miners(folder: Path) -> AsyncIterator[dict[str, Peer]]:
    """Two miners of different architecture, and a caller's session with each."""
    async with (
        miner(1, host(folder, "gru")) as one,
        miner(2, host(folder, "transformer")) as two,
        running(3) as caller,
    ):
        yield {
            "gru": await caller.peers.connect(one.address, one.identity.node_id, timeout_s=5),
            "transformer": await caller.peers.connect(two.address, two.identity.node_id, timeout_s=5),
        }


def client_of(peer: Peer) -> ExpertClient:
    return ExpertClient(lambda _name: [peer])


async def test_b2_different_models_answer_the_same_request(tmp_path: Path) -> None:
    """A recurrent net and a transformer take the same bytes and give the same kind of answer, which mix."""
    tokens = np.frombuffer(b"id,name,price\n1,bolt,0.25\n2,nut,0.10\n3,screw,0.15\n4,washer,0.05\n", np.uint8)
    tokens = tokens[: ROWS * LENGTH].reshape(ROWS, LENGTH)
    answers = {}
    async with two_miners(tmp_path) as peers:
        for name, peer in peers.items():
            answers[name] = (await client_of(peer).forward(name, tokens, deadline_s=10)).rows
    for answer in answers.values():
        assert answer.dtype == np.float32
        assert answer.shape == (ROWS, LENGTH, 256)
        assert np.allclose(np.exp(answer).sum(axis=-1), 1, atol=1e-3)
    assert not np.allclose(answers["gru"], answers["transformer"], atol=1e-2)
    mixed = np.logaddexp(answers["gru"], answers["transformer"]) - np.log(2)
    assert np.allclose(np.exp(mixed).sum(axis=-1), 1, atol=1e-3)


async def test_b4_only_answers_leave_a_miner_and_scores_use_nothing_else(tmp_path: Path) -> None:
    """Whatever a peer asks, no weight and no word of the architecture comes back; a validator scores by answers."""
    gate = GateConfig(k=2, prefix_bytes=8, buckets=256, width=8)
    settings = ValidatorConfig(gate=gate, rows=8, length=32, feature_steps=2, feature_rows=8)
    brain = ValidatorBrain([load_corpus("tables")], settings, seed=5)
    uids = {"gru": 1, "transformer": 2}
    brain.set_miners(set(uids.values()))
    plan = brain.plan(probe=True)
    heard: dict[str, bytes] = {}
    answers: dict[int, object] = {}
    async with two_miners(tmp_path) as peers:
        for name, peer in peers.items():
            reply = await peer.call(FORWARD, {"expert": name}, [plan.rows_for(uids[name])], deadline_s=10)
            answers[uids[name]] = reply.tensors[0]
            info = await peer.call(INFO, {}, deadline_s=10)
            heard[name] = encode(reply.body) + reply.tensors[0].tobytes() + encode(info.body)
            for method in (BACKWARD, "expert.weights", "expert.train", "checkpoint.get", "expert.state"):
                tensors = [plan.rows_for(uids[name])] * (2 if method == BACKWARD else 0)
                with pytest.raises(RemoteRefusal) as caught:
                    await peer.call(method, {"expert": name}, tensors, deadline_s=10)
                heard[name] += str(caught.value).encode()
    for name, data in heard.items():
        module = host(tmp_path, name).expert.module
        for parameter in module.parameters():
            weights = parameter.detach().flatten()[:4].contiguous().view(torch.uint8).numpy().tobytes()
            assert weights not in data
        for word in (b"embedding", b"layers", b"heads", b"width", type(module).__name__.encode()):
            assert word not in data.replace(name.encode(), b"")
    assert set(ExpertSummary.__struct_fields__) == {
        "name", "kind", "domain", "batch_limit", "forwards_per_s", "queue_delay_ms",
    }  # fmt: skip
    report = brain.learn(plan, answers)
    assert not report.invalid
    assert report.loss_bits is not None
    assert set(report.values or {}) == set(uids.values())


async def test_b19_several_validators_are_served_in_order_of_stake(autojump_clock: MockClock, tmp_path: Path) -> None:
    """All ask at once for more than there is time: the device's time goes by stake, the largest is done first, and
    a crowd without any stake holds nobody up and is served in the end."""
    stakes = (60, 30, 10)
    state = Head.at_genesis(make_genesis(stakes)).state
    shares = [stake_share(state, key(number).public_key) for number in (1, 2, 3)]
    assert shares == pytest.approx([0.6, 0.3, 0.1])
    hosted = host(tmp_path, "gru")
    served: list[tuple[float, int]] = []

    async def charged(function: Callable[..., Any], *arguments: Any) -> Any:
        await trio.sleep(1.0)
        return function(*arguments)

    limits = QueueLimits(max_rows_per_caller=4096)
    runtime = Runtime([hosted], RuntimeConfig(training_share=0.0, limits=limits), run_blocking=charged)
    batch = np.zeros((8, LENGTH), np.uint8)  # a batch of the device each

    async def ask(caller: int, share: float) -> None:
        await runtime.forward("gru", batch, caller=b"%d" % caller, stake_share=share, deadline=1e6)
        served.append((trio.current_time(), caller))

    async with trio.open_nursery() as nursery:
        await nursery.start(runtime.run)
        async with trio.open_nursery() as asking:
            for stranger in range(100, 110):
                for _ in range(4):
                    asking.start_soon(ask, stranger, 0.0)
            for number, share in enumerate(shares):
                for _ in range(24):
                    asking.start_soon(ask, number, share)
        nursery.cancel_scope.cancel()
    order = [caller for _, caller in sorted(served)]
    early = [order[:30].count(number) for number in range(3)]
    assert early[0] > early[1] > early[2] > 0
    assert early == pytest.approx([18, 9, 3], abs=2)
    done = [max(place for place, caller in enumerate(order) if caller == number) for number in range(3)]
    assert done == sorted(done)
    assert sum(caller >= 100 for caller in order[: done[0]]) <= 2
    assert len(order) == 3 * 24 + 40
