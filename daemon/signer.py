"""Signing votes and proposals so that no restart ever signs twice or forgets a lock: on disk first, then out.

What was signed at the height under way lies in a journal, together with what each precommit locks on: the proposal,
and the prevotes of others that the lock rests on (of the write-ahead log of Tendermint, what is needed). A step back
is refused; the same step again gives the same message for the same content and a refusal for any other.
"""

from __future__ import annotations

from dataclasses import dataclass

from moed.consensus.blocks import (
    Block,
    Proposal,
    Vote,
    VoteKind,
    proposal_payload,
    sign_proposal,
    sign_vote,
)
from moed.consensus.effects import Lock
from moed.protocol.codec import Record, decode_record, encode_record
from moed.protocol.errors import RemoteProtocolError
from moed.protocol.identity import Identity

from .errors import StoreCorrupt
from .journal import Journal

_PROPOSAL_STEP = 0  # comes before the two kinds of vote in a round


class JournalEntry(Record, frozen=True, kw_only=True):
    """One signed message of ours; beside a precommit for a block its lock: the proposal, and a quorum's prevotes."""

    vote: Vote | None = None
    proposal: Proposal | None = None
    locked_on: Proposal | None = None
    locked_by: tuple[Vote, ...] = ()


@dataclass(frozen=True, slots=True)
class Signed:
    """What we signed at one height before a restart, and the prevotes that our locks rest on."""

    proposals: tuple[Proposal, ...] = ()
    votes: tuple[Vote, ...] = ()
    prevotes: tuple[Vote, ...] = ()


class Signer:
    """Signs for one validator key. Blocks on the journal; callers run it in a thread."""

    def __init__(self, identity: Identity, network_id: bytes, journal: Journal) -> None:
        """Read what was signed before. Raises `StoreCorrupt` if the journal holds something else."""
        self._identity = identity
        self._network_id = network_id
        self._journal = journal
        self._height = 0
        self._messages: dict[tuple[int, int], tuple[bytes, Vote | Proposal]] = {}
        self._locks: dict[bytes, Lock] = {}
        for data in journal.entries():
            try:
                self._remember(decode_record(data, JournalEntry, max_bytes=len(data)))
            except RemoteProtocolError as error:
                raise StoreCorrupt(
                    f"the record of what this validator signed does not parse: {error}",
                    "restore it from a backup; without it this key could sign twice and be slashed",
                ) from error

    def signed_at(self, height: int) -> Signed:
        """What we signed at ``height``, for the rounds to go on from; nothing if we never got there."""
        if height != self._height:
            return Signed()
        messages = [message for _, message in self._messages.values()]
        own = [message for message in messages if isinstance(message, Proposal)]
        locks = self._locks.values()
        known = {proposal.round: proposal for proposal in (*(lock.proposal for lock in locks), *own)}
        votes = tuple(message for message in messages if isinstance(message, Vote))
        return Signed(tuple(known.values()), votes, tuple(vote for lock in locks for vote in lock.prevotes))

    def vote(
        self, kind: VoteKind, height: int, round_number: int, block_hash: bytes, lock: Lock | None = None
    ) -> Vote | None:
        """A signed vote, or None if something later, or something else at this step, was signed before.

        ``lock`` is what a precommit for a block locks on: after a restart it must be known again, and why it was right.
        """
        step = (round_number, int(kind))
        known = self._known(height, step, block_hash)
        if known is not _NEW:
            return known if isinstance(known, Vote) else None
        vote = sign_vote(self._identity, self._network_id, kind, height, round_number, block_hash)
        entry = JournalEntry(vote=vote)
        if lock is not None:
            entry = JournalEntry(vote=vote, locked_on=lock.proposal, locked_by=lock.prevotes)
        self._persist(entry, height)
        return vote

    def proposal(self, round_number: int, valid_round: int, block: Block) -> Proposal | None:
        """A signed proposal, or None if something later, or another proposal for this round, was signed before."""
        content = proposal_payload(block.height, round_number, valid_round, block.hash)
        known = self._known(block.height, (round_number, _PROPOSAL_STEP), content)
        if known is not _NEW:
            return known if isinstance(known, Proposal) else None
        proposal = sign_proposal(self._identity, self._network_id, round_number, valid_round, block)
        self._persist(JournalEntry(proposal=proposal), block.height)
        return proposal

    def _known(self, height: int, step: tuple[int, int], content: bytes) -> Vote | Proposal | object | None:
        """The message signed at this step before, None if it must not be signed, `_NEW` if it may."""
        if height < self._height:
            return None
        if height > self._height:
            return _NEW
        if step in self._messages:
            signed_content, message = self._messages[step]
            return message if signed_content == content else None
        return _NEW if not self._messages or step > max(self._messages) else None

    def _persist(self, entry: JournalEntry, height: int) -> None:
        encoded = encode_record(entry)
        if height > self._height:
            self._journal.supersede(encoded)
        else:
            self._journal.append(encoded)
        self._remember(entry)

    def _remember(self, entry: JournalEntry) -> None:
        message = entry.vote or entry.proposal
        if message is None:
            return
        if message.height > self._height:
            self._height = message.height
            self._messages.clear()
            self._locks.clear()
        if isinstance(message, Vote):
            self._messages[message.round, int(message.kind)] = (message.block_hash, message)
        else:
            content = proposal_payload(message.height, message.round, message.valid_round, message.block.hash)
            self._messages[message.round, _PROPOSAL_STEP] = (content, message)
        if entry.locked_on is not None:
            self._locks[entry.locked_on.block.hash] = Lock(entry.locked_on, entry.locked_by)


_NEW = object()
