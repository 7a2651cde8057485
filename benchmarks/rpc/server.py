"""A process that serves layers over moed's sessions: ``python -m benchmarks.rpc.server NAME=LAYER:WIDTH ...``.

Prints one line of JSON when it accepts calls, and ends when its standard input does.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import sys
import tempfile
import time
from collections import deque
from functools import partial
from pathlib import Path

import structlog
import torch
import trio

from moed.daemon.expert_service import ExpertService
from moed.daemon.network.limits import NetworkLimits
from moed.daemon.network.peers import Peers
from moed.daemon.receipts import ReceiptBook
from moed.daemon.runtime import Runtime, RuntimeConfig
from moed.models.batching import QueueLimits
from moed.models.hosted_layer import LayerSpec, open_layer
from moed.protocol.identity import Identity
from moed.protocol.receipts import SignedSheet

NETWORK_ID = b"benchmark of remote procedure ca"
MAX_ROWS = 1 << 14  # hivemind's own default batch limit
LIMITS = QueueLimits(max_rows=2 * MAX_ROWS, max_rows_per_caller=2 * MAX_ROWS)


def spec_of(text: str) -> LayerSpec:
    """``NAME=LAYER:WIDTH`` as a layer with hivemind's batch limit."""
    name, _, what = text.partition("=")
    layer, _, width = what.partition(":")
    return LayerSpec(name=name, layer=layer, width=int(width), max_rows=MAX_ROWS)


def open_receipts(identity: Identity) -> ReceiptBook:
    """Receipts as every node keeps them, but for the database, which is written once a second."""
    kept: deque[SignedSheet] = deque(maxlen=100)
    return ReceiptBook(identity, NETWORK_ID, kept.extend, now_ms=lambda: time.time_ns() // 1_000_000)


async def serve(specs: list[LayerSpec], identity: Identity, folder: Path) -> None:
    """Serve until standard input ends."""
    runtime = Runtime([open_layer(spec, folder, seed=7) for spec in specs], RuntimeConfig(limits=LIMITS))
    service = ExpertService(runtime, lambda _public_key: 1.0)
    limits = NetworkLimits(max_inflight_bytes=4 << 30, max_pooled_bytes=1 << 30)
    receipts = open_receipts(identity)
    handlers = {**service.handlers(), **receipts.handlers()}
    peers = Peers(identity, NETWORK_ID, handlers=handlers, network_limits=limits, receipts=receipts)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    gc.freeze()  # as a node does when it is ready
    async with trio.open_nursery() as nursery:
        await nursery.start(runtime.run)
        await nursery.start(partial(peers.run, listeners))
        nursery.start_soon(receipts.run)
        port = listeners[0].socket.getsockname()[1]
        print(json.dumps({"port": port, "node_id": identity.node_id.hex(), "pid": os.getpid()}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experts", nargs="+", metavar="NAME=LAYER:WIDTH")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", type=Path)
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    torch.set_num_threads(options.threads)
    profiler = cProfile.Profile() if options.profile else None
    with tempfile.TemporaryDirectory() as folder:
        run = partial(
            trio.run, serve, [spec_of(text) for text in options.experts], Identity(os.urandom(32)), Path(folder)
        )
        if profiler is None:
            run()
        else:
            profiler.runcall(run)
            profiler.dump_stats(options.profile)


if __name__ == "__main__":
    main()
