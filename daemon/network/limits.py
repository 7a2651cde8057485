"""How much of this node strangers and peers may take: connections, and the times that they may stay silent."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NetworkLimits:
    """The bounds around sessions; what one session may hold is `moed.protocol.handshake.SessionLimits`.

    A connection is *half open* until its peer has proved who it is. Over ``max_half_open_per_host`` or
    ``max_half_open`` the oldest half-open connection of the busiest host is closed for the new one, so that nobody
    keeps others out by staying silent.
    """

    handshake_s: float = 5.0
    # Accepted connections a second, all in all (the others wait in the kernel's queue) and from one host (the others
    # are closed at once, at a tenth of the cost); a handshake takes about a millisecond of the event loop.
    max_accepts_per_s: float = 200.0
    max_accepts_per_host_per_s: float = 50.0
    accept_burst: float = 256.0
    max_half_open: int = 256
    max_half_open_per_host: int = 32
    max_sessions: int = 512
    max_sessions_per_host: int = 128
    keepalive_s: float = 10.0
    silence_s: float = 25.0
    goodbye_s: float = 1.0
    drain_s: float = 10.0
    # Messages of all sessions together that are being received or served.
    max_inflight_bytes: int = 1 << 30
    # Buffers of large messages that are kept to be used again; given back after two keep-alives without use.
    max_pooled_bytes: int = 128 << 20
    # Notices that wait for their handler, per session and priority, and per session in bytes; the newest is dropped.
    max_queued_notices: int = 1024
    max_queued_notice_bytes: int = 16 << 20


@dataclass(slots=True)
class NetworkCounters:
    """What happened on all connections since the start, for metrics and tests."""

    accepted: int = 0
    turned_away: int = 0
    handshakes_failed: int = 0
    sessions_opened: int = 0
    sessions_closed: int = 0
    protocol_errors: int = 0
    bugs: int = 0
    calls_served: int = 0
    calls_refused: int = 0
    notices_dropped: int = 0
    notices_refused: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)

    def count_end(self, reason: str) -> None:
        """A session ended for ``reason``, one of a fixed set of words."""
        self.sessions_closed += 1
        self.by_reason[reason] = self.by_reason.get(reason, 0) + 1
