"""Nodes that serve layers, each in a thread of its own, for callers whose torch code may wait."""

from __future__ import annotations

import threading

import trio

from moed.daemon.expert_transport import Place
from moed.models.hosted_layer import HostedLayer
from support.layers import serving


class ServerThread:
    """A node in a thread; `stop` ends it as a process ends."""

    def __init__(self, number: int, *layers: HostedLayer) -> None:
        self._ready, self._number, self._layers = threading.Event(), number, layers
        self._thread = threading.Thread(target=trio.run, args=(self._run,))
        self._thread.start()
        self._ready.wait()

    async def _run(self) -> None:
        self._stop, self._token = trio.Event(), trio.lowlevel.current_trio_token()
        async with serving(self._number, *self._layers) as node:
            self.place = Place(node.address, node.identity.node_id)
            self._ready.set()
            await self._stop.wait()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._token.run_sync_soon(self._stop.set)
            self._thread.join()
