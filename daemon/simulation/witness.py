"""Sees every message and every final block of a life, and says at once when a promise is broken.

What must hold at every step, for honest nodes while liars have under a third of the stake:

- one final block for each height, one state root, and a commit over two thirds of that height's stake behind it;
- nobody who is honest signs two different votes of one kind, or two fresh blocks, in one round of a height, whatever
  restarts come between;
- nobody who is honest votes against its lock, unless a quorum for the other block came after it;
- units are conserved, and no node ever goes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

from moed.consensus.blocks import Commit, Proposal, Vote, VoteKind, check_commit
from moed.consensus.errors import RuleBroken
from moed.consensus.state import ValidatorSet, read_totals, units_in
from moed.consensus.transition import Executed, Head
from moed.consensus.turns import is_quorum, power_of, total_power

HEIGHTS_KEPT = 64


class InvariantBroken(AssertionError):
    """The life broke a promise; the message says which, when and between whom."""


@dataclass(slots=True)
class _Height:
    """What was said at one height: votes by validator, kind and round, and fresh blocks by proposer and round."""

    votes: dict[tuple[bytes, VoteKind, int], bytes] = field(default_factory=dict)
    prevotes: dict[tuple[int, bytes], set[bytes]] = field(default_factory=dict)
    locks: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    blocks: dict[tuple[bytes, int], bytes] = field(default_factory=dict)


class Witness:
    """Keeps what it saw and compares. Raises `InvariantBroken`."""

    def __init__(self, seed: int, now_s: Callable[[], float]) -> None:
        self._seed = seed
        self._now_s = now_s
        self._heights: dict[int, _Height] = {}
        self.finals: dict[int, tuple[bytes, bytes, int]] = {}
        self.rounds_over_zero = 0
        self._trace = blake2b(digest_size=16)

    @property
    def trace(self) -> str:
        """A hash of everything that became final, where and when."""
        return self._trace.hexdigest()

    def require(self, holds: bool, what: str) -> None:
        if not holds:
            raise InvariantBroken(f"seed {self._seed}, at {self._now_s():.3f} s: {what}")

    def saw(
        self, node: int, key: bytes, is_honest: bool, validators: ValidatorSet | None, said: Proposal | Vote
    ) -> None:
        """A node sends a message; ``validators`` is the set of its height if the node is at that height."""
        if isinstance(said, Proposal):
            if is_honest and said.valid_round == -1 and said.block.header.proposer == key:
                first = self._at(said.height).blocks.setdefault((key, said.round), said.block.hash)
                what = f"node {node} proposes two blocks in round {said.round} of height {said.height}"
                self.require(first == said.block.hash, what)
        elif said.validator == key:
            self._saw_vote(node, is_honest, validators, said)

    def _saw_vote(self, node: int, is_honest: bool, validators: ValidatorSet | None, vote: Vote) -> None:
        height = self._at(vote.height)
        place = (vote.validator, vote.kind, vote.round)
        if height.votes.get(place) == vote.block_hash:
            return
        if vote.kind is VoteKind.PREVOTE:
            height.prevotes.setdefault((vote.round, vote.block_hash), set()).add(vote.validator)
        first = height.votes.setdefault(place, vote.block_hash)
        if not is_honest:
            return
        what = f"node {node} signs two {vote.kind.name.lower()}s in round {vote.round} of height {vote.height}"
        self.require(first == vote.block_hash, what)
        if not vote.block_hash:
            return
        locked_round, locked = height.locks.get(vote.validator, (-1, vote.block_hash))
        if locked != vote.block_hash and vote.round > locked_round and validators is not None:
            rounds = range(locked_round, vote.round + (vote.kind is VoteKind.PRECOMMIT))
            self.require(
                any(self._has_quorum(height, validators, one, vote) for one in rounds),
                f"node {node}, locked in round {locked_round} of height {vote.height}, votes against its lock",
            )
        if vote.kind is VoteKind.PRECOMMIT and vote.round > locked_round:
            height.locks[vote.validator] = (vote.round, vote.block_hash)

    def _has_quorum(self, height: _Height, validators: ValidatorSet, round_number: int, vote: Vote) -> bool:
        # its own prevote may have been signed before a crash and never sent
        voters = height.prevotes.get((round_number, vote.block_hash), set()) | {vote.validator}
        return is_quorum(sum(power_of(validators, voter) for voter in voters), total_power(validators))

    def saw_final(self, node: int, head: Head, executed: Executed, commit: Commit) -> None:
        """An honest node is about to stand on a block; ``head`` is the one below it."""
        header = executed.block.header
        final = (header.hash, header.state_root, node)
        first = self.finals.setdefault(header.height, final)
        self.require(
            first[:2] == final[:2],
            f"block {header.height} is {first[0].hex()[:12]} on node {first[2]}, {final[0].hex()[:12]} on {node}",
        )
        try:
            check_commit(commit, header, head.validators, head.network_id)
        except RuleBroken as error:
            self.require(False, f"node {node} takes block {header.height} for final: {error}")
        self._trace.update(f"{self._now_s():.6f} {node} {header.height} {header.hash.hex()}".encode())
        if first is final:
            self.rounds_over_zero += commit.round > 0

    def saw_head(self, head: Head) -> None:
        """A node stands on a block: no unit was made or lost."""
        held, supply = units_in(head.state.records()), read_totals(head.state).supply
        self.require(held == supply, f"units {held} are not the supply {supply} at {head.height}")

    def _at(self, height: int) -> _Height:
        if height not in self._heights:
            self._heights[height] = _Height()
            for old in [one for one in self._heights if one < height - HEIGHTS_KEPT]:
                del self._heights[old]
        return self._heights[height]
