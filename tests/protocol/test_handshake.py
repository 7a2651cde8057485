"""Who may open a session: version, cipher choice, identity, and every way to lie about them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from moed.protocol.aead import Cipher, held_ciphers
from moed.protocol.codec import encode_record
from moed.protocol.domains import Domain
from moed.protocol.errors import (
    BadCiphertext,
    BadSignature,
    LocalProtocolError,
    Malformed,
    RemoteProtocolError,
    Unexpected,
    WrongIdentity,
)
from moed.protocol.handshake import (
    Proof,
    SecureHandshake,
    SessionLimits,
    choose_cipher,
    hello_byte,
)
from moed.protocol.identity import Identity, NodeId
from moed.protocol.noise import Handshake
from support.pairs import ALICE, BOB, NETWORK_ID

CAROL = Identity(b"c" * 32)


def initiator(
    identity: Identity = ALICE,
    expected: NodeId | None = None,
    ciphers: frozenset[Cipher] | None = None,
    network_id: bytes = NETWORK_ID,
) -> SecureHandshake:
    """A dialling side."""
    return SecureHandshake(
        identity,
        network_id,
        is_initiator=True,
        ephemeral=b"x" * 32,
        limits=SessionLimits(),
        expected=expected,
        ciphers=ciphers,
    )


def responder(identity: Identity = BOB, ciphers: frozenset[Cipher] | None = None) -> SecureHandshake:
    """An accepting side."""
    return SecureHandshake(
        identity,
        NETWORK_ID,
        is_initiator=False,
        ephemeral=b"y" * 32,
        limits=SessionLimits(max_streams=7),
        ciphers=ciphers,
    )


def run(
    alice: SecureHandshake, bob: SecureHandshake, tamper: Callable[[int, bytes], bytes] = lambda _, data: data
) -> None:
    """Carry the three flights over; ``tamper`` may change flight 0, 1 or 2 (hellos included)."""
    first = tamper(0, alice.start())
    bob.take_hello(first[0])
    second = tamper(1, bob.take_message(first[3:]))
    alice.take_hello(second[0])
    third = tamper(2, alice.take_message(second[3:]))
    bob.take_message(third[2:])


@pytest.mark.parametrize("bob_ciphers", [frozenset({Cipher.CHACHAPOLY}), held_ciphers()])
def test_both_sides_end_with_the_same_keys_and_each_others_limits(bob_ciphers: frozenset[Cipher]) -> None:
    """AES-256-GCM where both hold it, else ChaCha20-Poly1305; the ciphers of both directions match."""
    alice, bob = initiator(expected=BOB.node_id), responder(ciphers=bob_ciphers)
    run(alice, bob)
    assert alice.result is not None
    assert bob.result is not None
    best = Cipher.AESGCM if Cipher.AESGCM in held_ciphers() & bob_ciphers else Cipher.CHACHAPOLY
    assert alice.result.cipher is bob.result.cipher is best
    assert bob.result.receive.decrypt(alice.result.send.encrypt(b"to bob")) == b"to bob"
    assert alice.result.receive.decrypt(bob.result.send.encrypt(b"to alice")) == b"to alice"
    assert (alice.result.limits.max_streams, bob.result.node_id) == (7, ALICE.node_id)


@pytest.mark.parametrize(
    ("flight", "position"),
    [(0, 0), (0, 3), (0, 34), *((1, at) for at in (0, 3, 40, 90, -1)), *((2, at) for at in (3, 40, 90, -1))],
)
def test_any_changed_byte_breaks_it(flight: int, position: int) -> None:
    """A changed hello (a downgrade included), key, proof or tag never ends in two open sides."""

    def tamper(number: int, data: bytes) -> bytes:
        if number != flight:
            return data
        changed = bytearray(data)
        changed[position] ^= 2 if position == 0 else 1
        return bytes(changed)

    alice, bob = initiator(), responder()
    with pytest.raises(RemoteProtocolError):
        run(alice, bob, tamper)
    assert bob.result is None


def test_the_hello_cannot_be_downgraded() -> None:
    """Hiding AES from both hellos changes the prologue, so the handshake fails instead of running weaker."""
    if Cipher.AESGCM not in held_ciphers():
        pytest.skip("this machine has no AES to hide")
    weak = hello_byte(frozenset({Cipher.CHACHAPOLY}))
    with pytest.raises(BadCiphertext):
        run(initiator(), responder(), lambda flight, data: bytes([weak]) + data[1:] if flight < 2 else data)


def test_versions_and_ciphers_must_meet() -> None:
    """Another version or no common cipher is refused in words."""
    ours = hello_byte(frozenset(Cipher))
    assert choose_cipher(ours, ours) is Cipher.AESGCM
    for other in (0x23, 0x10, 0x00, 0xFF):
        with pytest.raises(Unexpected):
            choose_cipher(ours, other)


def test_another_network_is_refused() -> None:
    """The network id is part of the prologue."""
    with pytest.raises(BadCiphertext):
        run(initiator(network_id=b"n" * 32), responder())
    with pytest.raises(LocalProtocolError):
        initiator(network_id=b"short")


def test_the_expected_node_must_answer() -> None:
    """A dialler who wants Carol and reaches Bob refuses before it says who it is."""
    alice, bob = initiator(expected=CAROL.node_id), responder()
    with pytest.raises(WrongIdentity, match=BOB.node_id.hex()):
        run(alice, bob)


def test_a_node_does_not_talk_to_itself() -> None:
    """Reaching one's own listener is refused."""
    with pytest.raises(WrongIdentity, match="itself"):
        run(initiator(BOB), responder())


