"""Agreement on one block of one height: the rules of Tendermint by stake, as a machine that never waits.

The rules and their numbers are those of "The latest gossip on BFT consensus" (Buchman, Kwon, Milosevic,
arXiv 1807.04938, algorithm 1). The machine takes proposals, votes and time-outs, and returns effects: what to
sign, what to schedule, what is decided. Whoever carries the effects out puts a vote on disk before it goes on the
wire, sends it, and gives it back here; the machine counts its own votes like anybody's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from moed.protocol.errors import Malformed, Unexpected

from .blocks import MAX_ROUND, NO_BLOCK, Block, Proposal, Vote, VoteKind
from .effects import CastVote, Decide, Effect, Equivocation, Lock, Propose, ScheduleTimeout, Step, Timeout
from .params import ChainParams
from .state import ValidatorSet
from .tally import Tally
from .turns import next_turn, power_of

MAX_ROUNDS_AHEAD = 50
"""Proposals further ahead than this are refused, and of votes the latest of each validator is kept: memory stays
bounded whatever peers send, and who was away for long still hears where the others are."""


class Rounds:
    """The agreement on one height. ``me`` is our key, or None for a node that only watches."""

    def __init__(
        self,
        height: int,
        validators: ValidatorSet,
        me: bytes | None,
        *,
        params: ChainParams,
        network_id: bytes,
        is_valid: Callable[[Block], bool],
        is_timely: Callable[[Block], bool] = lambda _: True,
    ) -> None:
        """``is_valid`` judges a block of this height by the chain's rules; it is asked once for each block.

        ``is_timely`` judges its time by our clock. It counts for a fresh proposal alone: what a quorum has seen in time
        is not refused for a clock of ours that is behind.
        """
        self.height = height
        self.round = 0
        self.step = Step.WAITING
        self.tally = Tally(validators)
        self.proposals: dict[int, Proposal] = {}
        self._me = me if me is not None and power_of(validators, me) else None
        self._params = params
        self._network_id = network_id
        self._is_valid = is_valid
        self._is_timely = is_timely
        self._contradicted: set[int] = set()
        self._validity: dict[bytes, bool] = {}
        self._locked: tuple[int, bytes] = (-1, NO_BLOCK)
        self._valid: tuple[int, Block | None] = (-1, None)
        self._fired: set[tuple[str, int]] = set()
        self._resumed: tuple[int, Step] | None = None
        self._turns: list[bytes] = []
        self._next_turn = validators

    # what comes in

    def start(self) -> list[Effect]:
        """Begin round 0: the block interval has passed."""
        if self.step != Step.WAITING:
            return []
        if self._resumed is None:
            return self._start_round(0) + self._react()
        self.round, self.step = self._resumed
        if self.step == Step.PROPOSE:
            return [self._schedule(Step.PROPOSE, self._params.timeout_propose_ms), *self._react()]
        return self._react()

    def resume(self, proposals: Iterable[Proposal], votes: Iterable[Vote], prevotes: Iterable[Vote] = ()) -> None:
        """Before `start`: take back what we signed at this height before a restart, and the lock that follows from it.

        ``prevotes`` are those that our locks rest on, others' among them. The machine then starts in the round and
        step that were signed last, never votes against its own lock, and can show the others what it rests on.
        """
        for vote in prevotes:
            self.tally.add(vote)
        for proposal in proposals:
            self.proposals.setdefault(proposal.round, proposal)
        last = (-1, Step.WAITING)
        for proposal in self.proposals.values():
            last = max(last, (proposal.round, Step.PROPOSE))
        for vote in votes:
            self.tally.add(vote)
            last = max(last, (vote.round, Step.PREVOTE if vote.kind is VoteKind.PREVOTE else Step.PRECOMMIT))
            if vote.kind is VoteKind.PRECOMMIT and vote.block_hash != NO_BLOCK and vote.round > self._locked[0]:
                self._locked = (vote.round, vote.block_hash)
                self._valid = (vote.round, self._find_block(vote.block_hash))
        self._resumed = last if last[0] >= 0 else None

    def is_in_reach(self, round_number: int) -> bool:
        """Whether a proposal for this round is taken now."""
        return round_number <= min(self.round + MAX_ROUNDS_AHEAD, MAX_ROUND)

    def check_author(self, proposal: Proposal) -> None:
        """Raise as `check_proposal` does unless a proposal is of whose turn it is; its contents are only counted."""
        self._require_this_height(proposal.height)
        if not self.is_in_reach(proposal.round):
            raise Unexpected(f"a proposal for round {proposal.round} while in round {self.round}")
        proposal.check_signature(self._network_id, self.turn(proposal.round))
        if proposal.valid_round >= proposal.round:
            raise Unexpected(f"a valid round of {proposal.valid_round} is not before round {proposal.round}")
        limit, count = self._params.max_block_transactions, len(proposal.block.transactions)
        if count > limit:  # of many turns ahead at once it would take memory, and nobody could vote for it
            raise Malformed(f"a proposed block of {count} transactions; {limit} are allowed")
        self._require_its_author(proposal)

    def check_proposal(self, proposal: Proposal) -> None:
        """Raise `Unexpected`, `BadSignature` or `Malformed` unless this is a proposal of whose turn it is, whole.

        Whether its block holds is another question, and costs more.
        """
        self.check_author(proposal)
        # The signature covers the header alone: whoever passes the proposal on could put another body behind it, and
        # the honest one would then count as known, and its hash as that of an invalid block.
        if not proposal.block.is_whole:
            raise Malformed("the proposed block does not hold what its header names")

    def on_proposal(self, proposal: Proposal) -> list[Effect]:
        """Take a proposal that `check_proposal` has let pass, or one of our own; the first one of a round stays."""
        known = self.proposals.setdefault(proposal.round, proposal)
        lied: list[Effect] = []
        if known.content != proposal.content:
            self._contradicted.add(proposal.round)
            lied = [Equivocation(self.turn(proposal.round), known, proposal)]
        return lied + self._react()

    def has_proposal(self, proposal: Proposal) -> bool:
        """Whether a proposal says nothing new: what the first of its round says, or a third thing where two are enough.

        Contents are compared, since a proposer can give the same one as many signatures as it likes.
        """
        known = self.proposals.get(proposal.round)
        return known is not None and (known.content == proposal.content or proposal.round in self._contradicted)

    def on_vote(self, vote: Vote) -> list[Effect]:
        """Take a vote. Raises `Unexpected` or `BadSignature`; then nothing changed."""
        self._require_this_height(vote.height)
        if self.tally.power(vote.validator) == 0:
            raise Unexpected("a vote by a key that is no validator of this height")
        vote.check_signature(self._network_id)
        if vote.round > self.round + MAX_ROUNDS_AHEAD:
            self.tally.keep_far(vote)
            return self._react()
        earlier = self.tally.add(vote)
        lied: list[Effect] = [Equivocation(vote.validator, earlier, vote)] if earlier is not None else []
        return lied + self._react()

    def on_timeout(self, timeout: Timeout) -> list[Effect]:
        """Take a time-out; a stale one changes nothing (rules T1 to T3)."""
        if (timeout.height, timeout.round) != (self.height, self.round) or self.step == Step.DECIDED:
            return []
        if timeout.step == Step.PROPOSE and self.step == Step.PROPOSE:
            return self._cast(VoteKind.PREVOTE, NO_BLOCK) + self._react()
        if timeout.step == Step.PREVOTE and self.step == Step.PREVOTE:
            return self._cast(VoteKind.PRECOMMIT, NO_BLOCK) + self._react()
        if timeout.step == Step.PRECOMMIT:
            return self._start_round(self.round + 1) + self._react()
        return []

    def has_vote(self, vote: Vote) -> bool:
        """Whether this validator's vote of that round and kind is counted already."""
        return self.tally.has_vote(vote)

    def counts(self, vote: Vote) -> bool:
        """Whether a vote stands in a ballot: not so one of a far round, nor the fifth of a liar for one step."""
        return self.tally.counts(vote)

    def turn(self, round_number: int) -> bytes:
        """The key whose turn it is to propose in a round."""
        while len(self._turns) <= round_number:
            self._next_turn, chosen = next_turn(self._next_turn)
            self._turns.append(chosen)
        return self._turns[round_number]

    def news(self) -> tuple[list[Proposal], list[Vote]]:
        """What a peer may need that missed everything: the rounds in which something can still be decided or locked.

        Not the whole height: a height that stands still for a hundred rounds must not be told again in full.
        """
        wanted = {self.round - 1, self.round, self._locked[0], self._valid[0]}
        # the quorum that a proposal names: a restart may have left nobody who holds all of it
        wanted.update(one.valid_round for one in self.proposals.values() if one.round >= self.round - 1)
        wanted.update(one for one in self.tally.rounds() if one > self.round)
        wanted.update(one for one in self.tally.rounds() if self.tally.quorum_hash(VoteKind.PRECOMMIT, one))
        proposals = [proposal for proposal in self.proposals.values() if proposal.round in wanted]
        return proposals, [*self.tally.votes(wanted), *self.tally.far_votes()]

    def missing(self) -> list[bytes]:
        """The validators of whom nothing was heard in the round under way; with over a third of the stake it stands."""
        heard = self.tally.voters(self.round)
        return [member.key for member in self.tally.validators.members if member.key not in heard]

    def _require_this_height(self, height: int) -> None:
        if height != self.height:
            raise Unexpected(f"a message for height {height} while deciding {self.height}")

    def _require_its_author(self, proposal: Proposal) -> None:
        """A block names whose turn made it: this round's for a fresh one, an earlier one's for one proposed again."""
        turns = range(proposal.valid_round + 1) if proposal.valid_round >= 0 else (proposal.round,)
        if proposal.block.header.proposer not in {self.turn(one) for one in turns}:
            raise Unexpected("the proposed block names as its proposer one whose turn it was not")

    # the rules

    def _react(self) -> list[Effect]:
        """Apply the rules until none has anything more to do."""
        effects: list[Effect] = []
        rules = (
            self._rule_8_decide,
            self._rule_9_catch_up,
            self._rule_2_fresh_proposal,
            self._rule_3_proposal_again,
            self._rule_4_wait_for_prevotes,
            self._rule_5_lock,
            self._rule_6_nil,
            self._rule_7_wait_for_precommits,
        )
        progressed = True
        while progressed and self.step != Step.DECIDED:
            progressed = False
            for rule in rules:
                done = rule()
                if done is not None:
                    effects += done
                    progressed = True
                    break
        return effects

    def _start_round(self, round_number: int) -> list[Effect]:
        """Rule 1: propose if it is our turn, else wait for the proposal."""
        self.round = round_number
        self.step = Step.PROPOSE
        for vote in self.tally.take_far(round_number + MAX_ROUNDS_AHEAD):
            self.tally.add(vote)
        effects: list[Effect] = [self._schedule(Step.PROPOSE, self._params.timeout_propose_ms)]
        if self.turn(round_number) == self._me:
            valid_round, block = self._valid
            effects.append(Propose(round_number, valid_round, block))
        return effects

    def _rule_2_fresh_proposal(self) -> list[Effect] | None:
        proposal = self.proposals.get(self.round)
        if self.step != Step.PROPOSE or proposal is None or proposal.valid_round != -1:
            return None
        locked_round, locked_hash = self._locked
        may = locked_round == -1 or locked_hash == proposal.block.hash
        return self._cast(VoteKind.PREVOTE, self._if_valid(proposal.block, may and self._is_timely(proposal.block)))

    def _rule_3_proposal_again(self) -> list[Effect] | None:
        proposal = self.proposals.get(self.round)
        if self.step != Step.PROPOSE or proposal is None or proposal.valid_round == -1:
            return None
        block_hash = proposal.block.hash
        if not self.tally.has_quorum(VoteKind.PREVOTE, proposal.valid_round, block_hash):
            return None
        locked_round, locked_hash = self._locked
        may = locked_round <= proposal.valid_round or locked_hash == block_hash
        return self._cast(VoteKind.PREVOTE, self._if_valid(proposal.block, may))

    def _rule_4_wait_for_prevotes(self) -> list[Effect] | None:
        if self.step != Step.PREVOTE or not self.tally.has_quorum_of_any(VoteKind.PREVOTE, self.round):
            return None
        return self._once("prevote wait", self._schedule(Step.PREVOTE, self._params.timeout_vote_ms))

    def _rule_5_lock(self) -> list[Effect] | None:
        proposal = self.proposals.get(self.round)
        if self.step < Step.PREVOTE or proposal is None:
            return None
        block_hash = proposal.block.hash
        if not self.tally.has_quorum(VoteKind.PREVOTE, self.round, block_hash):
            return None
        if ("lock", self.round) in self._fired or not self._judge(proposal.block):
            return None
        self._fired.add(("lock", self.round))
        # valid moves even when the lock does not: a later proposer then offers what a quorum wanted
        self._valid = (self.round, proposal.block)
        if self.step != Step.PREVOTE:
            return []
        self._locked = (self.round, block_hash)
        prevotes = self.tally.votes_for(VoteKind.PREVOTE, self.round, block_hash)
        return self._cast(VoteKind.PRECOMMIT, block_hash, Lock(proposal, prevotes))

    def _rule_6_nil(self) -> list[Effect] | None:
        if self.step != Step.PREVOTE:
            return None
        if not self.tally.has_quorum(VoteKind.PREVOTE, self.round, NO_BLOCK):
            return None
        return self._cast(VoteKind.PRECOMMIT, NO_BLOCK)

    def _rule_7_wait_for_precommits(self) -> list[Effect] | None:
        if self.step == Step.WAITING or not self.tally.has_quorum_of_any(VoteKind.PRECOMMIT, self.round):
            return None
        return self._once("precommit wait", self._schedule(Step.PRECOMMIT, self._params.timeout_vote_ms))

    def _rule_8_decide(self) -> list[Effect] | None:
        # also for rounds that are over, and before our own start: a quorum is a quorum
        for round_number in self.tally.rounds():
            block_hash = self.tally.quorum_hash(VoteKind.PRECOMMIT, round_number)
            if not block_hash:
                continue
            block = self._find_block(block_hash)
            if block is None or not self._judge(block):
                continue
            self.step = Step.DECIDED
            return [Decide(block, self.tally.commit(self.height, round_number, block_hash))]
        return None

    def _rule_9_catch_up(self) -> list[Effect] | None:
        if self.step == Step.WAITING:
            return None
        # over one third of the stake is there or further, so at least one honest validator is
        there = self.tally.round_of_a_third()
        return self._start_round(there) if there > self.round else None

    # their parts

    def _cast(self, kind: VoteKind, block_hash: bytes, lock: Lock | None = None) -> list[Effect]:
        self.step = Step.PREVOTE if kind is VoteKind.PREVOTE else Step.PRECOMMIT
        return [CastVote(kind, self.round, block_hash, lock)] if self._me is not None else []

    def _schedule(self, step: Step, base_ms: int) -> ScheduleTimeout:
        after_ms = base_ms + self.round * self._params.timeout_delta_ms
        return ScheduleTimeout(Timeout(self.height, self.round, step), after_ms)

    def _once(self, name: str, effect: Effect) -> list[Effect] | None:
        if (name, self.round) in self._fired:
            return None
        self._fired.add((name, self.round))
        return [effect]

    def _if_valid(self, block: Block, may: bool) -> bytes:
        return block.hash if may and self._judge(block) else NO_BLOCK

    def _judge(self, block: Block) -> bool:
        block_hash = block.hash
        if block_hash not in self._validity:
            self._validity[block_hash] = self._is_valid(block)
        return self._validity[block_hash]

    def _find_block(self, block_hash: bytes) -> Block | None:
        blocks = (proposal.block for proposal in self.proposals.values())
        return next((block for block in blocks if block.hash == block_hash), None)
