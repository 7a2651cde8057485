"""One running node: the nursery tree, ring by ring, and what each ring holds.

What opens first closes last. On a stop the doors close first, requests drain with a deadline, work ends, and the
store closes last. Nothing is caught here: a bug in a service stops the process, and systemd starts it again.
"""

from __future__ import annotations

import errno
import gc
import resource
import socket as stdlib_socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
import trio

from moed.consensus.state import read_account
from moed.protocol.addresses import Address
from moed.protocol.identity import Identity, NodeId
from moed.protocol.queries import Contact
from moed.protocol.records import PeerRecord

from .chain import Chain
from .config import Config
from .control.server import ControlServer
from .desk import OperatorDesk
from .dht_view import DhtView
from .discovery import Discovery
from .errors import ConfigError, NodeError, PortTaken, TooFewFiles
from .findings import check_files
from .home import Home
from .journal import FileJournal
from .key_rotation import finish_rotation, wait_for_turn
from .keystore import hold_identity
from .limits_watch import LimitsWatch
from .logs import Logs, configure_logging
from .network.bandwidth import Bandwidth
from .network.dht import Dht
from .network.peers import Peers
from .network.reach import Reach
from .notify import Notifier
from .receipts import ReceiptBook
from .roles import Role, Surroundings, take_role
from .settings import Settings
from .signer import Signer
from .snapshot_shelf import Shelf
from .snapshot_sync import SnapshotSync
from .step_sync import checkpoint_of
from .store import Store
from .supervise import forever, heed_signals
from .views import NodeView, peer_class
from .workloads import admitted

logger = structlog.get_logger()

BACKLOG = 256
REMEMBER_FIRST_S = 3.0
REMEMBER_S = 60.0
MAX_REMEMBERED = 200


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def run_node(config: Config, overrides: Mapping[str, Any] | None = None) -> None:
    """Run the node of a home until it is told to stop; ``overrides`` are the flags that ``config`` was read with.

    Raises a `NodeError` for what the operator must mend.
    """
    logs = configure_logging(config.log.level, config.log.format)
    try:
        _run(config, overrides, logs)
    except NodeError as error:
        logger.critical("node.failed", code=error.code, reason=error.message, remedy=error.remedy)
        raise


def _run(config: Config, overrides: Mapping[str, Any] | None, logs: Logs) -> None:
    _open_enough_files()
    is_over = False
    while not is_over:
        # The key's lock makes one daemon of one home, so nothing below has to ask whether it is alone.
        with hold_identity(Home(config.home).key) as identity:
            node = Node(Settings(config, overrides), identity, logs)
            try:
                trio.run(node.run)
            except* NodeError as group:
                raise _first(group) from None
            is_over = not node.gives_way
        if not is_over:
            logger.info("key.replaced", key=finish_rotation(config.home).hex())


def _open_enough_files() -> None:
    """Take as many descriptors as the system gives: each session needs one. Raises `TooFewFiles`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for finding in check_files():
        raise TooFewFiles(finding.cause, finding.remedy)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _first(group: BaseExceptionGroup[NodeError]) -> NodeError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the rings run."""

    chain: Chain
    store: Store
    dht: Dht
    peers: Peers
    reach: Reach
    receipts: ReceiptBook
    discovery: Discovery
    role: Role
    view: NodeView
    watch: LimitsWatch
    control: ControlServer


