"""The routes of the ledger: accounts, and transactions to send."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .answers import Hex
from .api import Answer, Ask, Services, json_body

MAX_TRANSACTION_HEX = 2 << 16


class AccountQuestion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose account: a public key, or this node's own."""

    key: Annotated[str, Meta(max_length=64)] | None = None


class SendQuestion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A transaction to sign with the node's work key: its kind and fields, bytes in hexadecimal, amounts in units."""

    kind: Annotated[str, Meta(max_length=64)]
    fields: Annotated[dict[str, Any], Meta(max_length=16)] = {}


class SubmitQuestion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A signed transaction, in hexadecimal of its bytes."""

    transaction: Annotated[str, Meta(max_length=MAX_TRANSACTION_HEX)]


class PositionRow(msgspec.Struct, frozen=True, kw_only=True):
    """What an account holds of one pool of stake; parts that leave may be withdrawn from their block on."""

    pool: Hex
    uid: int | None
    stake: int
    leaving: list[dict[str, int]]


class AccountAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An account after the last block, in units of 10⁻⁹ credit; ``next_nonce`` counts what waits for a block.

    ``key_expires`` is the block from which on the key no longer acts for its uid, 0 for never.
    """

    public_key: Hex
    node_id: Hex
    network: Hex
    height: int
    balance: int
    nonce: int
    next_nonce: int
    uid: int | None
    owner: Hex | None
    key_expires: int
    pool: Hex
    stake_behind: int
    positions: list[PositionRow]
    registration_price: int


class SentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The transaction waits for a block; it is final when the sender's nonce has passed its own."""

    id: Hex
    sender: Hex
    nonce: int


async def account(services: Services, ask: Ask) -> Answer:
    """GET /v1/account."""
    question: AccountQuestion = ask.question
    return json_body(services.plane.ledger.account(question.key))


async def send(services: Services, ask: Ask) -> Answer:
    """POST /v1/tx/send."""
    question: SendQuestion = ask.question
    return json_body(await services.plane.ledger.send(question.kind, question.fields))


async def submit(services: Services, ask: Ask) -> Answer:
    """POST /v1/tx/submit."""
    question: SubmitQuestion = ask.question
    return json_body(await services.plane.ledger.submit(question.transaction))
