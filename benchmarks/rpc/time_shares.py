"""Where the time of a workload goes, at both ends: cProfile's own time of each function, summed by what it is for.

The profiler itself costs a function call about a microsecond, so Python's share is overstated against the cipher's and
the kernel's; for large messages, with few calls for each byte, that is little.
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .moed_side import Caller, ServerProcess

# The first pattern that is in "file:function" decides.
KINDS = (
    ("waiting", ("'poll' of 'select.epoll'", "'acquire' of", "'_thread")),
    ("cipher", ("crypto_aead", "aead.py", "noise.py", "_sodium")),
    ("kernel copies (send, recv)", ("socket.socket' objects",)),
    ("CBOR, tensors, records", ("codec.py", "messages.py", "tensors.py", "tensor_codecs.py", "cbor2", "msgspec")),
    ("session machine", ("protocol/",)),
    ("calls and serving", ("daemon/network", "expert_service", "remote_experts")),
    ("queue and expert", ("runtime.py", "batching.py", "models/", "torch", "numpy")),
    ("event loop", ("trio/", "outcome/", "sniffio", "select.epoll", "contextvars", "deque", "heapq")),
)


def profile(arguments: tuple[str, ...], measure: Callable[[Any, Any], Awaitable[Any]]) -> dict[str, dict[str, float]]:
    """Run ``measure`` against a server of ``arguments``, both profiled: share of busy time by kind, for each end."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "server.pstats"
        profiler = cProfile.Profile()
        with ServerProcess(*arguments, "--profile", str(path)) as server:
            profiler.runcall(Caller(server.place).run, measure)
        return {"caller": shares(pstats.Stats(profiler)), "server": shares(pstats.Stats(str(path)))}


def shares(stats: pstats.Stats) -> dict[str, float]:
    """Each kind's share of the time that was not spent waiting."""
    sums: dict[str, float] = {}
    for (file, _, function), (_, _, own_s, _, _) in stats.stats.items():  # type: ignore[attr-defined]  # untyped there
        name = f"{file}:{function}"
        kind = next((kind for kind, patterns in KINDS if any(pattern in name for pattern in patterns)), "the rest")
        sums[kind] = sums.get(kind, 0.0) + own_s
    sums.pop("waiting", None)
    total = sum(sums.values())
    return {kind: own_s / total for kind, own_s in sorted(sums.items(), key=lambda item: -item[1])}
