"""Chains that run in one process over real sockets, and peers beside them that lie."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio
import trio.testing

from moed.consensus.params import ChainParams
from moed.daemon.chain import Chain
from moed.daemon.journal import FileJournal
from moed.daemon.network.calls import Call, Handler, Reply
from moed.daemon.network.peers import Peers, Priority
from moed.daemon.node import now_ms
from moed.daemon.signer import Signer
from moed.daemon.store import Store
from moed.protocol.addresses import Address
from moed.protocol.identity import Identity
from support.chains import key, make_genesis

PARAMS = ChainParams(
    block_interval_ms=50, tempo=10, timeout_propose_ms=2_000, timeout_vote_ms=1_000, fee_per_byte=0, min_stake=0
)
GENESIS = make_genesis((60, 40), balances=(1_000, 0), params=PARAMS)
PATIENCE_S = 30.0


class Running:
    """One node's chain and sessions, and where it listens."""

    def __init__(self, chain: Chain, peers: Peers, store: Store, address: Address) -> None:
        self.chain = chain
        self.peers = peers
        self.store = store
        self.address = address

    async def dial(self, other: Running) -> None:
        await self.peers.connect(other.address, None, timeout_s=5)


async def listen() -> tuple[trio.SocketListener, Address]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    return listener, Address("127.0.0.1", listener.socket.getsockname()[1])


def sessions_of(chain: Chain, identity: Identity, handlers: Mapping[str, Handler]) -> Peers:
    """Sessions of a chain, which greet and forget as the daemon's do."""
    return Peers(
        identity,
        chain.head.network_id,
        handlers=handlers,
        on_connected=chain.greet,
        on_disconnected=lambda peer: chain.forget(peer.node_id),
    )


@asynccontextmanager
async def run_chain(
    folder: Path,
    identity: Identity,
    *,
    signs: bool = True,
    serves: Callable[[Mapping[str, Handler]], Mapping[str, Handler]] = dict,
) -> AsyncIterator[Running]:
    """A chain in ``folder`` under ``identity`` with sessions of its own; ``serves`` may change its handlers."""
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240  # a test's own folder in memory or near it
    with Store(folder / "chain.db", GENESIS) as store:
        signer = Signer(identity, GENESIS.network_id, FileJournal(folder / "signed.journal")) if signs else None
        chain = Chain(store.load_head(), store, identity, signer, now_ms=now_ms)
        peers = sessions_of(chain, identity, serves(chain.handlers()))
        listener, address = await listen()
        async with trio.open_nursery() as nursery:
            await nursery.start(chain.run, peers)
            await nursery.start(peers.run, [listener])
            yield Running(chain, peers, store, address)
            nursery.cancel_scope.cancel()


async def ignore(_: Call) -> Reply:
    return Reply(None)


DEAF: dict[str, Handler] = {f"chain.{name}": ignore for name in ("status", "have", "vote", "proposal", "transactions")}


@asynccontextmanager
async def run_liar(handlers: Mapping[str, Handler], number: int = 66) -> AsyncIterator[tuple[Peers, Address]]:
    """A peer with sessions like ours and answers of its own."""
    peers = Peers(key(number), GENESIS.network_id, handlers=handlers)
    listener, address = await listen()
    async with trio.open_nursery() as nursery:
        await nursery.start(peers.run, [listener])
        yield peers, address
        nursery.cancel_scope.cancel()


class Listening:
    """A session that keeps what it is told."""

    def __init__(self) -> None:
        self.node_id = key(66).node_id
        self.told: dict[str, object] = {}
        self.is_done = trio.Event()

    async def notify(self, method: str, body: object = None, *, priority: Priority) -> None:
        self.told[method] = body
        if method == "chain.transactions":
            self.is_done.set()

    async def call(
        self, method: str, body: object = None, *, deadline_s: float, max_answer_bytes: int | None = None
    ) -> Reply:
        raise AssertionError("a greeting asks nothing")

    def drop(self) -> None:
        raise AssertionError("a greeting drops nobody")


class Nobody:
    """No sessions at all."""

    def connected(self) -> list[Listening]:
        return []
