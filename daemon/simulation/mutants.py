"""Planted bugs: the simulation is worth something if it finds each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from moed.consensus.blocks import NO_BLOCK, Block, Proposal, Vote, sign_proposal, sign_vote
from moed.consensus.rounds import Rounds
from moed.consensus.state import ValidatorSet
from moed.consensus.tally import Tally
from moed.daemon.chain import Chain
from moed.daemon.signer import Signer
from moed.protocol.codec import encode_record

from .disk import SimulatedJournal


def _count_votes_twice() -> Iterator[Any]:
    """A vote that comes again adds its stake again."""
    honest = Tally.add

    def add(self: Tally, vote: Vote) -> Vote | None:
        ballot = self._ballots.get((vote.kind, vote.round))
        if ballot is not None and vote.block_hash in ballot.votes.get(vote.validator, {}):
            ballot.power += self.power(vote.validator)
            ballot.power_by_hash[vote.block_hash] += self.power(vote.validator)
            return None
        return honest(self, vote)

    yield patch.object(Tally, "add", add)
    # and nobody stops it on the way there
    yield patch.object(Tally, "has_vote", lambda *_: False)
    yield patch("moed.daemon.gossip.Known.meet", lambda *_: False)


def _skip_the_journal() -> Iterator[Any]:
    """Votes and proposals go out without having been written down."""
    yield patch.object(SimulatedJournal, "append", lambda *_: None)
    yield patch.object(SimulatedJournal, "supersede", lambda *_: None)


def _write_after_sending() -> Iterator[Any]:
    """Messages are sent first and written down then: a power cut in between makes them forgotten."""
    honest = Chain._cast  # noqa: SLF001  # a bug is planted where it would be made

    async def cast(self: Chain, vote: Any) -> Any:
        if self._signer is None:
            return []
        signer, height = self._signer, self._rounds.height
        known = signer._known(height, (vote.round, int(vote.kind)), vote.block_hash)  # noqa: SLF001  # as above
        if known is not None and not isinstance(known, Vote):
            early = sign_vote(self._identity, self.head.network_id, vote.kind, height, vote.round, vote.block_hash)
            await self._gossip.tell_all("chain.vote", encode_record(early))
        return await honest(self, vote)

    def proposal(self: Signer, round_number: int, valid_round: int, block: Block) -> Proposal | None:
        return sign_proposal(self._identity, self._network_id, round_number, valid_round, block)

    yield patch.object(Chain, "_cast", cast)
    yield patch.object(Signer, "proposal", proposal)


def _drop_the_lock() -> Iterator[Any]:
    """A validator votes for a fresh block although it is locked on another one."""
    for name in ("_rule_2_fresh_proposal", "_rule_3_proposal_again"):
        yield patch.object(Rounds, name, _unlocked(getattr(Rounds, name)))


def _unlocked(rule: Callable[[Rounds], Any]) -> Callable[[Rounds], Any]:
    def forgetful(self: Rounds) -> Any:
        locked, self._locked = self._locked, (-1, NO_BLOCK)
        try:
            return rule(self)
        finally:
            self._locked = locked

    return forgetful


def _forget_the_lock_at_a_restart() -> Iterator[Any]:
    """What was signed is known again after a restart, what was locked is not."""
    honest = Rounds.resume

    def resume(self: Rounds, proposals: Any, votes: Any) -> None:
        honest(self, proposals, votes)
        self._locked, self._valid = (-1, NO_BLOCK), (-1, None)

    yield patch.object(Rounds, "resume", resume)


def _keep_the_old_validators() -> Iterator[Any]:
    """The set of validators is read when a node starts, and never again."""
    honest = Rounds.__init__
    sets: dict[Any, ValidatorSet] = {}

    def make(self: Chain) -> Rounds:
        rounds = original(self)
        first = sets.setdefault(self, rounds.tally.validators)
        honest(
            rounds,
            rounds.height,
            first,
            self._identity.public_key,
            params=self.head.params,
            network_id=self.head.network_id,
            is_valid=self._judge.holds,
        )
        return rounds

    original = Chain._new_rounds  # noqa: SLF001  # as above
    yield patch.object(Chain, "_new_rounds", make)


MUTANTS: dict[str, Callable[[], Iterator[Any]]] = {
    "vote-twice": _count_votes_twice,
    "no-journal": _skip_the_journal,
    "late-journal": _write_after_sending,
    "no-lock": _drop_the_lock,
    "lock-forgotten": _forget_the_lock_at_a_restart,
    "old-validators": _keep_the_old_validators,
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Run what is inside with a bug of this name in every node."""
    with ExitStack() as stack:
        for change in MUTANTS[name]():
            stack.enter_context(change)
        yield
