"""Transactions that wait for a block: by sender and nonce, bounded, and never one that cannot apply."""

from __future__ import annotations

from collections.abc import Iterator

from .errors import PoolFull, WrongNonce
from .state import StateReader, read_account
from .transactions import SignedTransaction

MAX_TRANSACTIONS = 10_000
MAX_PER_SENDER = 64


class Mempool:
    """Waiting transactions; the caller has checked their signatures."""

    def __init__(self) -> None:
        self._by_sender: dict[bytes, dict[int, SignedTransaction]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, transaction: SignedTransaction) -> bool:
        return self._by_sender.get(transaction.sender, {}).get(transaction.nonce) == transaction

    def add(self, transaction: SignedTransaction, state: StateReader) -> None:
        """Keep a transaction. Raises `WrongNonce` or `PoolFull`; the first one of a nonce stays."""
        next_nonce = read_account(state, transaction.sender).nonce
        waiting = self._by_sender.get(transaction.sender, {})
        if not next_nonce <= transaction.nonce < next_nonce + MAX_PER_SENDER:
            raise WrongNonce("nonce", f"{next_nonce} to {next_nonce + MAX_PER_SENDER - 1}", transaction.nonce)
        if transaction.nonce in waiting:
            raise WrongNonce("nonce", "one without a waiting transaction", transaction.nonce)
        if self._count >= MAX_TRANSACTIONS:
            raise PoolFull("waiting transactions", f"under {MAX_TRANSACTIONS}", self._count)
        self._by_sender.setdefault(transaction.sender, {})[transaction.nonce] = transaction
        self._count += 1

    def next_nonce(self, sender: bytes, state: StateReader) -> int:
        """The nonce for the sender's next transaction, counting those that wait."""
        nonce = read_account(state, sender).nonce
        waiting = self._by_sender.get(sender, {})
        while nonce in waiting:
            nonce += 1
        return nonce

    def candidates(self, state: StateReader) -> Iterator[SignedTransaction]:
        """Transactions in an order in which they can apply: each sender's by nonce, without gaps."""
        for sender in sorted(self._by_sender):
            waiting = self._by_sender[sender]
            nonce = read_account(state, sender).nonce
            while nonce in waiting:
                yield waiting[nonce]
                nonce += 1

    def discard(self, transaction: SignedTransaction) -> None:
        """Drop a transaction, if it waits."""
        waiting = self._by_sender.get(transaction.sender, {})
        if waiting.get(transaction.nonce) == transaction:
            del waiting[transaction.nonce]
            self._count -= 1
            if not waiting:
                del self._by_sender[transaction.sender]

    def prune(self, state: StateReader) -> None:
        """Drop what a new block has made impossible to apply: nonces that are used."""
        for sender in list(self._by_sender):
            next_nonce = read_account(state, sender).nonce
            used = [waiting for nonce, waiting in self._by_sender[sender].items() if nonce < next_nonce]
            for transaction in used:
                self.discard(transaction)
