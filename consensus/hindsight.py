"""What validators signed at the last heights, after they were decided: a second vote that comes late is evidence too.

A height is over for most nodes before every vote has reached them, and a liar can keep its second one back on purpose.
So of the last heights the first vote of each validator for each step is remembered, and the first proposal of each
round, without its transactions. Memory is bounded: by the heights, by the rounds of each, and by votes in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .blocks import Block, Commit, Proposal, Vote, VoteKind
from .effects import Equivocation
from .rounds import Rounds
from .state import ValidatorSet, change
from .turns import power_of

KEPT_HEIGHTS = 16
"""At 12 s a block three minutes, far longer than a message is on its way; at 1 s as long as a short partition."""
KEPT_ROUNDS = 8
"""The last rounds of a height before the one that decided it, and the one after that."""
MAX_VOTES = 16_384
"""Of all heights together, about half a KiB each: eight rounds of 64 validators for each height."""

_Step = tuple[bytes, int, VoteKind]


@dataclass(slots=True)
class _Past:
    """One decided height. ``told`` are those whose lie at this height was found: one is punished for it once."""

    validators: ValidatorSet
    rounds: range
    votes: dict[_Step, Vote] = field(default_factory=dict)
    proposals: dict[int, tuple[bytes, Proposal]] = field(default_factory=dict)
    told: set[bytes] = field(default_factory=set)


class Hindsight:
    """The last decided heights. Give `close` the rounds of each, then ask of what comes late whether it is `wanted`."""

    def __init__(self, network_id: bytes) -> None:
        self._network_id = network_id
        self._heights: dict[int, _Past] = {}
        self._count = 0

    def close(self, rounds: Rounds, commit: Commit) -> None:
        """Remember what was heard of a height that ``commit`` decided; the oldest heights make room."""
        past = _Past(rounds.tally.validators, range(max(0, commit.round - KEPT_ROUNDS + 1), commit.round + 2))
        for vote in (*rounds.tally.votes(past.rounds), *_votes_of(commit)):
            past.votes.setdefault(_step_of(vote), vote)
        for number in past.rounds:
            if (proposal := rounds.proposals.get(number)) is not None:
                past.proposals[number] = (rounds.turn(number), _without_body(proposal))
        self._heights[rounds.height] = past
        self._count += len(past.votes)
        while len(self._heights) > 1 and (len(self._heights) > KEPT_HEIGHTS or self._count > MAX_VOTES):
            self._count -= len(self._heights.pop(next(iter(self._heights))).votes)

    def wants(self, message: Vote | Proposal) -> bool:
        """Whether a message of a decided height may show a lie, now or beside a later one; its signature is open."""
        past = self._heights.get(message.height)
        if past is None or message.round not in past.rounds:
            return False
        if isinstance(message, Proposal):
            author, known = past.proposals.get(message.round, (b"", None))
            return known is not None and author not in past.told and known.content != message.content
        if message.validator in past.told or not power_of(past.validators, message.validator):
            return False
        first = past.votes.get(_step_of(message))
        return self._count < MAX_VOTES if first is None else first.block_hash != message.block_hash

    def check(self, message: Vote | Proposal) -> None:
        """Raise `BadSignature` unless whoever is to answer for a wanted message signed it."""
        if isinstance(message, Vote):
            message.check_signature(self._network_id)
        else:
            author, _ = self._heights[message.height].proposals[message.round]
            message.check_signature(self._network_id, author)

    def take(self, message: Vote | Proposal) -> list[Equivocation]:
        """Remember a message, or say whom it convicts. What is not wanted changes nothing. Raises `BadSignature`."""
        if not self.wants(message):
            return []
        self.check(message)
        past = self._heights[message.height]
        if isinstance(message, Proposal):
            author, proposal = past.proposals[message.round]
            past.told.add(author)
            return [Equivocation(author, proposal, _without_body(message))]
        first = past.votes.get(_step_of(message))
        if first is None:
            past.votes[_step_of(message)] = message
            self._count += 1
            return []
        past.told.add(message.validator)
        return [Equivocation(message.validator, first, message)]


def _step_of(vote: Vote) -> _Step:
    return vote.validator, vote.round, vote.kind


def _without_body(proposal: Proposal) -> Proposal:
    """The same proposal of the same hash, which the header alone gives, without what may be megabytes."""
    return change(proposal, block=Block(header=proposal.block.header))


def _votes_of(commit: Commit) -> Iterator[Vote]:
    for entry in commit.signatures:
        yield Vote(
            kind=VoteKind.PRECOMMIT,
            height=commit.height,
            round=commit.round,
            block_hash=commit.block_hash,
            validator=entry.validator,
            signature=entry.signature,
        )
