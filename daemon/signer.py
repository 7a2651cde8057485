"""Signing votes and proposals so that no restart ever signs twice: on disk first, then out.

The last signed step is kept in its own file, replaced and synced before a signature leaves. A step back is
refused; the same step again gives the same signature for the same content and a refusal for any other.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from moed.consensus.blocks import Block, Proposal, Vote, VoteKind, proposal_payload, sign_proposal, sign_vote
from moed.protocol.codec import Record, decode_record, encode_record
from moed.protocol.errors import RemoteProtocolError
from moed.protocol.identity import Identity

from .errors import StoreCorrupt, StoreFailed

_PROPOSAL_STEP = 0  # comes before the two kinds of vote in a round


class SignedStep(Record, frozen=True, kw_only=True):
    """The last thing signed: where in the chain, and what."""

    height: Annotated[int, Meta(ge=0)] = 0
    round: Annotated[int, Meta(ge=0)] = 0
    step: Annotated[int, Meta(ge=0, le=2)] = 0
    content: bytes = b""


class Signer:
    """Signs for one validator key. Blocks on the disk; callers run it in a thread."""

    def __init__(self, identity: Identity, network_id: bytes, path: Path) -> None:
        """Read the last signed step from ``path``. Raises `StoreCorrupt` if the file is not one."""
        self._identity = identity
        self._network_id = network_id
        self._path = path
        self._last = SignedStep()
        try:
            self._last = decode_record(path.read_bytes(), SignedStep)
        except FileNotFoundError:
            pass
        except RemoteProtocolError as error:
            raise StoreCorrupt(
                f"{path} is no record of what this validator signed: {error}",
                "restore it from a backup; without it this key could sign twice and be slashed",
            ) from error

    def vote(self, kind: VoteKind, height: int, round_number: int, block_hash: bytes) -> Vote | None:
        """A signed vote, or None if something later, or something else at this step, was signed before."""
        if not self._advance(SignedStep(height=height, round=round_number, step=int(kind), content=block_hash)):
            return None
        return sign_vote(self._identity, self._network_id, kind, height, round_number, block_hash)

    def proposal(self, round_number: int, valid_round: int, block: Block) -> Proposal | None:
        """A signed proposal, or None if something later, or another proposal for this round, was signed before."""
        content = proposal_payload(block.height, round_number, valid_round, block.hash)
        step = SignedStep(height=block.height, round=round_number, step=_PROPOSAL_STEP, content=content)
        if not self._advance(step):
            return None
        return sign_proposal(self._identity, self._network_id, round_number, valid_round, block)

    def _advance(self, step: SignedStep) -> bool:
        here = (step.height, step.round, step.step)
        last = (self._last.height, self._last.round, self._last.step)
        if here == last:
            return step.content == self._last.content
        if here < last:
            return False
        self._persist(step)
        self._last = step
        return True

    def _persist(self, step: SignedStep) -> None:
        temporary = self._path.with_suffix(".tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.write(descriptor, encode_record(step))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StoreFailed(
                f"cannot write {self._path}: {error.strerror}", "check the disk; nothing was signed"
            ) from error
