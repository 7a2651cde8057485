"""Blocks, votes and commits: the records that the chain is made of, and their hashes and signatures."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

from msgspec import Meta

from moed.protocol.codec import Record, decode_record, encode_record, require_length
from moed.protocol.domains import Domain, tagged_hash
from moed.protocol.errors import BadSignature
from moed.protocol.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, verify

from .errors import InvalidCommit
from .params import NonNegative
from .state import ValidatorSet
from .transactions import SignedTransaction, transactions_root
from .turns import is_quorum, power_of, total_power
from .votes import (
    HASH_BYTES,
    MAX_ROUND,
    NO_BLOCK,
    Round,
    ValidRound,
    Vote,
    VoteKind,
    proposal_payload,
    sign_vote,
    vote_payload,
)

__all__ = [
    "GENESIS_COMMIT",
    "HASH_BYTES",
    "MAX_BLOCK_RECORD_BYTES",
    "MAX_ROUND",
    "NO_BLOCK",
    "Block",
    "Commit",
    "CommitSignature",
    "Header",
    "Proposal",
    "Round",
    "Vote",
    "VoteKind",
    "check_commit",
    "check_commit_is_for",
    "check_signatures",
    "decode_block",
    "decode_commit",
    "proposal_payload",
    "sign_proposal",
    "sign_vote",
    "signed_share",
    "vote_payload",
]

MAX_BLOCK_RECORD_BYTES = 1 << 22
"""No block, proposal or commit is longer when encoded; `ChainParams` bounds what goes into one accordingly."""


class Header(Record, frozen=True, kw_only=True):
    """What a block is known by. ``state_root`` is the root after this block; ``time_ms`` is unix time."""

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    height: Annotated[int, Meta(ge=1)]
    parent: bytes
    proposer: bytes
    time_ms: NonNegative
    transactions_root: bytes
    state_root: bytes
    last_commit_hash: bytes

    def __post_init__(self) -> None:
        for name in ("parent", "transactions_root", "state_root", "last_commit_hash"):
            require_length(name, getattr(self, name), HASH_BYTES)
        require_length("proposer", self.proposer, PUBLIC_KEY_BYTES)

    @property
    def hash(self) -> bytes:
        """The 32-byte hash that names the block."""
        return _hash_of(self)


@lru_cache(maxsize=1_024)
def _hash_of(header: Header) -> bytes:
    """The rounds ask for it at every message."""
    return tagged_hash(Domain.BLOCK, encode_record(header))


class CommitSignature(Record, frozen=True, kw_only=True):
    """One validator's precommit inside a commit."""

    validator: bytes
    signature: bytes

    def __post_init__(self) -> None:
        require_length("validator", self.validator, PUBLIC_KEY_BYTES)
        require_length("signature", self.signature, SIGNATURE_BYTES)


class Commit(Record, frozen=True, kw_only=True):
    """The precommits that made a block final: more than two thirds of the stake, in the order of the keys."""

    height: NonNegative
    round: Round
    block_hash: bytes
    signatures: tuple[CommitSignature, ...] = ()

    @property
    def hash(self) -> bytes:
        return tagged_hash(Domain.COMMIT, encode_record(self))


GENESIS_COMMIT = Commit(height=0, round=0, block_hash=NO_BLOCK)
"""Stands before the first block, which no vote precedes."""


class Block(Record, frozen=True, kw_only=True):
    """A header, what it carries, and the commit of the block before it."""

    header: Header
    transactions: tuple[SignedTransaction, ...] = ()
    last_commit: Commit = GENESIS_COMMIT

    @property
    def height(self) -> int:
        return self.header.height

    @property
    def hash(self) -> bytes:
        return self.header.hash

    @property
    def is_whole(self) -> bool:
        """Whether the transactions and the last commit are those that the header, and so the hash, names."""
        header = self.header
        return (header.transactions_root, header.last_commit_hash) == (
            transactions_root(self.transactions),
            self.last_commit.hash,
        )


