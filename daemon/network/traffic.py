"""Bytes over sessions by what the peer is: each connection counts its own, and they are sorted only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moed.protocol.identity import PublicKey


class PeerClass(StrEnum):
    """What a peer is on the chain."""

    VALIDATOR = "validator"
    MINER = "miner"
    OTHER = "other"
    """No uid, or nobody yet: what a stranger sends before it has proved who it is counts here."""


@dataclass(slots=True)
class Moved:
    """Bytes as they went over the wire, handshakes and encryption included."""

    sent: int = 0
    received: int = 0


class Traffic:
    """The sums by class. ``classify`` is asked when bytes are booked, so a peer's class may change in its session."""

    def __init__(self, classify: Callable[[PublicKey], PeerClass]) -> None:
        self._classify = classify
        self._totals = {one: Moved() for one in PeerClass}

    @property
    def totals(self) -> Mapping[PeerClass, Moved]:
        """What was booked since the start."""
        return self._totals

    def book(self, moved: Moved, key: PublicKey | None) -> None:
        """Take over what a connection to ``key`` moved since it was booked last; None: it never opened."""
        total = self._totals[PeerClass.OTHER if key is None else self._classify(key)]
        total.sent += moved.sent
        total.received += moved.received
        moved.sent = moved.received = 0
