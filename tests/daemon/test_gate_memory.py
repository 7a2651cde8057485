"""A validator's memory of its miners: on disk now and then and at the end, and taken back for those still there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from moed.consensus.params import ChainParams
from moed.consensus.transactions import Register
from moed.daemon.asking import Panel
from moed.daemon.chain import Chain
from moed.daemon.discovery import Discovery
from moed.daemon.gate_memory import SAVE_EVERY_S, GateMemory, remember
from moed.daemon.network.dht import Dht
from moed.daemon.network.peers import Peers
from moed.daemon.node import now_ms
from moed.daemon.store import Store
from moed.models.corpora import load_corpus
from moed.models.gate_file import open_brain
from moed.models.plans import ValidatorConfig
from moed.models.validation import ValidatorBrain
from support.chains import key, make_genesis, sign_commit, signed

GENESIS = make_genesis((100,), balances=(0,), params=ChainParams(min_stake=0))


async def inline(function: Callable[..., Any], *args: Any) -> Any:
    await trio.lowlevel.checkpoint()
    return function(*args)


@pytest.fixture
def brain() -> ValidatorBrain:
    """It has learned of two miners."""
    made = ValidatorBrain([load_corpus("html")], ValidatorConfig(), seed=1)
    made.set_miners([1, 2])
    made.scores.restore({1: 0.5, 2: 2.0}, {1: 9, 2: 9})
    return made


@pytest.fixture
def panel() -> Panel:
    peers = Peers(key(1), GENESIS.network_id)
    discovery = Discovery(Dht(key(1), GENESIS.network_id), peers, key(1).node_id)
    return Panel(None, peers, discovery, key(1).public_key)  # type: ignore[arg-type]  # nobody is asked here


def test_places_that_changed_hands_are_not_remembered(tmp_path: Path, brain: ValidatorBrain, panel: Panel) -> None:
    """Uid 1 is held by the key that it had; uid 2 by another one now, whose scores begin anew."""
    with Store(tmp_path / "chain.db", GENESIS) as store:
        head = store.load_head()
        transactions = [signed(head, key(number), Register()) for number in (2, 3)]
        block, refused = head.build(transactions, proposer=key(1).public_key, now_ms=head.time_ms + 1_000)
        assert refused == []
        store.append(head.execute(block), sign_commit(GENESIS, block, [key(1)]))
        chain = Chain(store.load_head(), store, key(1), None, now_ms=now_ms)
        remember(brain, panel, chain, {1: key(2).public_key, 2: key(9).public_key})
    assert {uid: one.public_key for uid, one in panel.miners.items()} == {1: key(2).public_key}
    assert brain.uids == (1,)
    assert brain.scores.scores == {1: 0.5}


async def test_it_is_saved_now_and_then_and_at_the_end(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, brain: ValidatorBrain, panel: Panel
) -> None:
    """Each time that something was learned; a disk that takes nothing costs the file and not the service."""
    path, blocked = tmp_path / "gate.ckpt", tmp_path / "gate.ckpt.tmp"
    memory = GateMemory(path, brain, panel, trio.Lock(), inline)

    def stored() -> int:
        return open_brain(path, brain.locks, brain.config, seed=2).brain.batches_learned

    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(memory.run)
            await trio.sleep(1.5 * SAVE_EVERY_S)
            assert not path.exists()
            brain.batches_learned = 3
            await trio.sleep(SAVE_EVERY_S)
            assert stored() == 3
            blocked.mkdir()
            brain.batches_learned = 4
            await trio.sleep(SAVE_EVERY_S)
            assert stored() == 3
            blocked.rmdir()
            brain.batches_learned = 5
            nursery.cancel_scope.cancel()
    assert stored() == 5
    assert [one["event"] for one in logs] == ["validator.saved", "validator.save_failed", "validator.saved"]
