"""One running node: the nursery tree, ring by ring, and what each ring holds.

What opens first closes last. On a stop the doors close first, requests drain with a deadline, work ends, and the
store closes last. Nothing is caught here: a bug in a service stops the process, and systemd starts it again.
"""

from __future__ import annotations

import errno
import socket as stdlib_socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from moed.consensus.state import read_neuron
from moed.protocol.identity import Identity
from moed.protocol.queries import Contact
from moed.protocol.records import PeerRecord, format_address

from .chain import Chain
from .config import Config
from .control.server import ControlServer
from .discovery import Discovery
from .errors import NodeError, PortTaken
from .home import Home
from .logs import LogRing
from .network.dht import Dht
from .network.peers import Handler, Peer, Peers
from .notify import Notifier
from .signer import Signer
from .store import Store
from .supervise import forever, stop_on_signal
from .views import Mixture, NodeView

logger = structlog.get_logger()

JOIN_TIMEOUT_S = 10.0
"""Longest wait for the DHT before a node counts as up but alone."""
REMEMBER_S = 60.0
MAX_REMEMBERED = 200


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Role:
    """What a role adds to a node: methods for peers, services, a part of the record, a way to the mixture."""

    handlers: Mapping[str, Handler]
    services: Mapping[str, Callable[[], Awaitable[None]]]
    topics: tuple[str, ...]
    describe: Callable[[PeerRecord], PeerRecord]
    mixture: Mixture


class Node:
    """A node under one home. `run` it once; `stop` ends it in order."""

    def __init__(self, config: Config, log_ring: LogRing) -> None:
        self.config = config
        self.home = Home(config.home)
        self._log_ring = log_ring
        self._stopping = trio.Event()
        self._notifier = Notifier()

    def stop(self) -> None:
        """Begin the shutdown; a second call changes nothing."""
        self._stopping.set()

    async def run(self) -> None:
        """Run until `stop` or a signal. Raises a `NodeError` for what the operator must mend."""
        identity = self.home.load_identity()
        genesis = self.home.load_genesis()
        async with trio.open_nursery() as watch, self._open_store(genesis) as store, self._bind() as (listener, udp):
            await watch.start(stop_on_signal, self.stop)
            await self._run_rings(identity, store, listener, udp)
            watch.cancel_scope.cancel()

    async def _run_rings(
        self, identity: Identity, store: Store, listener: trio.SocketListener, udp: trio.socket.SocketType
    ) -> None:
        head = await trio.to_thread.run_sync(store.load_head)
        network_id = head.network_id
        signer = Signer(identity, network_id, self.home.signed)
        chain = Chain(head, store, identity, signer, now_ms=now_ms)
        remembered = [Contact(*row) for row in await trio.to_thread.run_sync(store.remembered_peers)]
        dht = Dht(identity, network_id, remembered=remembered)
        peers = Peers(identity, network_id, on_connected=chain.greet, on_disconnected=self._forget(chain))
        discovery = Discovery(dht, peers, identity.node_id, describe=lambda: describe())
        role = await self._take_role(chain, peers, discovery, identity)
        discovery.enter_topics(role.topics)
        peers.add_handlers({**chain.handlers(), **role.handlers})

        async def describe() -> PeerRecord:
            return role.describe(self._own_record(identity, chain))

        view = NodeView(
            identity=identity,
            role=self.config.node.role,
            chain=chain,
            store=store,
            peers=peers,
            discovery=discovery,
            mixture=role.mixture,
            stop=self.stop,
            describe=lambda: role.describe(self._own_record(identity, chain)),
        )
        control = ControlServer(self.config.socket_path, view, self._log_ring)

        async with trio.open_nursery() as work:  # ends last
            await work.start(dht.run, udp)
            await work.start(partial(chain.run, peers))
            for name, service in role.services.items():
                work.start_soon(forever, name, service)
            work.start_soon(forever, "memory of peers", partial(self._remember, dht, store))
            async with trio.open_nursery() as requests:  # drains, with a deadline
                async with trio.open_nursery() as doors:  # closes first
                    await doors.start(peers.run, [listener])
                    await doors.start(control.run)
                    await self._join(dht)
                    work.start_soon(forever, "discovery", discovery.run)
                    doors.start_soon(forever, "watchdog", self._notifier.feed_watchdog)
                    view.is_ready = True
                    self._notifier.ready(self._status(chain, dht))
                    logger.info("node.ready", node_id=identity.node_id.hex(), height=chain.height)
                    await self._stopping.wait()
                    view.is_ready = False
                    self._notifier.stopping()
                    logger.info("node.stopping")
                    doors.cancel_scope.cancel()
                requests.cancel_scope.deadline = trio.current_time() + self.config.node.grace_s
            await dht.withdraw()
            work.cancel_scope.cancel()
        logger.info("node.stopped", height=chain.height)
