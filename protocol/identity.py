"""Keys and node ids: who a peer is, and proof of it.

A node's identity is one Ed25519 key, the *work key*. Its node id, which is also its Kademlia id, is the first
20 bytes of the BLAKE2b hash of the public key, so an id is neither chosen freely nor used without the key.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NewType

import nacl.bindings
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from .domains import Domain, signing_input
from .errors import BadSignature, LocalProtocolError, Malformed

NodeId = NewType("NodeId", bytes)
PublicKey = NewType("PublicKey", bytes)

PUBLIC_KEY_BYTES = 32
SEED_BYTES = 32
SIGNATURE_BYTES = 64
NODE_ID_BYTES = 20


def node_id_of(public_key: bytes) -> NodeId:
    """The node id of an Ed25519 public key. Raises `Malformed` if it is not 32 bytes."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise Malformed(f"a public key is {PUBLIC_KEY_BYTES} bytes, not {len(public_key)}")
    return NodeId(blake2b(public_key, digest_size=NODE_ID_BYTES).digest())


class _Verified:
    """Signatures that were found good, by hash: a vote is met alone and in commits, a transaction alone and in blocks.

    Two generations of bounded size. A set is replaced, never shrunk, so threads need no lock.
    """

    def __init__(self, generation: int) -> None:
        self._generation = generation
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._young or digest in self._old

    def add(self, digest: bytes) -> None:
        if len(self._young) >= self._generation:
            self._old, self._young = self._young, set()
        self._young.add(digest)


_verified = _Verified(1 << 14)
_MET_AGAIN = frozenset((Domain.VOTE, Domain.PROPOSAL, Domain.TRANSACTION))
"""What is worth remembering; a datagram or a handshake comes once."""


def verify(public_key: bytes, domain: Domain, network_id: bytes, payload: bytes, signature: bytes) -> None:
    """Check ``signature`` over ``payload`` for this purpose and network, or raise `BadSignature`.

    What is met again and was good is remembered for a while, by the hash of key, signature and content.
    """
    if len(signature) != SIGNATURE_BYTES or len(public_key) != PUBLIC_KEY_BYTES:
        raise BadSignature("a signature is 64 bytes under a 32-byte key")
    signed = signing_input(domain, network_id, payload)
    digest = blake2b(public_key + signature + signed, digest_size=32).digest() if domain in _MET_AGAIN else b""
    if digest in _verified:
        return
    try:
        VerifyKey(public_key).verify(signed, signature)
    except BadSignatureError as error:
        raise BadSignature(f"the {domain.name.lower()} signature does not match its key") from error
    if digest:
        _verified.add(digest)


def x25519_public_of(public_key: bytes) -> bytes:
    """The X25519 image of an Ed25519 public key. Raises `Malformed` for an unusable key."""
    try:
        return nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(public_key)
    except Exception as error:  # libsodium reports a bad point as its own RuntimeError or TypeError
        raise Malformed("the public key is no usable point of the curve") from error


class Identity:
    """A work key: signs for its node, and gives the X25519 key pair of its sessions."""

    def __init__(self, seed: bytes) -> None:
        """Take the 32-byte secret ``seed``; the caller draws it from the system's randomness and keeps it."""
        if len(seed) != SEED_BYTES:
            raise LocalProtocolError(f"a key seed is {SEED_BYTES} bytes, not {len(seed)}")
        self._signing_key = SigningKey(seed)
        self.public_key = PublicKey(bytes(self._signing_key.verify_key))
        self.node_id = node_id_of(self.public_key)

    def sign(self, domain: Domain, network_id: bytes, payload: bytes) -> bytes:
        """The 64-byte signature of ``payload`` for this purpose and network."""
        return self._signing_key.sign(signing_input(domain, network_id, payload)).signature

    def x25519_private(self) -> bytes:
        """The secret half of the session key pair that belongs to `x25519_public_of` this public key."""
        return bytes(self._signing_key.to_curve25519_private_key())

    def __repr__(self) -> str:
        return f"Identity({self.node_id.hex()})"
