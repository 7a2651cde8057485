"""The ledger behind the local API: what an account holds, and transactions sent for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from moed.consensus.errors import InvalidTransaction
from moed.consensus.ledger import apply
from moed.consensus.registration import registration_price
from moed.consensus.state import (
    Overlay,
    pool_of,
    read_account,
    read_neuron,
    read_neurons,
    read_pool,
    read_position,
    read_totals,
)
from moed.consensus.transactions import SignedTransaction, decode_transaction, sign_transaction
from moed.consensus.transition import Head
from moed.protocol.errors import ProtocolError
from moed.protocol.identity import Identity, node_id_of

from .control.api import ControlRefused
from .errors import ChainFileError
from .transaction_files import body_from_fields

Send = Callable[[SignedTransaction], Awaitable[None]]


class LedgerView:
    """Accounts and transactions of one node. ``send`` keeps a checked transaction for a block and passes it on."""

    def __init__(
        self, identity: Identity, head: Callable[[], Head], next_nonce: Callable[[bytes], int], send: Send
    ) -> None:
        self._identity = identity
        self._head = head
        self._next_nonce = next_nonce
        self._send = send

    def account(self, key: str | None) -> dict[str, Any]:
        """What a key holds, by default this node's. Raises `ControlRefused`."""
        public_key = self._identity.public_key if key is None else _public_key(key)
        head = self._head()
        state, account = head.state, read_account(head.state, public_key)
        name = pool_of(state, public_key)
        neuron = read_neuron(state, account.uid) if account.uid is not None else None
        pools = {name} | {pool_of(state, one.key) for one in read_neurons(state)}
        positions = [_position_row(head, pool, public_key) for pool in sorted(pools)]
        return {
            "public_key": public_key.hex(),
            "node_id": node_id_of(public_key).hex(),
            "network": head.network_id.hex(),
            "height": head.height,
            "balance": account.balance,
            "nonce": account.nonce,
            "next_nonce": self._next_nonce(public_key),
            "uid": account.uid,
            "owner": neuron.payee.hex() if neuron is not None else None,
            "key_expires": neuron.key_expires if neuron is not None else 0,
            "pool": name.hex(),
            "stake_behind": read_pool(state, name).stake,
            "positions": [row for row in positions if row["stake"] or row["leaving"]],
            "registration_price": registration_price(read_totals(state), head.params, head.height + 1),
        }

    async def send(self, kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Sign a transaction with this node's work key and send it. Raises `ControlRefused`."""
        try:
            body = body_from_fields(kind, fields)
        except ChainFileError as error:
            raise ControlRefused(400, "bad_transaction", error.message, error.remedy) from error
        nonce = self._next_nonce(self._identity.public_key)
        return await self._submit(sign_transaction(self._identity, self._head().network_id, nonce, body))

    async def submit(self, encoded: str) -> dict[str, Any]:
        """Send a transaction that was signed elsewhere, given in hexadecimal. Raises `ControlRefused`."""
        try:
            transaction = decode_transaction(bytes.fromhex(encoded))
            transaction.check_signature(self._head().network_id)
        except (ProtocolError, ValueError) as error:
            raise ControlRefused(400, "bad_transaction", str(error), "build and sign it again") from error
        return await self._submit(transaction)

    async def _submit(self, transaction: SignedTransaction) -> dict[str, Any]:
        head = self._head()
        try:
            if transaction.nonce <= read_account(head.state, transaction.sender).nonce:
                # the next block's judgement, told now: what waits in the pool is refused without a word to its sender
                apply(Overlay(head.state), transaction, params=head.params, height=head.height + 1)
            await self._send(transaction)
        except InvalidTransaction as error:
            raise ControlRefused(409, error.code, str(error), "nothing was sent; see `moectl account`") from error
        return {"id": transaction.id.hex(), "sender": transaction.sender.hex(), "nonce": transaction.nonce}


def _position_row(head: Head, name: bytes, holder: bytes) -> dict[str, Any]:
    pool, position = read_pool(head.state, name), read_position(head.state, name, holder)
    leaving = [
        {"units": part.shares * pool.leaving // pool.leaving_shares, "release": part.release}
        for part in position.leaving
    ]
    stake = position.shares * pool.stake // pool.shares if pool.shares else 0
    return {"pool": name.hex(), "uid": pool.uid, "stake": stake, "leaving": leaving}


def _public_key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ControlRefused(400, "bad_key", f"{text[:80]!r} is no public key", "give 64 hexadecimal digits")
    return key
