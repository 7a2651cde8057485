"""Signing votes and proposals so that no restart ever signs twice or forgets a lock: on disk first, then out.

What was signed at the height under way lies in a journal, together with the proposal that each precommit locks on
(the write-ahead log of Tendermint, for our own part). A step back is refused; the same step again gives the same
message for the same content and a refusal for any other.
"""

from __future__ import annotations

from dataclasses import dataclass

from moed.consensus.blocks import (
    NO_BLOCK,
    Block,
    Proposal,
    Vote,
    VoteKind,
    proposal_payload,
    sign_proposal,
    sign_vote,
)
from moed.protocol.codec import Record, decode_record, encode_record
from moed.protocol.errors import RemoteProtocolError
from moed.protocol.identity import Identity

from .errors import StoreCorrupt
from .journal import Journal

_PROPOSAL_STEP = 0  # comes before the two kinds of vote in a round


class JournalEntry(Record, frozen=True, kw_only=True):
    """One signed message of ours; or, beside a precommit, the proposal of somebody that it locks on."""

    vote: Vote | None = None
    proposal: Proposal | None = None
    locked_on: Proposal | None = None


@dataclass(frozen=True, slots=True)
class Signed:
    """What we signed at one height before a restart."""

    proposals: tuple[Proposal, ...] = ()
    votes: tuple[Vote, ...] = ()


class Signer:
    """Signs for one validator key. Blocks on the journal; callers run it in a thread."""

    def __init__(self, identity: Identity, network_id: bytes, journal: Journal) -> None:
        """Read what was signed before. Raises `StoreCorrupt` if the journal holds something else."""
        self._identity = identity
        self._network_id = network_id
        self._journal = journal
        self._height = 0
        self._messages: dict[tuple[int, int], tuple[bytes, Vote | Proposal]] = {}
        self._locked_on: dict[bytes, Proposal] = {}
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
        known = {proposal.round: proposal for proposal in (*self._locked_on.values(), *own)}
        votes = tuple(message for message in messages if isinstance(message, Vote))
        return Signed(tuple(known.values()), votes)

    def vote(
        self, kind: VoteKind, height: int, round_number: int, block_hash: bytes, locks_on: Proposal | None = None
    ) -> Vote | None:
        """A signed vote, or None if something later, or something else at this step, was signed before.

        ``locks_on`` is the proposal that a precommit is for: after a restart the lock must be known again.
        """
        step = (round_number, int(kind))
        known = self._known(height, step, block_hash)
        if known is not _NEW:
            return known if isinstance(known, Vote) else None
        vote = sign_vote(self._identity, self._network_id, kind, height, round_number, block_hash)
        self._persist(JournalEntry(vote=vote, locked_on=locks_on if block_hash != NO_BLOCK else None), height)
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
            self._locked_on.clear()
        if isinstance(message, Vote):
            self._messages[message.round, int(message.kind)] = (message.block_hash, message)
        else:
            content = proposal_payload(message.height, message.round, message.valid_round, message.block.hash)
            self._messages[message.round, _PROPOSAL_STEP] = (content, message)
        if entry.locked_on is not None:
            self._locked_on[entry.locked_on.block.hash] = entry.locked_on


_NEW = object()
