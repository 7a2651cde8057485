"""Votes of one height, counted by stake: who voted what in which round, and what has a quorum."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from .blocks import Commit, CommitSignature, Vote, VoteKind
from .state import ValidatorSet
from .turns import is_quorum, total_power

MAX_VOTES_EACH = 4
"""Different votes of one validator that count in one round and kind, besides those for what over a third of the stake
voted for. An honest one has one; of a liar's, whichever others lock on must be countable here too, whatever else it
sent us first, and what others can lock on has some honest votes behind it."""


@dataclass(slots=True)
class _Ballot:
    """The votes of one kind in one round: by validator and hash, the power behind each hash, and of all who voted."""

    votes: dict[bytes, dict[bytes, Vote]] = field(default_factory=dict)
    power_by_hash: dict[bytes, int] = field(default_factory=dict)
    power: int = 0


class Tally:
    """Counts each validator once for each hash in each round and kind, by the stake behind it and never by heads."""

    def __init__(self, validators: ValidatorSet) -> None:
        self.validators = validators
        self.total = total_power(validators)
        self._powers = {member.key: member.power for member in validators.members}
        self._ballots: dict[tuple[VoteKind, int], _Ballot] = {}
        self._latest: dict[bytes, int] = {}
        self._far: dict[bytes, Vote] = {}

    def power(self, key: bytes) -> int:
        """The stake behind one key, 0 if it is no validator."""
        return self._powers.get(key, 0)

    def add(self, vote: Vote) -> Vote | None:
        """Count a vote whose signature holds; returns an earlier, different vote if its validator equivocates.

        Each vote counts for its own hash (two quorums in one round then take a third of the stake that lies), and its
        validator once for having voted at all. A repeated vote and one without stake change nothing.
        """
        power = self.power(vote.validator)
        if power == 0 or self.has_vote(vote):
            return None
        self._latest[vote.validator] = max(vote.round, self._latest.get(vote.validator, 0))
        ballot = self._ballots.setdefault((vote.kind, vote.round), _Ballot())
        own = ballot.votes.setdefault(vote.validator, {})
        earlier = next(iter(own.values()), None)
        behind = ballot.power_by_hash.get(vote.block_hash, 0)
        if len(own) >= MAX_VOTES_EACH and 3 * behind <= self.total:
            return earlier
        if earlier is None:
            ballot.power += power
        own[vote.block_hash] = vote
        ballot.power_by_hash[vote.block_hash] = behind + power
        return earlier

    def keep_far(self, vote: Vote) -> None:
        """Keep a vote of a round too far ahead to be counted; of each validator the latest alone."""
        known = self._far.get(vote.validator)
        if self.power(vote.validator) and (known is None or (known.round, known.kind) < (vote.round, vote.kind)):
            self._far[vote.validator] = vote

    def take_far(self, up_to: int) -> list[Vote]:
        """The votes from `keep_far` that are near now: of rounds up to ``up_to``."""
        near = [vote for vote in self._far.values() if vote.round <= up_to]
        for vote in near:
            del self._far[vote.validator]
        return near

    def far_votes(self) -> list[Vote]:
        return list(self._far.values())

    def round_of_a_third(self) -> int:
        """The greatest round that validators with over a third of the stake have voted in or beyond; -1 if none."""
        latest = dict(self._latest)
        for vote in self._far.values():
            latest[vote.validator] = max(vote.round, latest.get(vote.validator, 0))
        power = 0
        for round_number, key in sorted(((one, key) for key, one in latest.items()), reverse=True):
            power += self.power(key)
            if 3 * power > self.total:
                return round_number
        return -1

    def has_vote(self, vote: Vote) -> bool:
        """Whether this validator's vote for this hash is counted or kept already."""
        return vote == self._far.get(vote.validator) or self.counts(vote)

    def counts(self, vote: Vote) -> bool:
        """Whether this validator's vote for this hash is counted."""
        ballot = self._ballots.get((vote.kind, vote.round))
        return ballot is not None and vote.block_hash in ballot.votes.get(vote.validator, {})

    def has_quorum(self, kind: VoteKind, round_number: int, block_hash: bytes) -> bool:
        """Whether more than two thirds of the stake voted for this hash."""
        ballot = self._ballots.get((kind, round_number))
        return ballot is not None and is_quorum(ballot.power_by_hash.get(block_hash, 0), self.total)

    def has_quorum_of_any(self, kind: VoteKind, round_number: int) -> bool:
        """Whether more than two thirds of the stake voted at all."""
        ballot = self._ballots.get((kind, round_number))
        return ballot is not None and is_quorum(ballot.power, self.total)

    def quorum_hash(self, kind: VoteKind, round_number: int) -> bytes | None:
        """The hash, possibly that of no block, that has the quorum; at most one can while under a third lies."""
        ballot = self._ballots.get((kind, round_number))
        if ballot is None:
            return None
        found = (one for one, power in ballot.power_by_hash.items() if is_quorum(power, self.total))
        return next(found, None)

    def voters(self, round_number: int) -> set[bytes]:
        """Who voted in a round, in either kind."""
        ballots = (self._ballots.get((kind, round_number)) for kind in VoteKind)
        return {key for ballot in ballots if ballot is not None for key in ballot.votes}

    def rounds(self) -> list[int]:
        """The rounds that have votes, rising."""
        return sorted({round_number for _, round_number in self._ballots})

    def votes(self, rounds: Collection[int]) -> list[Vote]:
        """Every counted vote of these rounds, for a peer that missed some."""
        return [
            vote
            for (_, round_number), ballot in self._ballots.items()
            if round_number in rounds
            for own in ballot.votes.values()
            for vote in own.values()
        ]

    def votes_for(self, kind: VoteKind, round_number: int, block_hash: bytes) -> tuple[Vote, ...]:
        """The votes for this hash, in the order of their validators' keys."""
        votes = self._ballots[kind, round_number].votes
        return tuple(votes[key][block_hash] for key in sorted(votes) if block_hash in votes[key])

    def commit(self, height: int, round_number: int, block_hash: bytes) -> Commit:
        """The commit that the precommits for this hash make; callers have seen the quorum."""
        signatures = tuple(
            CommitSignature(validator=vote.validator, signature=vote.signature)
            for vote in self.votes_for(VoteKind.PRECOMMIT, round_number, block_hash)
        )
        return Commit(height=height, round=round_number, block_hash=block_hash, signatures=signatures)
