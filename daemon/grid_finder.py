"""Finds experts in the DHT and keeps sessions with their servers, for a caller that is no full node."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import structlog
import trio

from moed.protocol.addresses import Address
from moed.protocol.errors import Malformed
from moed.protocol.identity import NodeId

from .expert_grid import GridDirectory
from .network.dht import Dht
from .network.errors import CallError
from .network.peers import Peer, Peers
from .suspects import Suspects

logger = structlog.get_logger()

DIAL_TIMEOUT_S = 3.0
TRY_AGAIN_S = 1.0


class GridFinder:
    """Who serves what on a grid, and a session with each server that was asked for.

    A server that cannot be dialled is left out until it answers a dial that `run` makes beside the work.
    """

    def __init__(self, dht: Dht, peers: Peers) -> None:
        self._dht = dht
        self._peers = peers
        self._suspects: Suspects[NodeId] = Suspects(failures=1)
        self._directory = GridDirectory(dht.find_topic, is_out=self._suspects.is_out)

    async def run(self) -> None:
        """Dial again those that are out, until cancelled."""
        while True:
            await trio.sleep(TRY_AGAIN_S)
            for owner in self._suspects.due(trio.current_time()):
                await self._meet(owner)

    async def live(self, prefixes: Collection[str]) -> Mapping[str, Collection[int]]:
        """The coordinates that are served right below each prefix."""
        return await self._directory.live(prefixes)

    async def meet(self, experts: Collection[str]) -> None:
        """See to it that there is a session with the servers of these experts, those that are out left aside."""
        await self._directory.find(experts)
        owners = {owner for expert in experts for owner in self._directory.owners(expert)}
        async with trio.open_nursery() as nursery:
            for owner in owners:
                if self._peers.get(owner) is None and not self._suspects.is_out(owner):
                    nursery.start_soon(self._meet, owner)

    def locate(self, expert: str) -> Sequence[Peer]:
        """The servers of an expert that there is a session with."""
        found = [self._peers.get(owner) for owner in self._directory.owners(expert)]
        return [peer for peer in found if peer is not None]

    async def _meet(self, owner: NodeId) -> None:
        record = await self._dht.find_peer(owner)
        for text in record.addresses if record is not None else ():
            try:
                await self._peers.connect(Address.parse(text), owner, timeout_s=DIAL_TIMEOUT_S)
            except (CallError, Malformed) as error:
                logger.info("grid.dial_failed", peer=owner.hex(), address=text, reason=str(error))
            else:
                self._suspects.answered(owner)
                return
        self._suspects.failed(owner, trio.current_time())
