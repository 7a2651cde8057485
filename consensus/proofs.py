"""Light check: what the state holds under a key, proven to somebody who knows the validators and nothing else."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from moed.protocol.codec import Record
from moed.protocol.domains import Domain
from moed.protocol.errors import BadSignature
from moed.protocol.identity import verify

from .blocks import Commit, Header, VoteKind, vote_payload
from .errors import InvalidProof
from .state import StateRecord, ValidatorSet, decode_state_record
from .stateroot import Branch, value_hash
from .turns import is_quorum, power_of, total_power

MAX_PROOF_BYTES = 1 << 20


class StateProof(Record, frozen=True, kw_only=True):
    """A record, or that there is none, under a final block: ``commit`` signs ``header``, and ``branch`` leads there.

    It speaks of the state after that block.
    """

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    header: Header
    commit: Commit
    key: Annotated[bytes, Meta(min_length=1, max_length=128)]
    value: bytes | None
    branch: Branch


def check_proof(proof: StateProof, validators: ValidatorSet, network_id: bytes) -> StateRecord | None:
    """The proven record, or None if it is proven that there is none. Raises `InvalidProof` or `Malformed`.

    ``validators`` is a set that the caller trusts, of this height or of an earlier one whose stake is still bonded.
    Over two thirds of its power must have signed, and what others signed beside it counts for nothing.
    """
    check_trusted(proof.header, proof.commit, validators, network_id)
    root = proof.branch.root_for(proof.key)
    if root != proof.header.state_root:
        raise InvalidProof("root that the branch leads to", proof.header.state_root.hex(), root.hex())
    stated = value_hash(proof.value) if proof.value is not None else None
    proven = proof.branch.value_hash_of(proof.key)
    if stated != proven:
        named = [one.hex() if one is not None else None for one in (proven, stated)]
        raise InvalidProof("hash of the value", named[0], named[1])
    return decode_state_record(proof.key, proof.value) if proof.value is not None else None


def check_trusted(header: Header, commit: Commit, validators: ValidatorSet, network_id: bytes) -> None:
    """Raise `InvalidProof` unless over two thirds of a trusted set's power signed this header as final.

    Unlike `check_commit` it passes over signers that the set does not know: they may have come later.
    """
    if (commit.height, commit.block_hash) != (header.height, header.hash):
        raise InvalidProof("block that the commit is for", header.hash.hex(), commit.block_hash.hex())
    payload = vote_payload(VoteKind.PRECOMMIT, commit.height, commit.round, commit.block_hash)
    signed: dict[bytes, int] = {}
    for entry in commit.signatures:
        power = power_of(validators, entry.validator)
        if power == 0:
            continue  # one who came later
        try:
            verify(entry.validator, Domain.VOTE, network_id, payload, entry.signature)
        except BadSignature as error:
            raise InvalidProof("signature in the commit", entry.validator.hex(), "a forged one") from error
        signed[entry.validator] = power
    total = total_power(validators)
    if not is_quorum(sum(signed.values()), total):
        raise InvalidProof("trusted stake behind the block", f"over two thirds of {total}", sum(signed.values()))
