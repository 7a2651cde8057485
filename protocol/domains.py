"""Every domain-separation tag of the system, and the one hash and signing input that use them.

A tag is part of what was signed or hashed for ever: changing one breaks stored keys, blocks and records, so a
new meaning gets a new tag with a new version, and an old tag is never used again for something else.
"""

from __future__ import annotations

from enum import Enum
from hashlib import blake2b

_HASH_LENGTH = (32).to_bytes(8, "big")


def _frame(part: bytes) -> bytes:
    return len(part).to_bytes(8, "big") + part


class Domain(Enum):
    """The purpose of a hash or signature; no two purposes share one. ``head`` is the tag as it is hashed and signed."""

    head: bytes

    def __init__(self, tag: bytes) -> None:
        self.head = _frame(tag)

    GENESIS = b"moed genesis v1"
    SESSION_IDENTITY = b"moed session identity v1"
    DATAGRAM = b"moed datagram v1"
    RECORD = b"moed record v1"
    RECORD_KEY = b"moed record key v1"
    TRANSACTION = b"moed transaction v1"
    WEIGHTS_COMMITMENT = b"moed weights commitment v1"
    TRANSACTIONS_ROOT = b"moed transactions root v1"
    TRANSACTION_ORDER = b"moed transaction order v1"
    STATE_VALUE = b"moed state value v1"
    STATE_BUCKET = b"moed state bucket v2"
    STATE_PLACE = b"moed state place v1"
    STATE_NODE = b"moed state node v1"
    SNAPSHOT_PIECE = b"moed snapshot piece v1"
    BLOCK = b"moed block v1"
    COMMIT = b"moed commit v1"
    PROPOSAL = b"moed proposal v1"
    VOTE = b"moed vote v1"
    EVIDENCE = b"moed evidence v1"
    KEY_CONSENT = b"moed key consent v1"
    RECEIPT = b"moed receipt v1"
    MESSAGE = b"moed message v1"
    CHECKPOINT = b"moed checkpoint v1"
    CORPUS_BLOCK = b"moed corpus block v1"


def tagged_hash(domain: Domain, *parts: bytes) -> bytes:
    """The 32-byte BLAKE2b hash of ``parts`` under ``domain``.

    Each part goes in behind its length (8 bytes, big-endian), so that no two lists give the same bytes.
    """
    return blake2b(domain.head + b"".join([_frame(part) for part in parts]), digest_size=32).digest()


def hash_pair(domain: Domain, first: bytes, second: bytes) -> bytes:
    """`tagged_hash` of two hashes, which the trees of states do all the time."""
    return blake2b(b"".join((domain.head, _HASH_LENGTH, first, _HASH_LENGTH, second)), digest_size=32).digest()


def signing_input(domain: Domain, network_id: bytes, payload: bytes) -> bytes:
    """The bytes that are really signed: purpose, network, payload, each framed with its length."""
    return domain.head + _frame(network_id) + _frame(payload)
