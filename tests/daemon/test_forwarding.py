"""The mixture of a node without a gate: validators are asked in order of stake, and none is believed blindly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import trio

from moed.daemon.chain import Chain
from moed.daemon.control.api import ControlRefused
from moed.daemon.discovery import Discovery
from moed.daemon.forwarding import ForwardedMixture
from moed.daemon.network.calls import Call, Handler, Reply
from moed.daemon.network.dht import Dht
from moed.daemon.network.errors import RemoteRefusal
from moed.daemon.network.peers import Peers
from moed.daemon.node import now_ms
from moed.daemon.store import Store
from moed.daemon.validator import Validator
from moed.models.corpora import load_corpus
from moed.models.plans import ValidatorConfig
from moed.models.validation import ValidatorBrain
from moed.protocol.addresses import Address
from support.chains import key, make_genesis

GENESIS = make_genesis((60, 40))
ROWS = np.zeros((2, 5), dtype=np.uint8)


def answering(reply: Reply) -> Handler:
    async def answer(_call: Call) -> Reply:
        return reply

    return answer


@asynccontextmanager
async def sessions_with(handlers: Mapping[int, Mapping[str, Handler]]) -> AsyncIterator[Peers]:
    """A node, ``key(9)``, with a session with each of these keys, which serve these methods."""
    me = Peers(key(9), GENESIS.network_id)
    async with trio.open_nursery() as nursery:
        await nursery.start(me.run, [])
        for number, methods in handlers.items():
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            other = Peers(key(number), GENESIS.network_id, handlers=methods)
            await nursery.start(other.run, listeners)
            address = Address("127.0.0.1", listeners[0].socket.getsockname()[1])
            await me.connect(address, key(number).node_id, timeout_s=5)
        yield me
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def forwarding_to(handlers: Mapping[int, Mapping[str, Handler]], folder: Path) -> AsyncIterator[ForwardedMixture]:
    """The mixture of a node whose validators, ``key(1)`` with more stake than ``key(2)``, serve these methods."""
    with Store(folder / "chain.db", GENESIS) as store:
        async with sessions_with(handlers) as peers:
            yield ForwardedMixture(Chain(store.load_head(), store, key(9), None, now_ms=now_ms), peers)


STRANGE = (
    Reply(None),
    Reply([{"text": 5, "experts": {}}]),
    Reply([{}, {}], [np.zeros((1, 256), np.float32)]),
    Reply([{}], [np.zeros((2, 256), np.float32)]),
    Reply([{}, {}], [np.zeros((2, 256), np.float32)] * 2),
)


@pytest.mark.parametrize("strange", STRANGE, ids=range(len(STRANGE)))
async def test_a_validator_that_answers_nonsense_is_passed_over(strange: Reply, tmp_path: Path) -> None:
    """The next one in order of stake is asked; with nobody else the answer is a refusal and not a bug."""
    liar = {name: answering(strange) for name in ("mixture.complete", "mixture.forward")}
    honest = {
        "mixture.complete": answering(Reply([{"text": "a", "experts": {"2": 1.0}}])),
        "mixture.forward": answering(Reply([{"2": 1.0}] * 2, [np.zeros((2, 256), np.float32)])),
    }
    async with forwarding_to({1: liar, 2: honest}, tmp_path) as mixture:
        pieces = [piece async for piece in mixture.complete(b"x", max_bytes=1, temperature=0.0, seed=None)]
        assert pieces == [{"text": "a", "experts": {"2": 1.0}}]
        log_probs, shares = await mixture.forward(ROWS)
        assert (log_probs.shape, shares) == ((2, 256), [{"2": 1.0}] * 2)
    async with forwarding_to({1: liar}, tmp_path) as mixture:
        with pytest.raises(ControlRefused, match="no validator"):
            await mixture.forward(ROWS)


async def test_rows_of_no_bytes_are_refused(tmp_path: Path) -> None:
    """A peer that asks a validator about nothing gets a refusal, and keeps its session."""
    brain = ValidatorBrain([load_corpus("html")], ValidatorConfig(), seed=1)
    peers = Peers(key(1), GENESIS.network_id)
    discovery = Discovery(Dht(key(1), GENESIS.network_id), peers, key(1).node_id)
    with Store(tmp_path / "chain.db", GENESIS) as store:
        chain = Chain(store.load_head(), store, key(1), None, now_ms=now_ms)
        validator = Validator(chain, peers, discovery, brain, key(1).public_key)
        async with sessions_with({1: validator.handlers()}) as asking:
            (peer,) = asking.connected()
            for method, body in (("mixture.forward", None), ("expert.forward", {"expert": "mixture"})):
                with pytest.raises(RemoteRefusal, match="bad_tensor"):
                    await peer.call(method, body, [np.zeros((1, 0), np.uint8)], deadline_s=5)
