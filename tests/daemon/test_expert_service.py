"""Experts over real sessions: what fits is answered, what does not is refused before it costs anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moed.daemon.gradient_budget import BackwardBudget
from moed.daemon.network.errors import RemoteRefusal
from moed.daemon.network.peers import Peer
from moed.daemon.remote_experts import ExpertClient
from moed.models.errors import NoBackward
from moed.protocol.experts import BACKWARD, FORWARD, INFO
from support.layers import WIDTH, make_layer, serving
from support.peering import Running, running

ROWS = np.random.default_rng(2).standard_normal((6, WIDTH), dtype=np.float32)


async def join(caller: Running, server: Running) -> Peer:
    return await caller.peers.connect(server.address, server.identity.node_id, timeout_s=5)


async def test_forward_backward_and_info(tmp_path: Path) -> None:
    """The answers are the layer's own, the load comes along, and info tells what fits."""
    alone = make_layer(tmp_path / "a", "ffn")
    async with serving(1, make_layer(tmp_path / "b", "ffn")) as server, running(2) as caller:
        peer = await join(caller, server)
        client = ExpertClient(lambda _name: [peer])
        answer = await client.forward("ffn", ROWS, deadline_s=5)
        assert np.allclose(answer.rows, alone.forward(ROWS), atol=1e-6)
        assert answer.load.queue_delay_ms >= 0
        gradients = (await client.backward("ffn", ROWS, ROWS, deadline_s=5)).rows
        assert np.allclose(gradients, alone.backward(ROWS, ROWS), atol=1e-6)
        assert np.allclose((await client.forward("ffn", ROWS, deadline_s=5)).rows, alone.forward(ROWS), atol=1e-5)
        (info,) = (await client.info(peer, deadline_s=5)).experts
        assert (info.name, info.kind, info.has_backward) == ("ffn", "hidden", True)
        assert info.takes.misfit("f32", ROWS.shape) is None
        assert info.forwards_per_s > 0
        assert server.peers.counters.bugs == 0


@pytest.mark.parametrize(
    ("method", "tensors", "code"),
    [
        (FORWARD, [ROWS[:, :-1]], "malformed"),
        (FORWARD, [ROWS.astype(np.float64)], "malformed"),
        (FORWARD, [np.zeros((65, WIDTH), np.float32)], "malformed"),
        (FORWARD, [ROWS[0]], "malformed"),
        (FORWARD, [], "malformed"),
        (FORWARD, [ROWS, ROWS], "malformed"),
        (BACKWARD, [ROWS], "malformed"),
        (BACKWARD, [ROWS, ROWS[:3]], "malformed"),
        (BACKWARD, [ROWS, np.full_like(ROWS, np.nan)], "shape_mismatch"),
        (BACKWARD, [np.full_like(ROWS, np.nan), ROWS], "shape_mismatch"),
    ],
)
async def test_a_batch_that_does_not_fit_is_refused(
    tmp_path: Path, method: str, tensors: list[np.ndarray], code: str
) -> None:
    """By number, dtype, shape, size or content, with a typed refusal; the session goes on."""
    async with serving(1, make_layer(tmp_path, "ffn")) as server, running(2) as caller:
        peer = await join(caller, server)
        with pytest.raises(RemoteRefusal) as caught:
            await peer.call(method, {"expert": "ffn"}, tensors, deadline_s=5)
        assert caught.value.code == code
        assert (await peer.call(FORWARD, {"expert": "ffn"}, [ROWS], deadline_s=5)).tensors[0].shape == ROWS.shape
        for wrong in ({"expert": "other"}, {"name": "ffn"}, None):
            with pytest.raises(RemoteRefusal):
                await peer.call(method, wrong, [ROWS], deadline_s=5)
        with pytest.raises(RemoteRefusal):
            await peer.call(INFO, {"expert": "other"}, deadline_s=5)
        assert server.peers.counters.protocol_errors == server.peers.counters.bugs == 0


