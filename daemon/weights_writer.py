"""Writes a validator's weights to the chain: in the open, or hashed in one epoch and shown in the next.

What is hashed must outlive a restart, or the epoch is lost: it is on disk before its hash is sent.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated

import structlog
from msgspec import Meta

from moed.consensus.errors import InvalidTransaction
from moed.consensus.state import Neuron, read_account, read_neuron, read_totals
from moed.consensus.transactions import (
    SALT_BYTES,
    Body,
    CommitWeights,
    RevealWeights,
    SetWeights,
    WeightRow,
    weights_commitment,
)
from moed.protocol.codec import Record, decode_record, encode_record

from .chain import Chain

logger = structlog.get_logger()

WEIGHTS_AT = 0.6
"""Where in the epoch the weights go out: late enough to have learned, early enough to be in a block."""
NOTE = "unrevealed weights"
"""Under which name the store keeps what we have not shown yet."""

Weigh = Callable[[], Awaitable[Mapping[int, int]]]


class Hidden(Record, frozen=True, kw_only=True):
    """A row that we committed to, and what opens the commitment."""

    weights: WeightRow
    salt: bytes


class _Note(Record, frozen=True, kw_only=True):
    rows: Annotated[tuple[Hidden, ...], Meta(max_length=2)] = ()


class WeightsWriter:
    """Writes one row in each epoch, and shows the one of the epoch before where the network hides them first."""

    def __init__(self, chain: Chain, public_key: bytes) -> None:
        self._chain = chain
        self._public_key = public_key
        self._hidden: tuple[Hidden, ...] = ()
        self._written_epoch = -1

    async def run(self, weigh: Weigh) -> None:
        """On each block see what is due, until cancelled; ``weigh`` gives {uid: weight}, empty for nothing to say."""
        kept = await self._chain.recall(NOTE)
        if kept is not None:
            self._hidden = decode_record(kept, _Note).rows
        while True:
            height = await self._chain.wait_block()
            neuron = self._neuron()
            # what waits for a block may be this very row
            if neuron is None or not neuron.has_permit or self._chain.has_waiting:
                continue
            epoch, position = read_totals(self._chain.head.state).epoch, height % self._chain.head.params.tempo
            await self._reveal(neuron, epoch)
            if epoch != self._written_epoch and position >= WEIGHTS_AT * self._chain.head.params.tempo:
                row = tuple(sorted((uid, weight) for uid, weight in (await weigh()).items() if weight))
                if row and await self._write(row):
                    self._written_epoch = epoch

    def _neuron(self) -> Neuron | None:
        uid = read_account(self._chain.head.state, self._public_key).uid
        return None if uid is None else read_neuron(self._chain.head.state, uid)

    async def _reveal(self, neuron: Neuron, epoch: int) -> None:
        """Show the row whose hash the chain took in the epoch before, if it is ours to show and not yet shown."""
        due = {commit.commitment for commit in neuron.commits if commit.epoch == epoch - 1}
        for hidden in self._hidden:
            if weights_commitment(self._public_key, hidden.salt, hidden.weights) in due:
                await self._submit(RevealWeights(weights=hidden.weights, salt=hidden.salt), hidden.weights)

    async def _write(self, row: WeightRow) -> bool:
        if not self._chain.head.params.commit_reveal:
            return await self._submit(SetWeights(weights=row), row)
        hidden = Hidden(weights=row, salt=secrets.token_bytes(SALT_BYTES))
        # the newest is to be shown in the next epoch, the one before it may still wait to be
        self._hidden = (*self._hidden[-1:], hidden)
        await self._chain.remember(NOTE, encode_record(_Note(rows=self._hidden)))
        commitment = weights_commitment(self._public_key, hidden.salt, row)
        return await self._submit(CommitWeights(commitment=commitment), row)

    async def _submit(self, body: Body, row: WeightRow) -> bool:
        """Send one transaction; False if it is refused."""
        kind = body.__struct_config__.tag
        try:
            await self._chain.submit(body)
        except InvalidTransaction as error:
            logger.warning("validator.weights_refused", kind=kind, code=error.code, reason=str(error))
            return False
        # A hidden row is not told before its epoch: whoever read the log could copy it.
        logger.info("validator.weights_submitted", kind=kind, uids=len(row))
        return True