class Node:
    """A node of one home. `run` it once; `stop` ends it in order."""

    def __init__(self, settings: Settings, identity: Identity, logs: Logs) -> None:
        self.settings = settings
        self.config = settings.config  # as it was at the start; what is live is asked of the settings
        self._identity = identity
        self._home = Home(self.config.home)
        self._logs = logs
        self._stopping = trio.Event()
        self.gives_way = False
        """Whether it stopped for a node with the next key."""
        self._notifier = Notifier()
        self._standing = ""

    def stop(self) -> None:
        """Begin the shutdown; a second call changes nothing."""
        self._stopping.set()

    def reload(self) -> None:
        """Read the configuration again; one that is wrong is logged and changes nothing."""
        self._notifier.reloading()
        try:
            self.settings.reload()
        except ConfigError as error:
            logger.warning("config.refused", reason=str(error))
        finally:
            self._notifier.ready(self._standing)

    async def run(self) -> None:
        """Run until `stop` or a signal. Raises a `NodeError` for what the operator must mend."""
        logger.info("node.starting", home=str(self.config.home), role=self.config.node.role)
        genesis = self._home.load_genesis()
        with Store(self._home.database, genesis) as store, self._bind() as (listener, udp):
            async with trio.open_nursery() as signals:
                await signals.start(heed_signals, self.stop, self.reload)
                chain = self._open_chain(store)
                await self._run_rings(self._assemble(chain, store), listener, udp)
                signals.cancel_scope.cancel()
        logger.info("node.stopped", height=chain.height)

    def _open_chain(self, store: Store) -> Chain:
        head = store.load_head()
        signer = Signer(self._identity, head.network_id, FileJournal(self._home.signed))
        checkpoint = checkpoint_of(self.config.chain.checkpoint, head.params)
        begins_late = self.config.chain.sync == "snapshot"
        return Chain(
            head,
            store,
            self._identity,
            signer,
            now_ms=now_ms,
            shelf=Shelf(store, self._home.snapshots),
            snapshots=SnapshotSync(store, self._home.incoming, checkpoint=checkpoint) if begins_late else None,
            checkpoint=checkpoint,
        )

    def _assemble(self, chain: Chain, store: Store) -> _Parts:
        """Build what the rings run; a role that computes loads and measures its models here, which takes seconds."""
        network_id = chain.head.network_id
        remembered = [
            Contact(NodeId(node_id), host, port, float(seen)) for node_id, host, port, seen in store.remembered_peers()
        ]
        receipts = ReceiptBook(self._identity, network_id, store.keep_receipts, now_ms=now_ms)
        dht = Dht(
            self._identity,
            network_id,
            remembered=remembered,
            is_registered=lambda key: read_account(chain.head.state, key).uid is not None,
        )
        peers = Peers(
            self._identity,
            network_id,
            handlers=chain.handlers(),
            on_connected=chain.greet,
            on_disconnected=lambda peer: chain.forget(peer.node_id),
            receipts=receipts,
            classify=lambda key: peer_class(chain.head.state, key),
        )
        reach = self._reach = Reach(dht, peers, self._identity.node_id, network_id, self.config.node.port)
        peers.add_handlers(reach.handlers)
        discovery = Discovery(dht, peers, self._identity.node_id)
        role = take_role(Surroundings(self.config, self._identity, chain, peers, discovery))
        gc.freeze()  # what was imported lives as long as the process; collections need not look at it again
        gc.enable()
        peers.add_handlers(admitted(role.handlers, chain.head.genesis.workloads))
        peers.add_handlers(receipts.handlers())
        describe = partial(self._describe, chain, role)
        view = NodeView(
            identity=self._identity,
            role=self.config.node.role,
            chain=chain,
            store=store,
            peers=peers,
            discovery=discovery,
            mixture=role.mixture,
            stop=self.stop,
            describe=describe,
            dht=DhtView(dht, peers, reach, describe),
            work=role.work,
            has_bootstrap=bool(self.config.node.bootstrap),
        )
        discovery.describe = view.describe
        discovery.topics = role.topics
        watch = LimitsWatch(
            lambda: self.settings.config,
            traffic=peers.traffic,
        )
        self._heed_settings(peers.bandwidth)
        desk = OperatorDesk(self.settings, self._home.database, watch.resources)
        control = ControlServer(self.config.socket_path, view, desk, self._logs)
        return _Parts(chain, store, dht, peers, reach, receipts, discovery, role, view, watch, control)

    async def _run_rings(self, parts: _Parts, listener: trio.SocketListener, udp: trio.socket.SocketType) -> None:
        chain, dht = parts.chain, parts.dht
        async with trio.open_nursery() as work:  # ends last
            await work.start(dht.run, udp)
            await work.start(chain.run, parts.peers)
            work.start_soon(self._heed_rotation, chain)
            work.start_soon(forever, "memory of peers", partial(_remember, dht, parts.store))
            work.start_soon(forever, "receipts", parts.receipts.run)
            work.start_soon(forever, "limits", parts.watch.run)
            async with trio.open_nursery() as requests:  # drains, with a deadline
                async with trio.open_nursery() as doors:  # closes first
                    await doors.start(parts.control.run, requests)
                    await work.start(parts.peers.run, [listener])
                    for name, service in parts.role.services.items():
                        work.start_soon(forever, name, service)
                    await self._join(dht)
                    work.start_soon(forever, "discovery", parts.discovery.run)
                    work.start_soon(forever, "reach", parts.reach.run)
                    doors.start_soon(forever, "watchdog", self._notifier.feed_watchdog)
                    if not self._stopping.is_set():
                        parts.view.is_ready = True
                        self._standing = f"{len(dht.contacts())} contacts, height {chain.height}"
                        self._notifier.ready(self._standing)
                        logger.info("node.ready", node_id=self._identity.node_id.hex(), height=chain.height)
                    await self._stopping.wait()
                    parts.view.is_ready = False
                    (self._notifier.reloading if self.gives_way else self._notifier.stopping)()
                    logger.info("node.stopping")
                    doors.cancel_scope.cancel()
                requests.cancel_scope.deadline = trio.current_time() + self.settings.config.node.grace_s
                requests.start_soon(dht.withdraw)
            work.cancel_scope.cancel()

    async def _heed_rotation(self, chain: Chain) -> None:
        """Stop when the next key has the uid and the present one no seat any more: a node with that key follows."""
        await wait_for_turn(self.config.home, self._identity.public_key, chain)
        self.gives_way = not self._stopping.is_set()
        self.stop()

    def _heed_settings(self, bandwidth: Bandwidth) -> None:
        """Let the live settings count, now and whenever they change."""

        def heed(config: Config) -> None:
            self._logs.set_level(config.log.level)
            for direction, kib in (
                (bandwidth.sent, config.limits.upload_kib_per_s),
                (bandwidth.received, config.limits.download_kib_per_s),
            ):
                direction.bytes_per_s = None if kib is None else kib * 1024.0

        heed(self.settings.config)
        self.settings.on_change.append(heed)

    async def _join(self, dht: Dht) -> None:
        """Enter the network, for which nobody who says stop has to wait."""

        async def give_up(scope: trio.CancelScope) -> None:
            await self._stopping.wait()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up, nursery.cancel_scope)
            await dht.join(self.config.bootstrap)
            nursery.cancel_scope.cancel()

    def _describe(self, chain: Chain, role: Role) -> PeerRecord:
        """Our record as it is now."""
        roles: list[str] = [self.config.node.role]
        if chain.is_validator:
            roles.append("signer")
        record = PeerRecord(
            owner=self._identity.public_key,
            addresses=tuple(str(one) for one in self._addresses()),
            roles=tuple(roles),
            is_client=self._reach.is_client,
        )
        return role.describe(record)

    def _addresses(self) -> Iterator[Address]:
        node = self.config.node
        if node.advertise is not None:
            yield Address(node.advertise, node.port)
        elif node.listen not in ("0.0.0.0", "::"):  # noqa: S104  # compared with, not bound to
            yield Address(node.listen, node.port)
        else:
            own = _own_address(self.config.bootstrap)
            external = self._reach.known.external_host
            if external is not None and external != own:
                yield Address(external, node.port)
            yield Address(own, node.port)

    @contextmanager
    def _bind(self) -> Iterator[tuple[trio.SocketListener, trio.socket.SocketType]]:
        """The port for TCP and UDP alike. Raises `PortTaken`."""
        host, port = self.config.node.listen, self.config.node.port
        family = stdlib_socket.AF_INET6 if ":" in host else stdlib_socket.AF_INET
        tcp = stdlib_socket.socket(family, stdlib_socket.SOCK_STREAM)
        udp = stdlib_socket.socket(family, stdlib_socket.SOCK_DGRAM)
        with tcp, udp:
            tcp.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
            for one, name in ((tcp, "TCP"), (udp, "UDP")):
                if family == stdlib_socket.AF_INET6:
                    one.setsockopt(stdlib_socket.IPPROTO_IPV6, stdlib_socket.IPV6_V6ONLY, 0)
                try:
                    one.bind((host, port))
                except OSError as error:
                    raise _bind_error(error, name, host, port) from error
            tcp.listen(BACKLOG)
            for one in (tcp, udp):
                one.setblocking(False)
            yield trio.SocketListener(trio.socket.from_stdlib_socket(tcp)), trio.socket.from_stdlib_socket(udp)


