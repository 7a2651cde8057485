"""What one repeat on loopback brought; loads nothing, because the anchor's process needs it too."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Loopback:
    """Times in milliseconds, one entry for each call; memory in MiB for each node."""

    join_ms: list[float] = field(default_factory=list)
    store_ms: list[float] = field(default_factory=list)
    get_ms: list[float] = field(default_factory=list)
    failed: int = 0
    memory_mib: float = 0.0
