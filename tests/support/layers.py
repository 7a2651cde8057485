"""Layers served by a node of a test, and the client's view of such nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from moed.daemon.expert_service import ExpertService
from moed.daemon.gradient_budget import BackwardBudget
from moed.daemon.runtime import Runtime
from moed.models.hosted_layer import HostedLayer, LayerSpec, open_layer
from support.peering import Running, running

WIDTH = 8


def make_layer(
    folder: Path, name: str, *, kind: str = "ffn", rate: float = 1e-2, max_rows: int = 64, classes: int = 0
) -> HostedLayer:
    """A small layer; its weights depend on its name alone."""
    spec = LayerSpec(name=name, layer=kind, width=WIDTH, classes=classes, max_rows=max_rows, learning_rate=rate)
    return open_layer(spec, folder, seed=sum(name.encode()))


@asynccontextmanager
async def serving(
    number: int,
    *layers: HostedLayer,
    shares: Mapping[bytes, float] | None = None,
    budget: BackwardBudget | None = None,
) -> AsyncIterator[Running]:
    """A node that serves ``layers``; ``shares`` of the stake by public key, all of it for everybody if None."""
    runtime = Runtime(layers)
    service = ExpertService(runtime, lambda key: 1.0 if shares is None else shares.get(key, 0.0), budget)
    async with trio.open_nursery() as nursery, running(number, extra=service.handlers()) as node:
        await nursery.start(runtime.run)
        yield node
        nursery.cancel_scope.cancel()
