"""What a transaction costs, so that filling blocks costs its sender something.

What the protocol asks of its members is free, and bounded by its own rules instead: registrations by their number in a
block, weights by one of each kind in an epoch, evidence by being true.
"""

from __future__ import annotations

from .params import ChainParams
from .state import StateReader
from .transactions import CommitWeights, Register, ReportEvidence, RevealWeights, SetWeights, SignedTransaction
from .weighing import is_first_of_epoch


def fee_of(state: StateReader, transaction: SignedTransaction, params: ChainParams) -> int:
    """Units that the sender pays for its place in a block, by the bytes that it takes."""
    match transaction.body:
        case Register() | ReportEvidence():
            return 0
        case SetWeights() | CommitWeights() | RevealWeights() as body:
            if is_first_of_epoch(state, transaction.sender, body):
                return 0
    return params.fee_per_byte * transaction.size_bytes if params.fee_per_byte else 0
