"""What Prometheus reads: the process, the local API, and the node's own standing, taken when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from .answers import StatusAnswer

CONTENT_TYPE = CONTENT_TYPE_LATEST
# A second series for each counter, that says when it was made, would be half of the text.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library does not annotate it
_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class ControlMetrics:
    """The registry that the whole daemon may add to, with the local API's own metrics in it."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Use ``registry``, or a new one that also watches this process (memory, CPU, open files)."""
        if registry is None:
            registry = CollectorRegistry()
            ProcessCollector(registry=registry)
        self.registry = registry
        self._requests = Counter(
            "moed_control_requests", "Requests on the local API", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "moed_control_request_seconds", "Time to answer them", ["route"], buckets=_SECONDS, registry=registry
        )
        self._connections = Gauge("moed_control_connections", "Open connections on the socket", registry=registry)
        self._height = Gauge("moed_chain_height", "Height of the last final block", registry=registry)
        self._lag = Gauge("moed_chain_lag_blocks", "Blocks that peers have and this node has not", registry=registry)
        self._used = Gauge("moed_used_bytes", "Memory, disk and GPU memory taken", ["what"], registry=registry)
        self._limit = Gauge("moed_limit_bytes", "What it may take of them", ["what"], registry=registry)
        self._peer_bytes = Counter(
            "moed_peer_bytes", "Bytes over sessions, by what the peer is", ["class", "direction"], registry=registry
        )
        self._counted_bytes: dict[tuple[str, str], int] = {}
        self._loop_lag = Gauge("moed_loop_lag_seconds", "Longest delay of the event loop lately", registry=registry)
        self._left_out = Gauge(
            "moed_log_lines_left_out", "Log lines left out because there were too many", ["event"], registry=registry
        )
        own = ["expert"]
        self._queue = Gauge("moed_expert_queue_seconds", "How long a request waits", own, registry=registry)
        self._rows = Gauge("moed_expert_rows_served", "Rows answered since the start", own, registry=registry)
        self._steps = Gauge("moed_expert_training_steps", "Training steps", own, registry=registry)
        self._peers = Gauge("moed_peers", "Peers with a session", registry=registry)
        self._ready = Gauge("moed_ready", "1 when the node can be used", registry=registry)
        self._uptime = Gauge("moed_uptime_seconds", "Time since the start", registry=registry)
        self._node = Info("moed_node", "Who this node is", registry=registry)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """One answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def connection_opened(self) -> None:
        """One more connection is open."""
        self._connections.inc()

    def connection_closed(self) -> None:
        """One connection less is open."""
        self._connections.dec()

    def take(self, status: StatusAnswer, resources: Mapping[str, Any], left_out: Mapping[str, int]) -> None:
        """Set the node's standing as ``status`` and ``resources`` say, and the log lines that were left out."""
        self._height.set(status.height)
        self._lag.set(max(status.best_known_height - status.height, 0))
        self._peers.set(status.peers)
        self._ready.set(status.ready)
        self._uptime.set(status.uptime_s)
        self._node.info(
            {
                "node_id": status.node_id,
                "network": status.network,
                "version": status.version,
                "role": status.role,
                "uid": "" if status.uid is None else str(status.uid),
            }
        )
        for what in ("memory", "disk"):
            self._used.labels(what).set(resources[what]["used_bytes"])
            limit = resources[what]["limit_bytes"]
            self._limit.labels(what).set(math.inf if limit is None else limit)
        self._used.labels("gpu").set(resources["gpu"]["used_bytes"])
        for peer_class, moved in resources["peer_bytes"].items():
            for direction, total in moved.items():
                key = (peer_class, direction)
                self._peer_bytes.labels(*key).inc(total - self._counted_bytes.get(key, 0))
                self._counted_bytes[key] = total
        self._loop_lag.set(resources["loop_lag_ms"]["max"] / 1000)
        for name, count in left_out.items():
            self._left_out.labels(name).set(count)

    def take_experts(self, experts: Iterable[Mapping[str, Any]]) -> None:
        """What this node's own experts did and how long requests wait for them."""
        for row in experts:
            for gauge, field, unit in (
                (self._queue, "queue_delay_ms", 1e-3),
                (self._rows, "rows_served", 1.0),
                (self._steps, "training_steps", 1.0),
            ):
                if row.get(field) is not None:
                    gauge.labels(row["name"]).set(row[field] * unit)

    def render(self) -> bytes:
        """The text for Prometheus."""
        return generate_latest(self.registry)
