"""The handshake against the published vectors, and against hostile bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moed.protocol.aead import Cipher, held_ciphers
from moed.protocol.errors import BadCiphertext, LocalProtocolError, Malformed, RemoteProtocolError
from moed.protocol.noise import MAX_PLAINTEXT_BYTES, CipherState, Handshake, SymmetricState, protocol_name

SECRETS = {name: bytes([number]) * 32 for number, name in enumerate(("is", "ie", "rs", "re"), start=1)}


def handshake_pair(cipher: Cipher = Cipher.CHACHAPOLY, prologue: bytes = b"p") -> tuple[Handshake, Handshake]:
    """An initiator and a responder with fixed keys and the same prologue."""
    initiator = Handshake(
        cipher,
        is_initiator=True,
        prologue=prologue,
        static_private=SECRETS["is"],
        ephemeral_private=SECRETS["ie"],
    )
    responder = Handshake(
        cipher,
        is_initiator=False,
        prologue=prologue,
        static_private=SECRETS["rs"],
        ephemeral_private=SECRETS["re"],
    )
    return initiator, responder


def _run_vector(vector: dict[str, Any]) -> None:
    cipher_name, hash_name = vector["protocol_name"].split("_")[3:]
    sides = {}
    for role, side in (("initiator", "init"), ("responder", "resp")):
        sides[role] = Handshake(
            Cipher(cipher_name),
            is_initiator=role == "initiator",
            prologue=bytes.fromhex(vector[f"{side}_prologue"]),
            static_private=bytes.fromhex(vector[f"{side}_static"]),
            ephemeral_private=bytes.fromhex(vector[f"{side}_ephemeral"]),
            hash_name=hash_name,
        )
    transport: dict[str, tuple[CipherState, CipherState]] = {}
    for message in vector["messages"]:
        sender = message["sender"]
        receiver = "responder" if sender == "initiator" else "initiator"
        payload, expected = bytes.fromhex(message["payload"]), bytes.fromhex(message["ciphertext"])
        if message["phase"] == "handshake":
            assert sides[sender].write_message(payload) == expected
            assert sides[receiver].read_message(expected) == payload
        else:
            transport = transport or {role: side.split() for role, side in sides.items()}
            assert transport[sender][0].encrypt(payload) == expected
            assert transport[receiver][1].decrypt(expected) == payload
    assert {side.handshake_hash.hex() for side in sides.values()} == {vector["handshake_hash"]}


@pytest.mark.parametrize("hash_name", ["BLAKE2b", "BLAKE2s", "SHA256", "SHA512"])
@pytest.mark.parametrize("cipher", [cipher for cipher in Cipher if cipher in held_ciphers()])
def test_published_vectors(cipher: Cipher, hash_name: str, published_vectors: Callable[[str], Any]) -> None:
    """Every published XX vector of this cipher and hash is reproduced byte by byte from both sides."""
    name = protocol_name(cipher, hash_name)
    vectors = [vector for vector in published_vectors("noise.json")["vectors"] if vector["protocol_name"] == name]
    assert vectors, name
    for vector in vectors:
        _run_vector(vector)


def test_a_name_longer_than_the_hash_is_hashed(published_vectors: Callable[[str], Any]) -> None:
    """ChaChaPoly_BLAKE2s has 33 characters over a 32-byte hash; the others are padded with zeros."""
    from moed.protocol.noise import HASHES

    long_name = protocol_name(Cipher.CHACHAPOLY, "BLAKE2s")
    hashed = SymmetricState(long_name, Cipher.CHACHAPOLY, HASHES["BLAKE2s"]).handshake_hash
    assert hashed == HASHES["BLAKE2s"].digest(long_name.encode())
    short_name = protocol_name(Cipher.AESGCM)
    padded = SymmetricState(short_name, Cipher.AESGCM, HASHES["BLAKE2b"]).handshake_hash
    assert padded == short_name.encode() + bytes(64 - len(short_name))


def test_both_sides_see_the_same_transcript_before_each_payload() -> None:
    """A signature over `transcript_hash` made before the payload can be checked after reading it."""
    initiator, responder = handshake_pair()
    for writer, reader in ((initiator, responder), (responder, initiator), (initiator, responder)):
        writer.start_message()
        before = writer.transcript_hash
        assert reader.read_message(writer.finish_message(b"payload")) == b"payload"
        assert reader.transcript_hash == before
    assert initiator.handshake_hash == responder.handshake_hash


def test_another_prologue_breaks_the_second_message() -> None:
    """Two networks, versions or cipher choices never complete a handshake."""
    initiator, _ = handshake_pair(prologue=b"one")
    _, responder = handshake_pair(prologue=b"two")
    responder.read_message(initiator.write_message())
    with pytest.raises(BadCiphertext):
        initiator.read_message(responder.write_message())


def test_a_low_order_ephemeral_is_refused() -> None:
    """An all-zero Diffie-Hellman result, which any stranger could force, ends the handshake."""
    _, responder = handshake_pair()
    responder.read_message(bytes(32))
    with pytest.raises(Malformed):
        responder.write_message()


@given(message=st.binary(max_size=200), step=st.integers(0, 2))
def test_any_bytes_give_only_the_remote_error(message: bytes, step: int) -> None:
    """At every step, foreign bytes either parse as an ephemeral key or raise RemoteProtocolError."""
    initiator, responder = handshake_pair()
    if step >= 1:
        responder.read_message(initiator.write_message())
    if step >= 2:
        initiator.read_message(responder.write_message())
    reader = initiator if step == 1 else responder
    try:
        reader.read_message(message)
    except RemoteProtocolError:
        return
    assert step == 0
    assert len(message) >= 32


def test_calls_out_of_turn_are_our_own_bug() -> None:
    """Writing, reading or splitting when it is not time raises LocalProtocolError."""
    initiator, responder = handshake_pair()
    for misuse in (responder.write_message, initiator.split, lambda: initiator.read_message(bytes(32))):
        with pytest.raises(LocalProtocolError):
            misuse()
    with pytest.raises(LocalProtocolError):
        initiator.finish_message()
    with pytest.raises(LocalProtocolError):
        _ = initiator.remote_static


@pytest.mark.parametrize("cipher", [cipher for cipher in Cipher if cipher in held_ciphers()])
def test_rekey_by_volume_keeps_both_ends_together(cipher: Cipher) -> None:
    """Both directions' ends change keys after the same message, and the old key then opens nothing."""
    sender = CipherState(cipher, bytes(32), rekey_after_bytes=100)
    receiver = CipherState(cipher, bytes(32), rekey_after_bytes=100)
    without = CipherState(cipher, bytes(32))
    for number in range(20):
        text = bytes([number]) * 30
        message = sender.encrypt(text)
        assert receiver.decrypt(message) == text
        if number < 3:
            assert without.decrypt(message) == text
        else:
            with pytest.raises(BadCiphertext):
                without.decrypt(message)
    assert sender.rekeys == receiver.rekeys == 6


def test_a_message_over_the_noise_limit_is_refused_locally() -> None:
    """65,519 bytes of plaintext fit one message, one byte more does not."""
    state = CipherState(Cipher.CHACHAPOLY, bytes(32))
    assert len(state.encrypt(bytes(MAX_PLAINTEXT_BYTES))) == 65_535
    with pytest.raises(LocalProtocolError):
        state.encrypt(bytes(MAX_PLAINTEXT_BYTES + 1))
