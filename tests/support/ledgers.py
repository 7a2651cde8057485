"""A ledger for tests: a state at a genesis, and a way to send it bodies of numbered keys."""

from __future__ import annotations

from collections.abc import Sequence

from moed.consensus.genesis import genesis_state
from moed.consensus.ledger import apply
from moed.consensus.metagraph import close_epoch
from moed.consensus.params import CREDIT, ChainParams
from moed.consensus.state import (
    Neuron,
    Overlay,
    Pool,
    read_account,
    read_neuron,
    read_pool,
    read_position,
    read_totals,
    stake_behind,
)
from moed.consensus.transactions import Body, sign_transaction

from .chains import key, make_genesis


class Ledger:
    """Validators are ``key(1)``, ``key(2)`` …, plain accounts the keys after them; amounts in credits here."""

    def __init__(self, stakes: Sequence[int], balances: Sequence[int], params: ChainParams) -> None:
        self.params = params
        self.genesis = make_genesis(
            [one * CREDIT for one in stakes], balances=[one * CREDIT for one in balances], params=params
        )
        self.base = genesis_state(self.genesis)
        self.state = Overlay(self.base)
        self.height = 1

    def send(self, sender: int, body: Body) -> None:
        """Apply one transaction with the sender's next nonce, its signatures checked as a block's are."""
        identity = key(sender)
        nonce = read_account(self.state, identity.public_key).nonce
        transaction = sign_transaction(identity, self.genesis.network_id, nonce, body)
        transaction.check_signature(self.genesis.network_id)
        apply(self.state, transaction, params=self.params, height=self.height)

    def close(self) -> None:
        """End the epoch under way."""
        self.height += self.params.tempo - self.height % self.params.tempo
        close_epoch(self.state, self.params, self.height)
        self.height += 1

    def balance(self, number: int) -> int:
        return read_account(self.state, key(number).public_key).balance

    def stake(self, number: int) -> int:
        """All stake behind a key."""
        return stake_behind(self.state, key(number).public_key)

    def pool(self, number: int) -> Pool:
        return read_pool(self.state, key(number).public_key)

    def worth(self, pool: int, holder: int) -> int:
        """Units that a holder's shares of a pool are worth."""
        held, position = self.pool(pool), read_position(self.state, key(pool).public_key, key(holder).public_key)
        return position.shares * held.stake // held.shares if held.shares else 0

    def uid(self, number: int) -> int | None:
        return read_account(self.state, key(number).public_key).uid

    def neuron(self, uid: int) -> Neuron:
        neuron = read_neuron(self.state, uid)
        assert neuron is not None
        return neuron

    @property
    def treasury(self) -> int:
        return read_totals(self.state).treasury
