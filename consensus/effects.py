"""What the rounds ask of whoever carries them out: to sign, to wait, to make a block final, to report a lie."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from .blocks import Block, Commit, Proposal, Vote, VoteKind


class Step(IntEnum):
    """Where the machine stands in its round."""

    WAITING = 0  # for the block interval to pass
    PROPOSE = 1
    PREVOTE = 2
    PRECOMMIT = 3
    DECIDED = 4


@dataclass(frozen=True, slots=True)
class Timeout:
    """Names what is awaited; one that comes late changes nothing."""

    height: int
    round: int
    step: Step


@dataclass(frozen=True, slots=True)
class Propose:
    """It is our turn: sign ``block``, or a new one if it is None, for this round."""

    round: int
    valid_round: int
    block: Block | None


@dataclass(frozen=True, slots=True)
class Lock:
    """What a precommit for a block locks on, and the prevotes of its round with which a quorum wanted it.

    Both go on disk with the precommit. The rest vote for the block again only once they have seen that quorum, and of
    a liar's part in it no second copy may be left anywhere.
    """

    proposal: Proposal
    prevotes: tuple[Vote, ...]


@dataclass(frozen=True, slots=True)
class CastVote:
    """Persist, sign and send this vote; a precommit for a block comes with its lock."""

    kind: VoteKind
    round: int
    block_hash: bytes
    lock: Lock | None = None


@dataclass(frozen=True, slots=True)
class ScheduleTimeout:
    """Give ``timeout`` to `Rounds.on_timeout` after this many milliseconds."""

    timeout: Timeout
    after_ms: int


@dataclass(frozen=True, slots=True)
class Decide:
    """The block is final."""

    block: Block
    commit: Commit


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Two different messages of one validator for one step, both with good signatures: proof that it lies."""

    validator: bytes
    first: Vote | Proposal
    second: Vote | Proposal


Effect = Propose | CastVote | ScheduleTimeout | Decide | Equivocation
