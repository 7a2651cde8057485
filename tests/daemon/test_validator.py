"""A validator between its network and its brain: whose answers count for whom, and who may use the brain when."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import trio

from moed.consensus.params import ChainParams
from moed.consensus.transactions import Register
from moed.consensus.transition import Head
from moed.daemon.asking import EXPERT_KIND
from moed.daemon.chain import Chain
from moed.daemon.discovery import Discovery, Known
from moed.daemon.network.calls import Call, Handler, Reply
from moed.daemon.network.dht import Dht
from moed.daemon.network.peers import Peers
from moed.daemon.node import now_ms
from moed.daemon.store import Store
from moed.daemon.validator import Validator
from moed.models.corpora import load_corpus
from moed.models.plans import Mixed, Route, ValidatorConfig
from moed.models.validation import ValidatorBrain
from moed.protocol.addresses import Address
from moed.protocol.experts import FORWARD
from moed.protocol.records import ExpertSummary, PeerRecord
from support.chains import grow, key, make_genesis, signed
from support.peering import until

GENESIS = make_genesis((100,), balances=(0, 0), params=ChainParams(min_stake=0))
UID = 1
CONFIG = ValidatorConfig(rows=2, length=64, feature_steps=0, canary_rows=0)


def head_with(miner: int) -> Head:
    """A chain where ``key(miner)`` holds the first uid after the validator's."""
    head = Head.at_genesis(GENESIS)
    grow(head, [key(1)], [signed(head, key(miner), Register())])
    return head


def know_nothing(call: Call) -> Reply:
    return Reply(None, [np.full((*call.tensors[0].shape, 256), -np.log(256), np.float16)])


@asynccontextmanager
async def validator_of(
    brain: ValidatorBrain, miners: Mapping[int, Handler], folder: Path
) -> AsyncIterator[tuple[Validator, Chain]]:
    """The validator ``key(1)`` on a chain where ``key(2)`` holds `UID`, with a session with each of these keys."""
    peers = Peers(key(1), GENESIS.network_id)
    discovery = Discovery(Dht(key(1), GENESIS.network_id), peers, key(1).node_id)
    expert = ExpertSummary(
        name="x", kind=EXPERT_KIND, domain="html", batch_limit=64, forwards_per_s=1.0, queue_delay_ms=0.0
    )
    with Store(folder / "chain.db", GENESIS) as store:
        chain = Chain(store.load_head(), store, key(1), None, now_ms=now_ms)
        chain.head = head_with(2)
        async with trio.open_nursery() as nursery:
            await nursery.start(peers.run, [])
            for number, answer in miners.items():
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                other = Peers(key(number), GENESIS.network_id, handlers={FORWARD: answer})
                await nursery.start(other.run, listeners)
                address = Address("127.0.0.1", listeners[0].socket.getsockname()[1])
                await peers.connect(address, key(number).node_id, timeout_s=5)
                record = PeerRecord(owner=key(number).public_key, experts=(expert,))
                discovery._directory[key(number).node_id] = Known(record, 0.0)
            yield Validator(chain, peers, discovery, brain, key(1).public_key), chain
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("is_valid", [True, False])
async def test_what_one_key_answers_does_not_count_for_the_next(is_valid: bool, tmp_path: Path) -> None:
    """The uid changes hands while a plan is out: the newcomer has neither the value nor the silence of who left."""
    asked_old, asked_new, go_on = trio.Event(), trio.Event(), trio.Event()

    async def old(call: Call) -> Reply:
        asked_old.set()
        await go_on.wait()
        return know_nothing(call) if is_valid else Reply(None)

    async def new(_call: Call) -> Reply:
        asked_new.set()
        await trio.sleep_forever()
        raise AssertionError

    brain = ValidatorBrain([load_corpus("html")], CONFIG, seed=1)
    async with validator_of(brain, {2: old, 3: new}, tmp_path) as (validator, chain), trio.open_nursery() as nursery:
        nursery.start_soon(validator.run)
        await asked_old.wait()
        assert brain.uids == (UID,)
        chain.head = head_with(3)
        nursery.start_soon(validator.forward, np.zeros((1, 8), np.uint8))
        await asked_new.wait()
        go_on.set()
        await until(lambda: validator.batches == 1)
        assert brain.uids == (UID,)
        assert brain.scores.counts == {}
        assert brain.promptness.of(UID) == 1
        nursery.cancel_scope.cancel()


async def test_the_brain_has_one_user_at_a_time(tmp_path: Path) -> None:
    """Whoever asks the mixture something waits until nobody learns, for the route and for the mixing."""
    held = []

    class Watched(ValidatorBrain):
        def route(self, context: npt.NDArray[np.uint8], *, reachable: object = None) -> Route:
            held.append(validator._brain_is_free.locked())
            return super().route(context)

        def mix(self, route: Route, context: npt.NDArray[np.uint8], answers: Mapping[int, object]) -> Mixed:
            held.append(validator._brain_is_free.locked())
            return super().mix(route, context, answers)

    async def answer(call: Call) -> Reply:
        return know_nothing(call)

    brain = Watched([load_corpus("html")], CONFIG, seed=1)
    async with validator_of(brain, {2: answer}, tmp_path) as (validator, _):
        _, shares = await validator.forward(np.zeros((1, 8), np.uint8))
    assert shares == [{str(UID): 1.0}]
    assert held == [True, True]
