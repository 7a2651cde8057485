"""Evidence of equivocation: proof against the one who lied, and against nobody else."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moed.consensus.blocks import NO_BLOCK, VoteKind, sign_proposal, sign_vote
from moed.consensus.evidence import DoubleProposal, DoubleVote, double_proposal, double_vote
from moed.consensus.transition import Head
from moed.protocol.codec import decode_record, encode, encode_record
from moed.protocol.errors import BadSignature, Malformed, RemoteProtocolError
from support.chains import key, make_genesis

NETWORK = b"\7" * 32
HASHES = st.one_of(st.just(NO_BLOCK), st.binary(min_size=32, max_size=32))


@given(HASHES, HASHES, st.sampled_from(VoteKind), st.integers(1, 2**40), st.integers(0, 1_000))
def test_two_votes_of_one_step_are_proof_in_one_form(
    one: bytes, other: bytes, kind: VoteKind, height: int, round_number: int
) -> None:
    """Whoever saw which vote first, the evidence is the same and holds; equal votes are none."""
    first, second = (sign_vote(key(1), NETWORK, kind, height, round_number, block) for block in (one, other))
    if one == other:
        with pytest.raises(Malformed):
            double_vote(first, second)
        return
    evidence = double_vote(first, second)
    evidence.check(NETWORK)
    assert evidence == double_vote(second, first)
    assert decode_record(encode_record(evidence), DoubleVote) == evidence
    with pytest.raises(BadSignature):
        evidence.check(b"\0" * 32)


def test_nobody_is_framed_by_votes_of_another() -> None:
    """Evidence that names a key which did not sign both votes is refused, whatever part was changed."""
    votes = [sign_vote(key(1), NETWORK, VoteKind.PREVOTE, 5, 0, bytes([n]) * 32) for n in (1, 2)]
    evidence = double_vote(votes[0], votes[1])
    for changes in (
        {"validator": key(2).public_key},
        {"height": 6},
        {"round": 1},
        {"kind": VoteKind.PRECOMMIT},
        {"second": msgspec.structs.replace(evidence.second, block_hash=b"\3" * 32)},
    ):
        with pytest.raises(BadSignature):
            msgspec.structs.replace(evidence, **changes).check(NETWORK)


def test_votes_of_different_steps_are_no_evidence() -> None:
    """A prevote and a precommit, two rounds, two heights or two validators prove nothing."""
    vote = sign_vote(key(1), NETWORK, VoteKind.PREVOTE, 5, 0, b"\1" * 32)
    for other in (
        sign_vote(key(1), NETWORK, VoteKind.PRECOMMIT, 5, 0, b"\2" * 32),
        sign_vote(key(1), NETWORK, VoteKind.PREVOTE, 5, 1, b"\2" * 32),
        sign_vote(key(1), NETWORK, VoteKind.PREVOTE, 6, 0, b"\2" * 32),
        sign_vote(key(2), NETWORK, VoteKind.PREVOTE, 5, 0, b"\2" * 32),
    ):
        with pytest.raises(Malformed):
            double_vote(vote, other)


def test_two_proposals_of_one_round_are_proof() -> None:
    """Two blocks, or one block with two claims about its valid round; the same twice is none."""
    genesis = make_genesis()
    head = Head.at_genesis(genesis)
    blocks = [head.build([], proposer=key(1).public_key, now_ms=head.time_ms + n)[0] for n in (1, 2)]
    one, other = (sign_proposal(key(1), genesis.network_id, 2, -1, block) for block in blocks)
    again = sign_proposal(key(1), genesis.network_id, 2, 1, blocks[0])
    for pair in ((one, other), (other, one), (one, again)):
        evidence = double_proposal(key(1).public_key, *pair)
        evidence.check(genesis.network_id)
        assert evidence == double_proposal(key(1).public_key, pair[1], pair[0])
        assert decode_record(encode_record(evidence), DoubleProposal) == evidence
    with pytest.raises(Malformed):
        double_proposal(key(1).public_key, one, one)
    with pytest.raises(BadSignature):
        double_proposal(key(2).public_key, one, other).check(genesis.network_id)


def test_evidence_has_one_form_and_one_name() -> None:
    """The halves the other way round are refused as they are read, so one lie is never punished under two names."""
    votes = [sign_vote(key(1), NETWORK, VoteKind.PREVOTE, 5, 0, bytes([n]) * 32) for n in (1, 2)]
    genesis = make_genesis()
    head = Head.at_genesis(genesis)
    blocks = [head.build([], proposer=key(1).public_key, now_ms=head.time_ms + n)[0] for n in (1, 2)]
    proposals = [sign_proposal(key(1), genesis.network_id, 2, -1, block) for block in blocks]
    lies = double_vote(*votes), double_proposal(key(1).public_key, *proposals)
    for evidence in lies:
        raw = msgspec.to_builtins(evidence, builtin_types=(bytes,))
        with pytest.raises(Malformed):
            decode_record(encode({**raw, "first": raw["second"], "second": raw["first"]}), type(evidence))
    assert len({evidence.id for evidence in lies}) == 2
    assert all(evidence.id == decode_record(encode_record(evidence), type(evidence)).id for evidence in lies)


def test_proposals_of_different_rounds_are_no_evidence() -> None:
    """Whose turn it is in two rounds may propose two blocks."""
    genesis = make_genesis()
    head = Head.at_genesis(genesis)
    blocks = [head.build([], proposer=key(1).public_key, now_ms=head.time_ms + n)[0] for n in (1, 2)]
    one, other = (sign_proposal(key(1), genesis.network_id, number, -1, blocks[number]) for number in (0, 1))
    with pytest.raises(Malformed):
        double_proposal(key(1).public_key, one, other)


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused_by_type(data: bytes) -> None:
    """Whatever arrives decodes or is refused with a typed error."""
    for kind in (DoubleVote, DoubleProposal):
        try:
            decode_record(data, kind)
        except RemoteProtocolError:
            continue
