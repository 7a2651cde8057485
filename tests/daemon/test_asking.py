"""A validator asks miners of any size, and takes no part of an answer for one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import trio

from moed.daemon.asking import MAX_PARTS, Candidate, Panel
from moed.daemon.expert_service import ExpertService
from moed.daemon.network.calls import Call, Reply
from moed.daemon.runtime import Runtime
from moed.models.corpora import load_corpus
from moed.models.experts import ExpertSpec
from moed.models.hosting import HostedExpert, open_hosted
from moed.models.training import TrainingConfig
from moed.protocol.experts import FORWARD
from support.peering import Running, running

TOKENS = np.random.default_rng(3).integers(0, 256, (12, 20), dtype=np.uint8)


def make_expert(folder: Path, max_rows: int) -> HostedExpert:
    spec = ExpertSpec(name="small", options={"embedding": 8, "width": 8, "ngram_buckets": 64}, max_rows=max_rows)
    return open_hosted(
        spec, load_corpus("tables"), TrainingConfig(rows=2, length=8), folder, seed=1, trains_itself=False
    )


@asynccontextmanager
async def panel_of(miner: Running, asker: Running, max_rows: int) -> AsyncIterator[Panel]:
    """A panel whose one miner, uid 7, says that it takes ``max_rows`` at once."""
    await asker.peers.connect(miner.address, miner.identity.node_id, timeout_s=5)
    panel = Panel(None, asker.peers, None, asker.identity.public_key)  # type: ignore[arg-type]  # nobody is looked for
    node_id, key = miner.identity.node_id, miner.identity.public_key
    panel.miners = {7: Candidate(7, node_id, key, "small", max_rows, 0)}
    yield panel


async def test_a_miner_that_takes_few_rows_at_once_answers_them_all(tmp_path: Path) -> None:
    """In parts, put together in their order; asked at once, it would refuse and earn nothing."""
    hosted = make_expert(tmp_path, max_rows=5)
    runtime = Runtime([hosted])
    service = ExpertService(runtime, lambda _key: 1.0)
    async with trio.open_nursery() as nursery, running(1, extra=service.handlers()) as miner, running(2) as asker:
        await nursery.start(runtime.run)
        async with panel_of(miner, asker, 5) as panel:
            heard = await panel.ask({7: TOKENS})
        async with panel_of(miner, asker, 64) as panel:
            at_once = await panel.ask({7: TOKENS})
        nursery.cancel_scope.cancel()
    alone = np.concatenate([hosted.forward(TOKENS[start : start + 5]) for start in (0, 5, 10)])
    assert heard.answers[7].shape == alone.shape
    assert np.allclose(heard.answers[7], alone, atol=0.02)
    assert heard.latency_s[7] is not None
    assert (at_once.answers, at_once.latency_s) == ({}, {7: None})


@pytest.mark.parametrize("fault", ["refuses one", "another shape", "another dtype", "too many rows"])
async def test_a_part_of_an_answer_is_none(fault: str) -> None:
    """Whatever a miner answers to some of the parts, nothing is put together that is no whole."""
    calls = 0

    async def answer(call: Call) -> Reply:
        nonlocal calls
        calls += 1
        rows = np.zeros((*call.tensors[0].shape, 256), np.float16)
        if calls == 2:
            match fault:
                case "refuses one":
                    return Reply(None)
                case "another shape":
                    rows = rows[:, :-1]
                case "another dtype":
                    rows = rows.astype(np.float32)
                case _:
                    rows = np.concatenate([rows, rows[:1]])[:, :, :128]
        return Reply(None, [rows])

    async with running(1, extra={FORWARD: answer}) as miner, running(2) as asker, panel_of(miner, asker, 5) as panel:
        heard = await panel.ask({7: TOKENS})
        assert (heard.answers, heard.latency_s) == ({}, {7: None})
        assert calls == 3
        whole = await panel.ask({7: TOKENS})
        assert whole.answers[7].shape == (12, 20, 256)


async def test_who_takes_one_row_at_once_is_not_asked_without_end() -> None:
    """The parts of one question are bounded, whatever a miner says of itself."""
    shapes = []

    async def answer(call: Call) -> Reply:
        shapes.append(call.tensors[0].shape)
        return Reply(None, [np.zeros((*call.tensors[0].shape, 256), np.float16)])

    async with running(1, extra={FORWARD: answer}) as miner, running(2) as asker, panel_of(miner, asker, 1) as panel:
        await panel.ask({7: np.repeat(TOKENS, 10, axis=0)})
    assert len(shapes) <= MAX_PARTS
    assert sum(rows for rows, _ in shapes) == 120
