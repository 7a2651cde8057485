"""The promise of special networks: what the genesis does not name, no node of the network does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import trio

from moed.consensus.genesis import Genesis, Workload, decode_genesis, encode_genesis
from moed.daemon.expert_service import ExpertService
from moed.daemon.home import Home, initialise, workloads_of
from moed.daemon.network.errors import CallError, RemoteRefusal
from moed.daemon.network.peers import Peer
from moed.daemon.runtime import Runtime
from moed.daemon.workloads import REFUSAL, admitted
from moed.protocol.experts import BACKWARD, FORWARD, INFO
from support.layers import WIDTH, make_layer
from support.peering import running

ROWS = np.random.default_rng(2).standard_normal((4, WIDTH), dtype=np.float32)


def special_genesis(folder: Path, *names: str) -> Genesis:
    """The genesis that `moed init --workload …` makes, read back from its file."""
    home = Home(folder / "-".join(names))
    initialise(home.folder, role="miner", workloads=workloads_of(names))
    return home.load_genesis()


@asynccontextmanager
async def session(folder: Path, genesis: Genesis) -> AsyncIterator[Peer]:
    """A miner of that network with a real layer, which answers and gives gradients, and a caller's session with it."""
    runtime = Runtime([make_layer(folder, "ffn")])
    handlers = admitted(ExpertService(runtime, lambda _key: 1.0).handlers(), genesis.workloads)
    async with (
        trio.open_nursery() as nursery,
        running(1, network_id=genesis.network_id, extra=handlers) as miner,
        running(2, network_id=genesis.network_id) as caller,
    ):
        await nursery.start(runtime.run)
        yield await caller.peers.connect(miner.address, miner.identity.node_id, timeout_s=5)
        nursery.cancel_scope.cancel()


async def asked(peer: Peer, method: str) -> str:
    """``answered``, or the code of the refusal."""
    tensors = {FORWARD: [ROWS], BACKWARD: [ROWS, ROWS]}.get(method, [])
    body = {} if method == INFO else {"expert": "ffn"}
    try:
        await peer.call(method, body, tensors, deadline_s=20)
    except RemoteRefusal as refusal:
        return refusal.code
    return "answered"


@pytest.mark.parametrize(
    ("names", "forward", "backward"),
    [
        (("inference",), "answered", REFUSAL),
        (("training",), REFUSAL, "answered"),
        (("pre-processing",), REFUSAL, REFUSAL),
        (("training", "inference"), "answered", "answered"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else str(value),
)
async def test_r1_a_network_serves_the_workload_of_its_genesis_only(
    names: tuple[Workload, ...], forward: str, backward: str, tmp_path: Path
) -> None:
    """The same miner, with the same model: what it answers is what the network's genesis names, and nothing else."""
    genesis = special_genesis(tmp_path, *names)
    async with session(tmp_path, genesis) as peer:
        assert await asked(peer, INFO) == "answered"
        assert (await asked(peer, FORWARD), await asked(peer, BACKWARD)) == (forward, backward)


async def test_r1_a_genesis_with_another_purpose_is_another_network(tmp_path: Path) -> None:
    """The purpose is part of the network's id: a node that would do more has no session with those that would not."""
    genesis = special_genesis(tmp_path, "inference")
    wider = msgspec.structs.replace(genesis, workloads=("training", "inference"))
    assert decode_genesis(encode_genesis(wider)).network_id != genesis.network_id
    async with running(1, network_id=genesis.network_id) as one, running(2, network_id=wider.network_id) as two:
        with pytest.raises(CallError):
            await two.peers.connect(one.address, one.identity.node_id, timeout_s=5)
