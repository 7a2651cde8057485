"""Who is on the other side: hello, Noise XX, and the proof that binds the session key to a node id.

The bytes, each side:

    initiator → hello (1 byte), message 1 (ephemeral key)
    responder → hello (1 byte), message 2 (ephemeral, static, its proof)
    initiator → message 3 (static, its proof)

A hello's high four bits are the protocol version, its low four the ciphers held. Both hellos, the choice, the version
and the network id form the Noise prologue, so whoever changes one of them breaks the handshake: no downgrade, and two
networks never meet. The static X25519 key is the image of the Ed25519 work key; since that map loses a sign, the
encrypted payload carries the Ed25519 key and its signature over the transcript, and both are checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec

from .aead import Cipher, held_ciphers
from .codec import Record, decode_record, encode_record, require_length
from .domains import Domain
from .errors import LocalProtocolError, Malformed, Unexpected, WrongIdentity
from .identity import (
    PUBLIC_KEY_BYTES,
    SIGNATURE_BYTES,
    NodeId,
    PublicKey,
    node_id_of,
    verify,
    x25519_public_of,
)
from .noise import Handshake

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from .identity import Identity
    from .noise import CipherState

PROTOCOL_VERSION = 1
NETWORK_ID_BYTES = 32
# Message 2 with its proof is about 360 bytes; nothing longer is read before the peer is known.
MAX_HANDSHAKE_BYTES = 1024
# A key's volume before it is replaced: AES-GCM's own limit is 2^56 bytes, a fraction of it costs nothing.
REKEY_AFTER_BYTES = 1 << 30

_CIPHER_BIT = {Cipher.CHACHAPOLY: 1, Cipher.AESGCM: 2}
_PROLOGUE_TAG = b"moed session"

_PositiveSize = Annotated[int, msgspec.Meta(ge=1 << 12, le=1 << 40)]


class SessionLimits(Record, frozen=True):
    """What one side of a session accepts from the other; told in the handshake, so an honest peer never exceeds it.

    ``max_streams``: requests open at once. ``max_message_bytes``: one request or response. ``max_inflight_bytes``: all
    requests being received or served together, and again all responses being received (messages up to
    `SMALL_MESSAGE_BYTES` are not counted here, the number of streams bounds them). ``window_bytes``: what a stream may
    send before the receiver has taken some. ``max_notice_bytes``: one one-way notice.
    """

    max_streams: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)] = 256
    max_message_bytes: _PositiveSize = 128 << 20
    max_inflight_bytes: _PositiveSize = 256 << 20
    window_bytes: Annotated[int, msgspec.Meta(ge=1 << 16, le=1 << 31)] = 4 << 20
    max_notice_bytes: _PositiveSize = 8 << 20


class Proof(Record, frozen=True):
    """The encrypted payload of a handshake message: who sends it, proven, and what it accepts."""

    public_key: bytes
    signature: bytes
    limits: SessionLimits

    def __post_init__(self) -> None:
        require_length("a public key", self.public_key, PUBLIC_KEY_BYTES)
        require_length("a signature", self.signature, SIGNATURE_BYTES)


@dataclass(frozen=True, slots=True)
class Secured:
    """What a completed handshake yields."""

    cipher: Cipher
    public_key: PublicKey
    node_id: NodeId
    limits: SessionLimits
    send: CipherState
    receive: CipherState
    handshake_hash: bytes


def hello_byte(ciphers: AbstractSet[Cipher]) -> int:
    """The hello of a side that holds ``ciphers``."""
    return PROTOCOL_VERSION << 4 | sum(_CIPHER_BIT[cipher] for cipher in ciphers)


def choose_cipher(first: int, second: int) -> Cipher:
    """The cipher of two hellos: AES-256-GCM where both hold it. Raises `Unexpected` for no common version or cipher."""
    for hello in (first, second):
        if hello >> 4 != PROTOCOL_VERSION:
            raise Unexpected(f"the peer speaks session version {hello >> 4}, not {PROTOCOL_VERSION}")
    for cipher in (Cipher.AESGCM, Cipher.CHACHAPOLY):
        if first & second & _CIPHER_BIT[cipher]:
            return cipher
    raise Unexpected("the peer holds none of our ciphers")


class SecureHandshake:
    """One side of the opening: takes the peer's hello and messages, gives the bytes to send, ends in `result`.

    Raises only `RemoteProtocolError` subclasses for what the peer sent.
    """

    def __init__(
        self,
        identity: Identity,
        network_id: bytes,
        *,
        is_initiator: bool,
        ephemeral: bytes,
        limits: SessionLimits,
        expected: NodeId | None = None,
        ciphers: AbstractSet[Cipher] | None = None,
    ) -> None:
        """``ephemeral`` is 32 fresh secret bytes; ``expected`` the node id that the other side must prove."""
        if len(network_id) != NETWORK_ID_BYTES:
            raise LocalProtocolError(f"a network id is {NETWORK_ID_BYTES} bytes, not {len(network_id)}")
        self._identity = identity
        self._network_id = network_id
        self._is_initiator = is_initiator
        self._ephemeral = ephemeral
        self._limits = limits
        self._expected = expected
        self._hello = hello_byte(held_ciphers() if ciphers is None else ciphers)
        self._cipher: Cipher | None = None
        self._noise: Handshake | None = None
        self._remote: Proof | None = None
        self.result: Secured | None = None

    def start(self) -> bytes:
        """What to send at once: the initiator's hello and first message, which no choice of cipher changes."""
        if not self._is_initiator:
            return b""
        return bytes((self._hello,)) + _framed(self._make_noise(Cipher.CHACHAPOLY, b"").write_message())

    @property
    def has_hello(self) -> bool:
        """Whether the peer's hello was taken, so that handshake messages come next."""
        return self._noise is not None

    def take_hello(self, remote_hello: int) -> None:
        """Settle version and cipher, or raise `Unexpected`."""
        hellos = (self._hello, remote_hello) if self._is_initiator else (remote_hello, self._hello)
        self._cipher = choose_cipher(*hellos)
        choice = _CIPHER_BIT[self._cipher]
        # Every part has a fixed length, so no two openings give the same prologue.
        prologue = _PROLOGUE_TAG + bytes((*hellos, choice, PROTOCOL_VERSION)) + self._network_id
        self._noise = self._make_noise(self._cipher, prologue)
        if self._is_initiator:
            self._noise.write_message()  # the same bytes as `start` sent, now under the settled name and prologue

    def take_message(self, message: bytes) -> bytes:
        """Take the peer's next handshake message; returns what to send in answer, perhaps nothing."""
        noise = self._noise
        if noise is None:
            raise LocalProtocolError("the peer's hello comes before its messages")
        payload = noise.read_message(message)
        if not self._is_initiator and not noise.is_my_turn:  # message 3 ends it
            self._check_proof(noise, payload)
            self._finish(noise)
            return b""
        if self._is_initiator:
            self._check_proof(noise, payload)
            answer = _framed(self._write_proof(noise))
            self._finish(noise)
            return answer
        if payload:
            raise Malformed("the first handshake message carries a payload")
        return bytes((self._hello,)) + _framed(self._write_proof(noise))

    def _make_noise(self, cipher: Cipher, prologue: bytes) -> Handshake:
        return Handshake(
            cipher,
            is_initiator=self._is_initiator,
            prologue=prologue,
            static_private=self._identity.x25519_private(),
            ephemeral_private=self._ephemeral,
        )

    def _write_proof(self, noise: Handshake) -> bytes:
        noise.start_message()
        signature = self._identity.sign(Domain.SESSION_IDENTITY, self._network_id, noise.transcript_hash)
        proof = Proof(public_key=self._identity.public_key, signature=signature, limits=self._limits)
        return noise.finish_message(encode_record(proof))

    def _check_proof(self, noise: Handshake, payload: bytes) -> None:
        proof = decode_record(payload, Proof, max_bytes=MAX_HANDSHAKE_BYTES)
        if x25519_public_of(proof.public_key) != noise.remote_static:
            raise WrongIdentity("the session key is not the image of the public key beside it")
        verify(
            proof.public_key,
            Domain.SESSION_IDENTITY,
            self._network_id,
            noise.transcript_hash,
            proof.signature,
        )
        node_id = node_id_of(proof.public_key)
        if proof.public_key == self._identity.public_key:
            raise WrongIdentity("the peer is this node itself")
        if self._expected is not None and node_id != self._expected:
            raise WrongIdentity(f"the peer is {node_id.hex()}, not {self._expected.hex()}")
        self._remote = proof

    def _finish(self, noise: Handshake) -> None:
        assert self._remote is not None
        assert self._cipher is not None
        send, receive = noise.split(rekey_after_bytes=REKEY_AFTER_BYTES)
        self.result = Secured(
            cipher=self._cipher,
            public_key=PublicKey(self._remote.public_key),
            node_id=node_id_of(self._remote.public_key),
            limits=self._remote.limits,
            send=send,
            receive=receive,
            handshake_hash=noise.handshake_hash,
        )


def _framed(message: bytes) -> bytes:
    if len(message) > MAX_HANDSHAKE_BYTES:
        raise LocalProtocolError(f"a handshake message of {len(message)} bytes exceeds our own limit")
    return len(message).to_bytes(2, "big") + message
