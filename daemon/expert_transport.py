"""A transport for `moed.models.remote`: sessions on a trio thread of its own, called from any thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self

import structlog
import trio

from moed.models.beam import children_of
from moed.models.errors import NoAnswer
from moed.models.remote import Ask, Patience, Rows
from moed.protocol.addresses import Address
from moed.protocol.handshake import SessionLimits
from moed.protocol.identity import Identity, NodeId
from moed.protocol.tensors import Codec

from .grid_finder import GridFinder
from .network.dht import Dht
from .network.errors import CallError, DialFailed, RemoteRefusal
from .network.peers import Peer, Peers
from .remote_experts import Answered, Asked, ExpertClient

logger = structlog.get_logger()

REDIAL_S = 0.5
DIAL_TIMEOUT_S = 5.0
INFO_TIMEOUT_S = 5.0
_CLOSED = (trio.RunFinishedError, trio.Cancelled)
"""What a thread is told whose question the end of the transport came before."""


@dataclass(frozen=True, slots=True)
class Place:
    """A node to ask: where it listens, and who it must prove to be."""

    address: Address
    node_id: NodeId | None = None


@dataclass(slots=True)
class _Running:
    """What the thread shares once it is up."""

    token: trio.lowlevel.TrioToken
    stop: trio.Event
    client: ExpertClient
    finder: GridFinder | None
    serving: dict[str, list[Peer]] = field(default_factory=dict)


class ThreadTransport:
    """Keeps a session with each place, knows which experts are there, and asks them from whatever thread calls.

    With ``bootstrap``, nodes of the network to join through, it finds the experts of grids in the DHT as well.
    Use it as a context manager, or `close` it. A place that is lost is left out at once and dialled again.
    """

    def __init__(
        self,
        identity: Identity,
        network_id: bytes,
        places: Sequence[Place] = (),
        *,
        bootstrap: Sequence[Address] = (),
        codec: Codec = Codec.NONE,
        hedge_after_s: float = float("inf"),
        limits: SessionLimits | None = None,
        ready_timeout_s: float = 10.0,
    ) -> None:
        """Start the thread and meet the places; returns when all were met or ``ready_timeout_s`` is over.

        Raises what ends the thread before it is up, as where the system has no socket for it.
        """
        self._identity = identity
        self._network_id = network_id
        self._places = tuple(places)
        self._bootstrap = tuple((one.host, one.port) for one in bootstrap)
        self._codec = codec
        self._hedge_after_s = hedge_after_s
        self._limits = limits
        self._running: _Running | None = None
        self._met: set[Place] = set()
        self._is_up = threading.Event()
        self._has_met_all = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="moed transport", daemon=True)
        self._thread.start()
        self._is_up.wait()
        if self._failure is not None:
            raise self._failure
        if self._places:
            self._has_met_all.wait(ready_timeout_s)

    def reachable(self) -> Collection[str]:
        """The experts that can be asked now."""
        running = self._running
        return frozenset(name for name, peers in running.serving.items() if peers) if running is not None else ()

    def live(self, prefixes: Collection[str]) -> Mapping[str, Collection[int]]:
        """What of a grid can be asked now, right below each prefix."""
        known = children_of(self.reachable(), prefixes)
        running = self._running
        if running is None or running.finder is None:
            return known
        try:
            found = trio.from_thread.run(running.finder.live, prefixes, trio_token=running.token)
        except _CLOSED:
            return known
        return {prefix: known[prefix].union(found[prefix]) for prefix in prefixes}

    def ask(
        self, asks: Sequence[Ask], patience: Patience, is_enough: Callable[[Collection[int]], bool]
    ) -> list[Rows | NoAnswer]:
        """Ask all at once and wait: an answer, or why there is none, for each. Never raises for a place's fault."""
        closed: list[Rows | NoAnswer] = [NoAnswer("stopping", "the transport is closed") for _ in asks]
        running = self._running
        if running is None:
            return closed
        wanted = [Asked(one.expert, one.inputs, one.gradients) for one in asks]
        call = partial(
            self._ask,
            running,
            wanted,
            deadline_s=patience.deadline_s,
            grace_s=patience.grace_s,
            is_enough=is_enough,
        )
        try:
            outcomes = trio.from_thread.run(call, trio_token=running.token)
        except _CLOSED:
            return closed
        return [one.rows if isinstance(one, Answered) else _no_answer(one) for one in outcomes]

    def close(self) -> None:
        """Say goodbye to every place and end the thread."""
        running, self._running = self._running, None
        if running is not None:
            running.token.run_sync_soon(running.stop.set)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _live(self) -> None:
        """The thread: whatever ends it before it is up is for `__init__` to raise."""
        try:
            trio.run(self._run)
        except BaseException as error:  # of whatever kind, or the starting thread would wait for ever
            if self._is_up.is_set():
                raise
            self._failure = error
        finally:
            self._running = None
            self._is_up.set()

    # -- on the trio thread ----------------------------------------------------------------------------------------

    @staticmethod
    async def _ask(running: _Running, wanted: Sequence[Asked], **terms: Any) -> list[Answered | CallError]:
        if running.finder is not None:
            await running.finder.meet({one.expert for one in wanted})
        return await running.client.ask_many(wanted, **terms)

    async def _run(self) -> None:
        serving: dict[str, list[Peer]] = {}
        peers = Peers(
            self._identity,
            self._network_id,
            limits=self._limits,
            random_bytes=os.urandom,
            on_disconnected=partial(_forget, serving),
        )
        dht = Dht(self._identity, self._network_id) if self._bootstrap else None
        finder = GridFinder(dht, peers) if dht is not None else None

        def locate(expert: str) -> Sequence[Peer]:
            found = finder.locate(expert) if finder is not None else ()
            return [*serving.get(expert, ()), *found]

        client = ExpertClient(locate, codec=self._codec, hedge_after_s=self._hedge_after_s)
        running = _Running(trio.lowlevel.current_trio_token(), trio.Event(), client, finder, serving)
        async with trio.open_nursery() as nursery:
            await nursery.start(peers.run, [])
            if dht is not None and finder is not None:
                await nursery.start(self._join, dht)
                nursery.start_soon(finder.run)
            self._running = running
            self._is_up.set()
            for place in self._places:
                nursery.start_soon(self._keep_session, peers, place, running)
            await running.stop.wait()
            nursery.cancel_scope.cancel()

    async def _join(self, dht: Dht, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be a client of the DHT: we ask, and nobody keeps us as a contact."""
        dht.is_client = True
        family = trio.socket.AF_INET6 if ":" in self._bootstrap[0][0] else trio.socket.AF_INET
        with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as socket:
            async with trio.open_nursery() as nursery:
                await socket.bind(("", 0))
                await nursery.start(dht.run, socket)
                await dht.join(self._bootstrap)
                task_status.started()

    async def _keep_session(self, peers: Peers, place: Place, running: _Running) -> None:
        while True:
            try:
                peer = await peers.connect(place.address, place.node_id, timeout_s=DIAL_TIMEOUT_S)
                info = await running.client.info(peer, deadline_s=INFO_TIMEOUT_S)
            except CallError as error:
                level = logger.debug if isinstance(error, DialFailed) else logger.warning
                level("place.unreachable", address=str(place.address), reason=str(error))
            else:
                for expert in info.experts:
                    running.serving.setdefault(expert.name, []).append(peer)
                self._meet(place)
                while peers.get(peer.node_id) is peer:  # noqa: ASYNC110  # what ends a session wakes nobody here
                    await trio.sleep(REDIAL_S)
            await trio.sleep(REDIAL_S)

    def _meet(self, place: Place) -> None:
        self._met.add(place)
        if len(self._met) == len(set(self._places)):
            self._has_met_all.set()


def _forget(serving: Mapping[str, list[Peer]], gone: Peer) -> None:
    for peers in serving.values():
        peers[:] = [peer for peer in peers if peer is not gone]


def _no_answer(error: CallError) -> NoAnswer:
    return NoAnswer(error.code if isinstance(error, RemoteRefusal | DialFailed) else type(error).__name__, str(error))
