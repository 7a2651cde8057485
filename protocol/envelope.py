"""The signed binary envelope around each datagram: who sent it, to whom, when, in which network.

Layout, big-endian, 144 bytes before the body:

    version 1 | flags 1 | network 8 | sender key 32 | recipient id 20 | sent at, ms 8 | nonce 8 | body length 2 |
    signature 64

then the body and zero padding. The signature covers every other byte of the datagram and the whole network id, so a
datagram is good for one recipient, one network and a short time. The recipient is zero only while unknown (the
first ping to a bootstrap address). Flag bit 0 says that the sender is a client: it cannot be asked from outside, so
nobody should keep it as a contact. Other bits are zero.

**Amplification.** The source address of a datagram may be forged. Whatever it asks, the answer is never more than
`MAX_AMPLIFICATION` times its bytes, whether the address is known or not; who wants a longer answer pads its
question (`PADDED_REQUEST_BYTES` buys a full datagram). Apart from answers, an address that has not answered us gets
at most one ping per minute, no longer than the datagram that caused it (see `daemon.network.dht`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .domains import Domain
from .errors import Expired, LocalProtocolError, Malformed, TooLarge, Unexpected
from .identity import NODE_ID_BYTES, PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, NodeId, node_id_of, verify

VERSION = 1
MAX_DATAGRAM_BYTES = 1200
MAX_AMPLIFICATION = 3
PADDED_REQUEST_BYTES = MAX_DATAGRAM_BYTES // MAX_AMPLIFICATION
WINDOW_S = 30.0
"""How far the sender's clock plus the way here may differ from ours."""

_HEAD = struct.Struct(f">BB8s{PUBLIC_KEY_BYTES}s{NODE_ID_BYTES}sQ8sH")
HEADER_BYTES = _HEAD.size + SIGNATURE_BYTES
NONCE_BYTES = 8
NO_RECIPIENT = bytes(NODE_ID_BYTES)
_CLIENT = 1


@dataclass(frozen=True, slots=True)
class Opened:
    """A datagram that passed every check: its sender is proven, its body is not yet parsed."""

    sender_key: bytes
    sender_id: NodeId
    is_addressed: bool
    """False if the sender did not know our id."""
    body: bytes
    datagram_bytes: int
    sent_at_s: float
    """Unix time by the sender's clock."""
    is_client: bool = False
    """Whether the sender says that it cannot be asked from outside."""

    @property
    def reply_budget_bytes(self) -> int:
        """The most body bytes that the answer may have: the amplification bound, and one datagram."""
        return min(MAX_DATAGRAM_BYTES, MAX_AMPLIFICATION * self.datagram_bytes) - HEADER_BYTES


def seal(
    identity: Identity,
    network_id: bytes,
    recipient_id: bytes | None,
    body: bytes,
    *,
    now_s: float,
    nonce: bytes,
    at_least_bytes: int = 0,
    is_client: bool = False,
) -> bytes:
    """The signed datagram with ``body`` for ``recipient_id`` (None: unknown), padded to ``at_least_bytes``.

    ``nonce`` is `NONCE_BYTES` of fresh randomness. Raises `LocalProtocolError` if the datagram exceeds
    `MAX_DATAGRAM_BYTES`.
    """
    if HEADER_BYTES + len(body) > MAX_DATAGRAM_BYTES:
        raise LocalProtocolError(f"a body of {len(body)} bytes does not fit one datagram")
    head = _HEAD.pack(
        VERSION,
        _CLIENT if is_client else 0,
        network_id[:8],
        identity.public_key,
        recipient_id or NO_RECIPIENT,
        int(now_s * 1000),
        nonce,
        len(body),
    )
    tail = body.ljust(at_least_bytes - HEADER_BYTES, b"\0")
    return head + identity.sign(Domain.DATAGRAM, network_id, head + tail) + tail


class Opener:
    """Checks envelopes for one node and remembers them for as long as a copy could be replayed.

    Memory is bounded: two generations of at most ``max_remembered`` datagrams, turned over when the older one
    has left the time window, or early when the newer one is full. So a replay is always refused while fewer than
    ``max_remembered`` valid datagrams arrive in two `WINDOW_S`; beyond that the time window alone bounds it.
    """

    def __init__(self, node_id: bytes, network_id: bytes, *, max_remembered: int = 16_384) -> None:
        self._node_id = node_id
        self._network_id = network_id
        self._max_remembered = max_remembered
        self._newer: set[bytes] = set()
        self._older: set[bytes] = set()
        self._turned_at_s = float("-inf")

    def open(self, data: bytes, now_s: float) -> Opened:
        """Check one datagram, cheap checks first, the signature last, and remember it.

        Raises `TooLarge`, `Malformed`, `Unexpected` (other network, version or recipient), `Expired` (stale,
        from the future, or replayed) and `BadSignature`.
        """
        if len(data) > MAX_DATAGRAM_BYTES:
            raise TooLarge("datagram", len(data), MAX_DATAGRAM_BYTES)
        if len(data) < HEADER_BYTES:
            raise Malformed(f"a datagram of {len(data)} bytes is shorter than its envelope")
        version, flags, network, key, recipient, sent_at_ms, nonce, body_bytes = _HEAD.unpack_from(data)
        if version != VERSION or network != self._network_id[:8]:
            raise Unexpected("the datagram is of another network or version")
        if flags & ~_CLIENT:
            raise Malformed(f"the datagram has unknown flags {flags:#04x}")
        if recipient not in (self._node_id, NO_RECIPIENT):
            raise Unexpected("the datagram is for another node")
        if abs(sent_at_ms / 1000 - now_s) > WINDOW_S:
            raise Expired(f"the datagram was sent {now_s - sent_at_ms / 1000:+.1f} s ago")
        tail = data[HEADER_BYTES:]
        if body_bytes > len(tail) or any(tail[body_bytes:]):
            raise Malformed("the body length of the datagram does not fit its bytes")
        seen = key[:8] + nonce
        if seen in self._newer or seen in self._older:
            raise Expired("the datagram was seen before")
        signature = data[_HEAD.size : HEADER_BYTES]
        verify(key, Domain.DATAGRAM, self._network_id, data[: _HEAD.size] + tail, signature)
        self._remember(seen, now_s)
        return Opened(
            key,
            node_id_of(key),
            recipient != NO_RECIPIENT,
            tail[:body_bytes],
            len(data),
            sent_at_ms / 1000,
            bool(flags),
        )

    def _remember(self, seen: bytes, now_s: float) -> None:
        # A datagram accepted at t can be dated up to t + window, so a copy passes until t + 2 windows.
        if now_s - self._turned_at_s > 2 * WINDOW_S or len(self._newer) >= self._max_remembered:
            self._older, self._newer = self._newer, set()
            self._turned_at_s = now_s
        self._newer.add(seen)
