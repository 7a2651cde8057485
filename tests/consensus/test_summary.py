"""Two nodes of one height tell each other what they hold, and give what the other lacks and nothing more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moed.consensus.blocks import NO_BLOCK, Vote, VoteKind, sign_proposal, sign_vote
from moed.consensus.rounds import Rounds
from moed.consensus.state import Validator, ValidatorSet
from moed.consensus.summary import RoundsSummary, lacking, summarise
from moed.consensus.transition import Head
from moed.protocol.codec import decode_record, encode_record
from support.chains import key, make_genesis

GENESIS = make_genesis((30, 30, 20, 20))
KEYS = [key(number) for number in range(1, 5)]
HEAD = Head.at_genesis(GENESIS)
HASHES = (NO_BLOCK, b"\1" * 32, b"\2" * 32)


def rounds_with(votes: list[Vote]) -> Rounds:
    rounds = Rounds(
        1, HEAD.validators, None, params=GENESIS.params, network_id=GENESIS.network_id, is_valid=lambda _: True
    )
    rounds.start()
    for vote in votes:
        rounds.on_vote(vote)
    return rounds


def sign(signer: int, kind: VoteKind, block_hash: bytes) -> Vote:
    return sign_vote(KEYS[signer], GENESIS.network_id, kind, 1, 0, block_hash)


VOTES = st.lists(st.builds(sign, st.integers(0, 3), st.sampled_from(VoteKind), st.sampled_from(HASHES)), max_size=12)


@given(VOTES, VOTES)
def test_what_one_lacks_is_what_the_other_gives(here: list[Vote], there: list[Vote]) -> None:
    """After one exchange both ways, over the wire's encoding, both hold the same votes."""
    ours, theirs = rounds_with(here), rounds_with(there)
    for giver, taker in ((ours, theirs), (theirs, ours)):
        summary = decode_record(encode_record(summarise(taker)), RoundsSummary)
        _, votes = lacking(giver, summary)
        for vote in votes:
            assert not taker.has_vote(vote)
            taker.on_vote(vote)
    assert {*ours.news()[1]} == {*theirs.news()[1]}


def test_a_vote_of_the_last_of_as_many_validators_as_may_be_is_told() -> None:
    """The bits of 4,096 validators, the most that a genesis allows, pass the limit that their reader sets."""
    keys = [number.to_bytes(32, "big") for number in range(4_096)]
    validators = ValidatorSet(members=tuple(Validator(key=one, power=1) for one in keys))
    rounds = Rounds(1, validators, None, params=GENESIS.params, network_id=GENESIS.network_id, is_valid=lambda _: True)
    vote = Vote(kind=VoteKind.PREVOTE, height=1, round=0, block_hash=NO_BLOCK, validator=keys[-1], signature=bytes(64))
    rounds.tally.add(vote)
    (held,) = decode_record(encode_record(summarise(rounds)), RoundsSummary).votes
    assert int.from_bytes(held.voters, "little") == 1 << 4_095


def test_a_proposal_is_given_once() -> None:
    """Who holds the block is not sent it again: it may be large."""
    proposer = next(one for one in KEYS if one.public_key == rounds_with([]).turn(0))
    block = HEAD.build([], proposer=proposer.public_key, now_ms=HEAD.time_ms + 1)[0]
    proposal = sign_proposal(proposer, GENESIS.network_id, 0, -1, block)
    giver, taker = rounds_with([]), rounds_with([])
    giver.on_proposal(proposal)
    assert lacking(giver, summarise(taker))[0] == [proposal]
    taker.on_proposal(proposal)
    assert lacking(giver, summarise(taker))[0] == []