def lying_flight(static: Identity, proof: Callable[[Handshake], bytes]) -> bytes:
    """Run Bob's machine against a liar with ``static`` as session key; returns nothing but raises Bob's verdict."""
    bob = responder()
    hello = hello_byte(frozenset({Cipher.CHACHAPOLY}))
    bob.take_hello(hello)
    prologue = b"moed session" + bytes((hello, bob._hello, 1, 1)) + NETWORK_ID
    noise = Handshake(
        Cipher.CHACHAPOLY,
        is_initiator=True,
        prologue=prologue,
        static_private=static.x25519_private(),
        ephemeral_private=b"x" * 32,
    )
    noise.read_message(bob.take_message(noise.write_message())[3:])
    noise.start_message()
    bob.take_message(noise.finish_message(proof(noise)))
    return b""


def signed_proof(noise: Handshake, signer: Identity, claimed: Identity, network_id: bytes = NETWORK_ID) -> bytes:
    """A proof that claims one identity and is signed by another."""
    signature = signer.sign(Domain.SESSION_IDENTITY, network_id, noise.transcript_hash)
    return encode_record(Proof(public_key=claimed.public_key, signature=signature, limits=SessionLimits()))


def test_a_claimed_key_needs_its_session_key_and_its_signature() -> None:
    """Neither another's public key, nor a signature by another key or for another network or moment, passes."""
    lying_flight(ALICE, lambda noise: signed_proof(noise, ALICE, ALICE))
    with pytest.raises(WrongIdentity):
        lying_flight(ALICE, lambda noise: signed_proof(noise, ALICE, CAROL))
    with pytest.raises(BadSignature):
        lying_flight(ALICE, lambda noise: signed_proof(noise, CAROL, ALICE))
    with pytest.raises(BadSignature):
        lying_flight(ALICE, lambda noise: signed_proof(noise, ALICE, ALICE, bytes(32)))
    stale = signed_proof(
        Handshake(
            Cipher.CHACHAPOLY, is_initiator=True, prologue=b"", static_private=b"s" * 32, ephemeral_private=b"e" * 32
        ),
        ALICE,
        ALICE,
    )
    with pytest.raises(BadSignature):
        lying_flight(ALICE, lambda _: stale)


@pytest.mark.parametrize("payload", [b"", b"\xa0", b"\xff" * 100, encode_record(SessionLimits())])
def test_a_payload_that_is_no_proof_is_malformed(payload: bytes) -> None:
    """The proof is one record, checked like every other."""
    with pytest.raises(Malformed):
        lying_flight(ALICE, lambda _: payload)


def test_absurd_limits_are_malformed() -> None:
    """A peer that announces windows or sizes out of all range is refused before they are used."""

    def proof(noise: Handshake) -> bytes:
        signature = ALICE.sign(Domain.SESSION_IDENTITY, NETWORK_ID, noise.transcript_hash)
        limits = SessionLimits(window_bytes=1)
        return encode_record(Proof(public_key=ALICE.public_key, signature=signature, limits=limits))

    with pytest.raises(Malformed):
        lying_flight(ALICE, proof)
