"""The way into the network: bootstraps, by name or address, and whoever was known before, all tried at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import structlog
import trio

from moed.protocol.identity import NodeId
from moed.protocol.queries import Contact

from .datagrams import Address
from .search import Search

logger = structlog.get_logger(__name__)

KNOCKS = 3
"""How often an address that may be a node is tried before it is given up."""

Resolve: TypeAlias = Callable[[str, int], Awaitable[list[Address]]]


class Entrance:
    """The doors of one node. ``bootstraps`` may change; ``resolve`` turns a host name into numeric addresses."""

    def __init__(self, search: Search, own_id: NodeId, resolve: Resolve, remembered: Sequence[Contact]) -> None:
        self._search = search
        self._own_id = own_id
        self._resolve = resolve
        self.remembered = tuple(remembered)
        self.bootstraps: tuple[Address, ...] = ()

    async def enter(self) -> None:
        """Knock at every known door at once, and look up ourselves as soon as one opens."""
        is_open = trio.Event()

        async def knock_everywhere(nursery: trio.Nursery) -> None:
            async with trio.open_nursery() as knocks:
                for address in self.bootstraps:
                    knocks.start_soon(self._knock_at_name, address, is_open)
                for contact in self.remembered:
                    knocks.start_soon(self._knock, contact.address, is_open)
            if not is_open.is_set():
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(knock_everywhere, nursery)
            await is_open.wait()
            await self._search.find_nodes(self._own_id)
            nursery.cancel_scope.cancel()

    async def _knock_at_name(self, address: Address, is_open: trio.Event) -> None:
        try:
            resolved = await self._resolve(*address)
        except (OSError, UnicodeError) as error:  # the latter for what no resolver would take as a name
            logger.warning("dht.bootstrap_unresolved", host=address[0], port=address[1], error=str(error))
            return
        async with trio.open_nursery() as nursery:
            for each in resolved[:4]:
                nursery.start_soon(self._knock, each, is_open)

    async def _knock(self, address: Address, is_open: trio.Event) -> None:
        for _ in range(KNOCKS):
            if await self._search.ping(address) is not None:
                is_open.set()
                return


async def resolve_name(host: str, port: int) -> list[Address]:
    """The numeric addresses of ``host``; raises `OSError` if it has none. Numeric hosts need no thread."""
    found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_DGRAM)
    return list(dict.fromkeys((str(entry[4][0]), int(entry[4][1])) for entry in found))
