"""Votes and what proposals sign: the small signed statements of a round, and the bytes that they sign."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from msgspec import Meta

from moed.protocol.codec import Record, encode, require_length
from moed.protocol.domains import Domain
from moed.protocol.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, verify

HASH_BYTES = 32
NO_BLOCK = b""
"""The block hash of a vote for no block (nil)."""
MAX_ROUND = 1_000
"""A network that disagrees this often at one height needs people, not another round."""

Round = Annotated[int, Meta(ge=0, le=MAX_ROUND)]
ValidRound = Annotated[int, Meta(ge=-1, le=MAX_ROUND)]


class VoteKind(IntEnum):
    """The two votes of a round, in order."""

    PREVOTE = 1
    PRECOMMIT = 2


class Vote(Record, frozen=True, kw_only=True):
    """One validator's prevote or precommit for a block hash, or for none, in one round of one height."""

    kind: VoteKind
    height: Annotated[int, Meta(ge=1)]
    round: Round
    block_hash: bytes
    validator: bytes
    signature: bytes

    def __post_init__(self) -> None:
        if self.block_hash != NO_BLOCK:
            require_length("block_hash", self.block_hash, HASH_BYTES)
        require_length("validator", self.validator, PUBLIC_KEY_BYTES)
        require_length("signature", self.signature, SIGNATURE_BYTES)

    def check_signature(self, network_id: bytes) -> None:
        """Raise `BadSignature` unless the validator signed exactly this vote for this network."""
        payload = vote_payload(self.kind, self.height, self.round, self.block_hash)
        verify(self.validator, Domain.VOTE, network_id, payload, self.signature)


def vote_payload(kind: VoteKind, height: int, round_number: int, block_hash: bytes) -> bytes:
    """The bytes that a vote signs."""
    return encode([int(kind), height, round_number, block_hash])


def proposal_payload(height: int, round_number: int, valid_round: int, block_hash: bytes) -> bytes:
    """The bytes that a proposal signs."""
    return encode([height, round_number, valid_round, block_hash])


def sign_vote(
    identity: Identity, network_id: bytes, kind: VoteKind, height: int, round_number: int, block_hash: bytes
) -> Vote:
    """Sign a vote. Callers go through a signer that has put the vote on disk first."""
    payload = vote_payload(kind, height, round_number, block_hash)
    return Vote(
        kind=kind,
        height=height,
        round=round_number,
        block_hash=block_hash,
        validator=identity.public_key,
        signature=identity.sign(Domain.VOTE, network_id, payload),
    )