def _bind_error(error: OSError, name: str, host: str, port: int) -> NodeError:
    if error.errno == errno.EADDRINUSE:
        return PortTaken(f"{name} port {port} of {host} is taken", "set another port under [node], or stop its owner")
    if error.errno == errno.EACCES:
        return PortTaken(f"{name} port {port} of {host} is not ours to take", "set a port over 1023 under [node]")
    return PortTaken(f"cannot listen on {host} {name} port {port}: {error.strerror}", "set listen under [node]")


async def _remember(dht: Dht, store: Store) -> None:
    """Keep the DHT's contacts in the store, for a start at which every bootstrap is gone."""
    pause_s = REMEMBER_FIRST_S
    while True:
        await trio.sleep(pause_s)
        pause_s = REMEMBER_S
        contacts = dht.contacts()[:MAX_REMEMBERED]
        rows = [(one.node_id, one.host, one.port, int(one.last_seen_s)) for one in contacts]
        if rows:
            await trio.to_thread.run_sync(store.remember_peers, rows)


def _own_address(bootstraps: tuple[tuple[str, int], ...]) -> str:
    """The address of the interface that leads to the network; no packet is sent for it, and no name is looked up.

    It is asked for again and again on the event loop, where a slow name server would stop everything; so with a
    bootstrap that is a name, the interface of the default route counts.
    """
    host, port = "192.0.2.1", 9  # TEST-NET-1: only the route to it is asked
    if bootstraps and _is_ipv4(bootstraps[0][0]):
        host, port = bootstraps[0]
    with stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, port))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _is_ipv4(host: str) -> bool:
    try:
        stdlib_socket.inet_pton(stdlib_socket.AF_INET, host)
    except OSError:
        return False
    return True
