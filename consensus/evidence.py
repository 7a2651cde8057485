"""Evidence of equivocation: two different messages that one validator signed for one step, small enough for a block.

It is made by whoever sees both messages (`double_vote`, `double_proposal`) and travels in a transaction; the ledger
slashes the stake behind the key. It holds no block: what was signed of a proposal is its hash. One offence has one
form, whoever reports it, and nobody can be framed: both signatures are checked against the accused key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from moed.protocol.codec import Record, encode_record, require_length
from moed.protocol.domains import Domain, tagged_hash
from moed.protocol.errors import Malformed
from moed.protocol.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, verify

from .votes import HASH_BYTES, NO_BLOCK, Round, ValidRound, Vote, VoteKind, proposal_payload, vote_payload

if TYPE_CHECKING:
    from .blocks import Proposal  # which hold transactions, which may hold evidence

Height = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class SignedVote(Record, frozen=True, kw_only=True):
    """The part of a vote in which two of one step differ."""

    block_hash: bytes
    signature: bytes

    def __post_init__(self) -> None:
        if self.block_hash != NO_BLOCK:
            require_length("block_hash", self.block_hash, HASH_BYTES)
        require_length("signature", self.signature, SIGNATURE_BYTES)


class SignedProposal(Record, frozen=True, kw_only=True):
    """The part of a proposal in which two of one round differ."""

    valid_round: ValidRound
    block_hash: bytes
    signature: bytes

    def __post_init__(self) -> None:
        require_length("block_hash", self.block_hash, HASH_BYTES)
        require_length("signature", self.signature, SIGNATURE_BYTES)


class DoubleVote(Record, frozen=True, kw_only=True, tag="double_vote"):
    """Two votes of one validator, height, round and kind for different blocks; the smaller hash comes first."""

    validator: bytes
    height: Height
    round: Round
    kind: VoteKind
    first: SignedVote
    second: SignedVote

    def __post_init__(self) -> None:
        require_length("validator", self.validator, PUBLIC_KEY_BYTES)
        if self.first.block_hash >= self.second.block_hash:
            raise Malformed("the votes of evidence must differ, the smaller hash first")

    @property
    def id(self) -> bytes:
        """The 32-byte hash that names this evidence."""
        return tagged_hash(Domain.EVIDENCE, encode_record(self))

    def check(self, network_id: bytes) -> None:
        """Raise `BadSignature` unless the accused signed both votes for this network."""
        for vote in (self.first, self.second):
            payload = vote_payload(self.kind, self.height, self.round, vote.block_hash)
            verify(self.validator, Domain.VOTE, network_id, payload, vote.signature)


class DoubleProposal(Record, frozen=True, kw_only=True, tag="double_proposal"):
    """Two different proposals of one validator for one round; the smaller (hash, valid round) comes first."""

    validator: bytes
    height: Height
    round: Round
    first: SignedProposal
    second: SignedProposal

    def __post_init__(self) -> None:
        require_length("validator", self.validator, PUBLIC_KEY_BYTES)
        if _order(self.first) >= _order(self.second):
            raise Malformed("the proposals of evidence must differ, the smaller hash first")

    @property
    def id(self) -> bytes:
        """The 32-byte hash that names this evidence."""
        return tagged_hash(Domain.EVIDENCE, encode_record(self))

    def check(self, network_id: bytes) -> None:
        """Raise `BadSignature` unless the accused signed both proposals for this network."""
        for one in (self.first, self.second):
            payload = proposal_payload(self.height, self.round, one.valid_round, one.block_hash)
            verify(self.validator, Domain.PROPOSAL, network_id, payload, one.signature)


Evidence = DoubleVote | DoubleProposal


def _order(proposal: SignedProposal) -> tuple[bytes, int]:
    return proposal.block_hash, proposal.valid_round


def double_vote(one: Vote, other: Vote) -> DoubleVote:
    """The evidence that two votes make, in its one form. Raises `Malformed` if they are not of one step, or equal.

    The signatures are not checked; `DoubleVote.check` does that.
    """
    if (one.validator, one.height, one.round, one.kind) != (other.validator, other.height, other.round, other.kind):
        raise Malformed("two votes are evidence only if validator, height, round and kind are the same")
    first, second = sorted((one, other), key=lambda vote: vote.block_hash)
    return DoubleVote(
        validator=one.validator,
        height=one.height,
        round=one.round,
        kind=one.kind,
        first=SignedVote(block_hash=first.block_hash, signature=first.signature),
        second=SignedVote(block_hash=second.block_hash, signature=second.signature),
    )


def double_proposal(proposer: bytes, one: Proposal, other: Proposal) -> DoubleProposal:
    """The evidence that two proposals of ``proposer`` make, in its one form.

    Raises `Malformed` if they are not of one round or not different; the signatures are not checked.
    """
    if (one.height, one.round) != (other.height, other.round):
        raise Malformed("two proposals are evidence only if height and round are the same")
    parts = [
        SignedProposal(valid_round=each.valid_round, block_hash=each.block.hash, signature=each.signature)
        for each in (one, other)
    ]
    first, second = sorted(parts, key=_order)
    return DoubleProposal(validator=proposer, height=one.height, round=one.round, first=first, second=second)