async def test_a_large_misfit_is_refused_before_there_is_memory_for_it(tmp_path: Path) -> None:
    """32 MiB that no expert here takes: refused by the first bytes, nothing allocated, the session goes on."""
    huge = np.zeros((1 << 20, WIDTH), np.float32)
    async with serving(1, make_layer(tmp_path, "ffn")) as server, running(2) as caller:
        peer = await join(caller, server)
        for expert in ("ffn", "other"):
            with pytest.raises(RemoteRefusal) as caught:
                await peer.call(FORWARD, {"expert": expert}, [huge], deadline_s=5)
            assert caught.value.code == "unfit"
        assert server.peers._pool.kept_bytes == 0
        assert server.peers._budget.used_bytes == 0
        assert (await peer.call(FORWARD, {"expert": "ffn"}, [ROWS], deadline_s=5)).tensors[0].shape == ROWS.shape


async def test_strangers_get_no_gradients_unless_their_owner_says_so(tmp_path: Path) -> None:
    """By default only callers with stake do; with a share, strangers do until it is used up."""
    async with running(2) as caller:
        key = caller.identity.public_key
        async with serving(1, make_layer(tmp_path, "ffn"), shares={}) as closed:
            with pytest.raises(RemoteRefusal) as caught:
                await (await join(caller, closed)).call(BACKWARD, {"expert": "ffn"}, [ROWS, ROWS], deadline_s=5)
            assert caught.value.code == "no_backward"
        async with serving(3, make_layer(tmp_path, "ffn"), shares={key: 0.3}) as staked:
            await (await join(caller, staked)).call(BACKWARD, {"expert": "ffn"}, [ROWS, ROWS], deadline_s=5)
        budget = BackwardBudget(stranger_share=0.5)
        async with serving(4, make_layer(tmp_path, "ffn"), shares={}, budget=budget) as opened:
            await (await join(caller, opened)).call(BACKWARD, {"expert": "ffn"}, [ROWS, ROWS], deadline_s=5)


def test_the_budget_of_strangers_fills_with_time() -> None:
    """A tenth of the time: after 2 s of work at once, the next pass waits for what it earned."""
    budget = BackwardBudget(stranger_share=0.1, burst_s=2.0)
    budget.check(b"a", 0.0, 100.0)
    budget.charge(b"a", 0.0, 2.5)
    with pytest.raises(NoBackward):
        budget.check(b"b", 0.0, 104.9)
    budget.check(b"c", 0.5, 104.9)
    budget.charge(b"c", 0.5, 99.0)
    budget.check(b"b", 0.0, 105.1)


def test_each_caller_has_a_budget_of_its_own() -> None:
    """One with stake that has used up its share waits; another one does not."""
    budget = BackwardBudget(caller_share=0.5, burst_s=1.0)
    budget.check(b"a", 0.4, 10.0)
    budget.charge(b"a", 0.4, 3.0)
    budget.check(b"b", 0.4, 10.0)
    with pytest.raises(NoBackward, match="this caller"):
        budget.check(b"a", 0.4, 13.9)
    budget.check(b"a", 0.4, 14.1)


async def test_an_expert_without_gradients_says_so(tmp_path: Path) -> None:
    """A text expert learns from its own text, and has none to give."""
    from moed.daemon.runtime import Runtime
    from moed.models.corpora import load_corpus
    from moed.models.experts import ExpertSpec
    from moed.models.hosting import open_hosted
    from moed.models.training import TrainingConfig

    spec = ExpertSpec(name="t", options={"embedding": 8, "width": 8, "ngram_buckets": 64}, max_rows=8)
    hosted = open_hosted(spec, load_corpus("tables"), TrainingConfig(rows=2, length=8), tmp_path, seed=1)
    tokens = np.zeros((2, 8), np.uint8)
    with pytest.raises(NoBackward):
        await Runtime([hosted]).backward("t", tokens, tokens, caller=b"", stake_share=1.0, deadline=1e9)
