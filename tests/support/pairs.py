"""Two session machines joined in memory: what one sends, the other receives, with no socket and no clock."""

from __future__ import annotations

from moed.protocol.aead import Buffer
from moed.protocol.handshake import SessionLimits
from moed.protocol.identity import Identity
from moed.protocol.incoming import ByteBudget
from moed.protocol.session import Session
from moed.protocol.session_events import NEED_DATA, Event

NETWORK_ID = bytes(range(32))
ALICE = Identity(b"a" * 32)
BOB = Identity(b"b" * 32)


def joined(buffers: list[Buffer]) -> bytes:
    """The bytes of several buffers, copied out before the machine reuses them."""
    return b"".join(bytes(buffer) for buffer in buffers)


def drain(session: Session) -> list[Event]:
    """Every event that the machine has now."""
    events: list[Event] = []
    while (event := session.next_event()) is not NEED_DATA:
        events.append(event)
    return events


class SessionPair:
    """Alice dials Bob. ``events`` of each side pile up until the test takes them."""

    def __init__(
        self,
        *,
        limits: SessionLimits | None = None,
        alice_network: bytes = NETWORK_ID,
        bob_budget: ByteBudget | None = None,
        alice_budget: ByteBudget | None = None,
    ) -> None:
        self.alice = Session(
            ALICE,
            alice_network,
            is_initiator=True,
            ephemeral=b"x" * 32,
            limits=limits,
            expected=BOB.node_id,
            budget=alice_budget,
        )
        self.bob = Session(
            BOB,
            NETWORK_ID,
            is_initiator=False,
            ephemeral=b"y" * 32,
            limits=limits,
            budget=bob_budget,
        )
        self.now_s = 0.0
        self.alice_events: list[Event] = []
        self.bob_events: list[Event] = []

    def step(self) -> bool:
        """Carry one turn each way; False if neither had anything to send."""
        from_alice = joined(self.alice.data_to_send(self.now_s))
        if from_alice:
            self.bob.receive_data(from_alice)
            self.bob_events += drain(self.bob)
        from_bob = joined(self.bob.data_to_send(self.now_s))
        if from_bob:
            self.alice.receive_data(from_bob)
            self.alice_events += drain(self.alice)
        return bool(from_alice or from_bob)

    def settle(self) -> None:
        """Carry bytes until both are quiet."""
        while self.step():
            pass

    def take_alice(self) -> list[Event]:
        """Alice's events since the last call, everything settled."""
        self.settle()
        events, self.alice_events = self.alice_events, []
        return events

    def take_bob(self) -> list[Event]:
        """Bob's events since the last call, everything settled."""
        self.settle()
        events, self.bob_events = self.bob_events, []
        return events


def open_pair(
    limits: SessionLimits | None = None,
    *,
    bob_budget: ByteBudget | None = None,
    alice_budget: ByteBudget | None = None,
) -> SessionPair:
    """A pair whose handshake is done and whose opening events were taken."""
    pair = SessionPair(limits=limits, bob_budget=bob_budget, alice_budget=alice_budget)
    pair.settle()
    pair.alice_events.clear()
    pair.bob_events.clear()
    return pair
