"""Bytes by what the peer is: counted on real sessions, sorted by the chain, told to Prometheus."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trio
from prometheus_client import CollectorRegistry

from moed.consensus.params import DEVNET
from moed.consensus.transactions import Register
from moed.daemon.config import load_config, write_default
from moed.daemon.control.answers import StatusAnswer
from moed.daemon.control.metrics import ControlMetrics
from moed.daemon.limits_watch import LimitsWatch
from moed.daemon.network.peers import Peers
from moed.daemon.network.traffic import PeerClass
from moed.daemon.views import peer_class
from support.chains import key
from support.ledgers import Ledger
from support.peering import Running, running, until

SLACK_BYTES = 4_096
"""Handshake, heads and pings."""
STATUS = StatusAnswer(
    node_id="00", network="00", version="0", role="validator", uid=0, height=0, best_known_height=0, heights_heard=0,
    state_root="00", peers=0, uptime_s=0.0, ready=True, synced=True,
)  # fmt: skip


@pytest.fixture
def ledger() -> Ledger:
    """``key(1)`` is a validator, ``key(2)`` a miner, ``key(3)`` neither."""
    ledger = Ledger([100], [10, 10], DEVNET)
    ledger.send(2, Register())
    return ledger


def count(peers: Peers) -> dict[PeerClass, tuple[int, int]]:
    return {one: (moved.sent, moved.received) for one, moved in peers.traffic().items()}


async def ask(asker: Running, hub: Running, size: int) -> None:
    """``size`` bytes there and back."""
    peer = await asker.peers.connect(hub.address, hub.identity.node_id, timeout_s=10)
    reply = await peer.call("echo", None, [np.frombuffer(random.Random(size).randbytes(size), np.uint8)], deadline_s=30)
    assert reply.tensors[0].size == size


async def test_bytes_are_counted_by_what_the_chain_says_of_the_peer(ledger: Ledger, tmp_path: Path) -> None:
    """Both ends count the same; a new class counts from there on; whoever left stays counted; so do strangers."""
    sizes = {1: 50_000, 2: 200_000, 3: 800_000}
    async with running(9, classify=lambda one: peer_class(ledger.state, one)) as hub:
        async with (
            running(1, identity=key(1)) as validator,
            running(2, identity=key(2)) as miner,
            running(3, identity=key(3)) as other,
        ):
            for number, asker in ((1, validator), (2, miner), (3, other)):
                await ask(asker, hub, sizes[number])
            found = count(hub.peers)
            for asker, one, size in (
                (validator, PeerClass.VALIDATOR, sizes[1]),
                (miner, PeerClass.MINER, sizes[2]),
                (other, PeerClass.OTHER, sizes[3]),
            ):
                assert all(size < moved < size + SLACK_BYTES for moved in found[one]), (one, found)
                sent, received = count(asker.peers)[PeerClass.OTHER]
                await until(partial(_is_counted, hub.peers, one, received, sent))

            ledger.send(3, Register())
            await ask(other, hub, sizes[1])
            after = count(hub.peers)
            assert after[PeerClass.OTHER] == found[PeerClass.OTHER]
            assert after[PeerClass.MINER][1] - found[PeerClass.MINER][1] > sizes[1]
        await until(lambda: not hub.peers.connected())

        async with await trio.open_tcp_stream("127.0.0.1", hub.address.port) as stranger:
            await stranger.send_all(b"\xff" * 1_000)
        await until(lambda: count(hub.peers)[PeerClass.OTHER][1] > found[PeerClass.OTHER][1])

        last = count(hub.peers)
        assert last[PeerClass.MINER] >= after[PeerClass.MINER]
        write_default(tmp_path / "config.toml")
        watch = LimitsWatch(partial(load_config, tmp_path, environ={}), traffic=hub.peers.traffic)
        assert watch.resources()["network"]["received_bytes"] == sum(received for _, received in last.values())
        metrics = ControlMetrics(CollectorRegistry())
        for _ in range(2):
            metrics.take(STATUS, watch.resources(), {})
        for one, moved in last.items():
            for direction, total in zip(("sent", "received"), moved, strict=True):
                assert metrics.registry.get_sample_value(
                    "moed_peer_bytes_total", {"class": one.value, "direction": direction}
                ) == float(total)


def _is_counted(peers: Peers, one: PeerClass, sent: int, received: int) -> bool:
    return count(peers)[one] == (sent, received)