class Proposal(Record, frozen=True, kw_only=True):
    """A block put up for a round; ``valid_round`` is the earlier round in which it had a quorum, or -1."""

    round: Round
    valid_round: ValidRound
    block: Block
    signature: bytes

    @property
    def height(self) -> int:
        return self.block.height

    @property
    def content(self) -> tuple[bytes, int]:
        """What it says for its round: two proposals that differ in it contradict each other."""
        return self.block.hash, self.valid_round

    def check_signature(self, network_id: bytes, proposer: bytes) -> None:
        """Raise `BadSignature` unless ``proposer``, whose turn it is, signed this block for this round."""
        payload = proposal_payload(self.height, self.round, self.valid_round, self.block.hash)
        verify(proposer, Domain.PROPOSAL, network_id, payload, self.signature)


def decode_block(data: bytes | memoryview) -> Block:
    """Parse one block from its own bytes. Raises `Malformed` or `TooLarge`; no rule of the chain is checked."""
    return decode_record(data, Block, max_bytes=MAX_BLOCK_RECORD_BYTES)


def decode_commit(data: bytes | memoryview) -> Commit:
    """Parse one commit from its own bytes. Raises `Malformed` or `TooLarge`; its signatures are not checked."""
    return decode_record(data, Commit, max_bytes=MAX_BLOCK_RECORD_BYTES)


def sign_proposal(identity: Identity, network_id: bytes, round_number: int, valid_round: int, block: Block) -> Proposal:
    """Sign a proposal. Callers go through a signer that has put it on disk first."""
    payload = proposal_payload(block.height, round_number, valid_round, block.hash)
    signature = identity.sign(Domain.PROPOSAL, network_id, payload)
    return Proposal(round=round_number, valid_round=valid_round, block=block, signature=signature)


def check_commit(commit: Commit, block: Header, validators: ValidatorSet, network_id: bytes) -> int:
    """The stake that signed ``block`` in ``commit``; raises `InvalidCommit` unless it is over two thirds.

    ``validators`` is the set that decided the block's height. Each signature is checked; a repeated or foreign
    validator makes the whole commit invalid.
    """
    check_commit_is_for(commit, block)
    return check_signatures(commit, validators, network_id)


def check_commit_is_for(commit: Commit, block: Header) -> None:
    """Raise `InvalidCommit` unless the commit names this block; who signed it is not checked."""
    if (commit.height, commit.block_hash) != (block.height, block.hash):
        wanted, got = (block.height, block.hash.hex()), (commit.height, commit.block_hash.hex())
        raise InvalidCommit("block that the commit is for", wanted, got)


def check_signatures(commit: Commit, validators: ValidatorSet, network_id: bytes) -> int:
    """The stake that signed whatever block a commit names, for who has not read that yet; else as `check_commit`."""
    keys = [entry.validator for entry in commit.signatures]
    if keys != sorted(set(keys)):
        raise InvalidCommit("validators of the commit", "each once, keys rising", len(keys))
    payload = vote_payload(VoteKind.PRECOMMIT, commit.height, commit.round, commit.block_hash)
    signed = 0
    for entry in commit.signatures:
        power = power_of(validators, entry.validator)
        if power == 0:
            raise InvalidCommit("signer of the commit", "a validator", entry.validator.hex())
        try:
            verify(entry.validator, Domain.VOTE, network_id, payload, entry.signature)
        except BadSignature as error:
            raise InvalidCommit("signature in the commit", entry.validator.hex(), "a forged one") from error
        signed += power
    total = total_power(validators)
    if not is_quorum(signed, total):
        raise InvalidCommit("stake behind the commit", f"over two thirds of {total}", signed)
    return signed


def signed_share(commit: Commit, validators: ValidatorSet) -> float:
    """The share of the stake whose signature is in a commit, for people to read."""
    total = total_power(validators)
    return sum(power_of(validators, entry.validator) for entry in commit.signatures) / total if total else 0.0
