"""What Prometheus reads: the process, the local API, and the node's own standing, taken when it is asked for."""

from __future__ import annotations

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

    def render(self, status: StatusAnswer) -> bytes:
        """The text for Prometheus, with the node's standing as ``status`` says."""
        self._height.set(status.height)
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
        return generate_latest(self.registry)
