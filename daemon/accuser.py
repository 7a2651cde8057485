"""Brings evidence of lies to the ledger, and again after each block until the ledger has judged it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from moed.consensus.effects import Equivocation
from moed.consensus.errors import EvidenceRefused, InvalidTransaction
from moed.consensus.evidence import Evidence
from moed.consensus.mempool import Mempool
from moed.consensus.staking import check_evidence
from moed.consensus.transactions import Body, ReportEvidence, SignedTransaction
from moed.consensus.transition import Head

from .judging import evidence_of

logger = structlog.get_logger()

MAX_OPEN = 256
"""Offences that this node goes on reporting; one punishment settles all of a validator's so far."""


class Accuser:
    """What this node has seen of lies and the ledger has not judged yet; one report for each validator and height."""

    def __init__(self, head: Head, mempool: Mempool, submit: Callable[[Body], Awaitable[SignedTransaction]]) -> None:
        self._head = head
        self._mempool = mempool
        self._submit = submit
        self._open: dict[tuple[bytes, int], Evidence] = {}
        self._sent: dict[tuple[bytes, int], SignedTransaction] = {}
        self._seen: set[tuple[bytes, int]] = set()

    async def accuse(self, lie: Equivocation, *, reports: bool) -> None:
        """Note a lie, and with ``reports`` bring it to the ledger from now on."""
        offence = (lie.validator, lie.first.height)
        if offence in self._seen:
            return
        self._seen.add(offence)
        logger.error("chain.equivocation", validator=lie.validator.hex(), height=lie.first.height)
        if reports and len(self._open) < MAX_OPEN:
            self._open[offence] = evidence_of(lie)
            await self._send(offence)

    async def after_block(self) -> None:
        """Drop what the ledger has judged, or never will; send again what no longer waits."""
        self._seen.clear()
        for offence, evidence in list(self._open.items()):
            try:
                check_evidence(self._head.state, evidence, self._head.params, self._head.height + 1)
            except EvidenceRefused:
                del self._open[offence]
                self._sent.pop(offence, None)
                continue
            if offence not in self._sent or self._sent[offence] not in self._mempool:
                await self._send(offence)

    async def _send(self, offence: tuple[bytes, int]) -> None:
        try:
            self._sent[offence] = await self._submit(ReportEvidence(evidence=self._open[offence]))
        except InvalidTransaction as error:
            logger.warning("chain.evidence_unsent", code=error.code, reason=str(error))
