"""What a node holds of the height under way, in a few bytes, and what another that holds less still lacks."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from moed.protocol.codec import Record

from .blocks import HASH_BYTES, Proposal, Round, Vote, VoteKind
from .rounds import Rounds

Voters = Annotated[bytes, Meta(max_length=512)]
"""A bit for each validator in the order of the set, the first one lowest; 4,096 validators fit."""


class HeldVotes(Record, frozen=True, kw_only=True):
    """Whose votes of one kind, round and hash are there."""

    kind: VoteKind
    round: Round
    block_hash: Annotated[bytes, Meta(max_length=HASH_BYTES)]
    voters: Voters


class RoundsSummary(Record, frozen=True, kw_only=True):
    """All that a node holds of the rounds in which its height can still be decided."""

    height: Annotated[int, Meta(ge=1)]
    proposals: Annotated[tuple[Round, ...], Meta(max_length=256)] = ()
    votes: Annotated[tuple[HeldVotes, ...], Meta(max_length=512)] = ()


def summarise(rounds: Rounds) -> RoundsSummary:
    """The summary to send to peers when a height stands still."""
    proposals, votes = rounds.news()
    places = _places(rounds)
    held: dict[tuple[VoteKind, int, bytes], int] = {}
    for vote in votes:
        ballot = (vote.kind, vote.round, vote.block_hash)
        held[ballot] = held.get(ballot, 0) | 1 << places[vote.validator]
    size = -(-len(places) // 8)
    return RoundsSummary(
        height=rounds.height,
        proposals=tuple(sorted(proposal.round for proposal in proposals))[-256:],
        votes=tuple(
            HeldVotes(kind=kind, round=number, block_hash=block_hash, voters=bits.to_bytes(size, "little"))
            for (kind, number, block_hash), bits in sorted(held.items())[-512:]
        ),
    )


def lacking(rounds: Rounds, summary: RoundsSummary) -> tuple[list[Proposal], list[Vote]]:
    """What we hold and the sender of ``summary``, a node of the same height, does not."""
    proposals, votes = rounds.news()
    places = _places(rounds)
    held = {(one.kind, one.round, one.block_hash): int.from_bytes(one.voters, "little") for one in summary.votes}

    def is_lacking(vote: Vote) -> bool:
        bits = held.get((vote.kind, vote.round, vote.block_hash), 0)
        return not bits >> places[vote.validator] & 1

    known = set(summary.proposals)
    return [one for one in proposals if one.round not in known], [one for one in votes if is_lacking(one)]


def _places(rounds: Rounds) -> dict[bytes, int]:
    return {member.key: place for place, member in enumerate(rounds.tally.validators.members)}
