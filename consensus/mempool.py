"""Transactions that wait for a block: by sender and nonce, bounded in number, bytes and time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .errors import InsufficientBalance, PoolFull, WrongNonce
from .fees import fee_of
from .params import ChainParams
from .registration import registration_price
from .state import StateReader, read_account, read_totals
from .transactions import Register, SignedTransaction, Sponsor

MAX_TRANSACTIONS = 10_000
MAX_POOL_BYTES = 1 << 22
"""Encoded; as objects, rows of weights take about 25 times as much memory."""
MAX_PER_SENDER = 64
MAX_FREE_TRANSACTIONS = 2_000
"""Of those, how many may wait that cost nothing: keys without credit, of which there is no end, take no one's room."""
MAX_WAIT_BLOCKS = 50
"""Blocks after which a transaction that none of them took is dropped. What cannot apply would else hold its place, and
its sender's nonce, for ever; the sender may send it again."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    transaction: SignedTransaction
    since_height: int
    size_bytes: int
    fee: int
    price: int

    @property
    def cost(self) -> int:
        """Units that its sender has to hold for it to wait."""
        return self.fee + self.price


class Mempool:
    """Waiting transactions; the caller has checked their signatures.

    A sender must hold the fees of all of its own that wait, and what registrations burn, so that a full pool costs
    whoever filled it.
    """

    def __init__(self, params: ChainParams) -> None:
        self._params = params
        self._by_sender: dict[bytes, dict[int, _Waiting]] = {}
        self._count = 0
        self._free = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, transaction: SignedTransaction) -> bool:
        waiting = self._by_sender.get(transaction.sender, {}).get(transaction.nonce)
        return waiting is not None and waiting.transaction == transaction

    def add(self, transaction: SignedTransaction, state: StateReader, height: int) -> None:
        """Keep a transaction; ``height`` is that of the last block.

        Raises `WrongNonce`, `InsufficientBalance` or `PoolFull`; the first one of a nonce stays.
        """
        sender = read_account(state, transaction.sender)
        next_nonce = sender.nonce
        waiting = self._by_sender.get(transaction.sender, {})
        if not next_nonce <= transaction.nonce < next_nonce + MAX_PER_SENDER:
            raise WrongNonce("nonce", f"{next_nonce} to {next_nonce + MAX_PER_SENDER - 1}", transaction.nonce)
        if transaction.nonce in waiting:
            raise WrongNonce("nonce", "one without a waiting transaction", transaction.nonce)
        if self._count >= MAX_TRANSACTIONS:
            raise PoolFull("waiting transactions", f"under {MAX_TRANSACTIONS}", self._count)
        size_bytes = transaction.size_bytes
        if self._bytes + size_bytes > MAX_POOL_BYTES:
            raise PoolFull("bytes of waiting transactions", f"at most {MAX_POOL_BYTES}", self._bytes + size_bytes)
        fee = fee_of(state, transaction, self._params)
        if fee == 0 and self._free >= MAX_FREE_TRANSACTIONS:
            raise PoolFull("waiting transactions without a fee", f"under {MAX_FREE_TRANSACTIONS}", self._free)
        entry = _Waiting(transaction, height, size_bytes, fee, self._price_of(transaction, state, height + 1))
        cost = entry.cost + sum(other.cost for other in waiting.values())
        if cost > sender.balance:
            raise InsufficientBalance("balance of the sender for fees and prices", f"at least {cost}", sender.balance)
        self._by_sender.setdefault(transaction.sender, {})[transaction.nonce] = entry
        self._count += 1
        self._free += fee == 0
        self._bytes += size_bytes

    def _price_of(self, transaction: SignedTransaction, state: StateReader, height: int) -> int:
        if isinstance(transaction.body, Register | Sponsor):
            return registration_price(read_totals(state), self._params, height)
        return 0

    def next_nonce(self, sender: bytes, state: StateReader) -> int:
        """The nonce for the sender's next transaction, counting those that wait."""
        nonce = read_account(state, sender).nonce
        waiting = self._by_sender.get(sender, {})
        while nonce in waiting:
            nonce += 1
        return nonce

    def candidates(self, state: StateReader) -> Iterator[SignedTransaction]:
        """Transactions in an order in which they can apply: each sender's by nonce, without gaps.

        Take what is needed before anything else changes the pool.
        """
        for sender in sorted(self._by_sender):
            waiting = self._by_sender[sender]
            nonce = read_account(state, sender).nonce
            while nonce in waiting:
                yield waiting[nonce].transaction
                nonce += 1

    def discard(self, transaction: SignedTransaction) -> None:
        """Drop a transaction, if it waits."""
        if transaction in self:
            waiting = self._by_sender[transaction.sender]
            entry = waiting.pop(transaction.nonce)
            self._bytes -= entry.size_bytes
            self._free -= entry.fee == 0
            self._count -= 1
            if not waiting:
                del self._by_sender[transaction.sender]

    def prune(self, state: StateReader, height: int) -> None:
        """After the block at ``height``: drop what can no longer apply, and what has waited too long."""
        for sender in list(self._by_sender):
            next_nonce = read_account(state, sender).nonce
            over = [
                entry.transaction
                for nonce, entry in self._by_sender[sender].items()
                if nonce < next_nonce or height - entry.since_height >= MAX_WAIT_BLOCKS
            ]
            for transaction in over:
                self.discard(transaction)
