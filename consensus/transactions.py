"""Transactions: what an account may ask of the ledger, signed by its key."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from msgspec import Meta

from moed.protocol.codec import Record, decode_record, encode, encode_record, require_length
from moed.protocol.domains import Domain, tagged_hash
from moed.protocol.errors import Malformed
from moed.protocol.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, verify

from .params import U16, NonNegative, Positive

MAX_TRANSACTION_BYTES = 1 << 16
"""Room for a full row of weights; everything else is a few hundred bytes."""

COMMITMENT_BYTES = 32
SALT_BYTES = 32

Uid = Annotated[int, Meta(ge=0, lt=U16)]
WeightRow = Annotated[tuple[tuple[Uid, Annotated[int, Meta(ge=0, le=U16)]], ...], Meta(max_length=U16)]
"""``(uid, weight)`` pairs, uids rising, weights of any scale up to 65535."""


class Transfer(Record, frozen=True, kw_only=True, tag="transfer"):
    """Move ``amount`` units from the sender's balance to another account's."""

    to: bytes
    amount: Positive

    def __post_init__(self) -> None:
        require_length("to", self.to, PUBLIC_KEY_BYTES)


class AddStake(Record, frozen=True, kw_only=True, tag="add_stake"):
    """Bond ``amount`` units of the sender's balance behind its own key."""

    amount: Positive


class Register(Record, frozen=True, kw_only=True, tag="register"):
    """Take a uid for the sender's key: the lowest free one, or the one that pruning gives up."""


class SetWeights(Record, frozen=True, kw_only=True, tag="set_weights"):
    """Replace the sender's row of weights, in the open; where ``commit_reveal`` is off."""

    weights: WeightRow

    def __post_init__(self) -> None:
        _check_rising(self.weights)


class CommitWeights(Record, frozen=True, kw_only=True, tag="commit_weights"):
    """Fix a row of weights that nobody can read yet: its `weights_commitment`. The last one of an epoch counts."""

    commitment: bytes

    def __post_init__(self) -> None:
        require_length("commitment", self.commitment, COMMITMENT_BYTES)


class RevealWeights(Record, frozen=True, kw_only=True, tag="reveal_weights"):
    """Show the row that the sender committed to in the epoch before; it replaces the sender's row."""

    weights: WeightRow
    salt: bytes

    def __post_init__(self) -> None:
        _check_rising(self.weights)
        require_length("salt", self.salt, SALT_BYTES)


def _check_rising(weights: WeightRow) -> None:
    uids = [uid for uid, _ in weights]
    if any(one >= two for one, two in pairwise(uids)):
        raise Malformed("the uids of a weight row must rise")


def weights_commitment(sender: bytes, salt: bytes, weights: WeightRow) -> bytes:
    """The 32 bytes that stand for a row until it is shown.

    The salt keeps likely rows from being guessed; the sender's key keeps a copied commitment from being of use.
    """
    return tagged_hash(Domain.WEIGHTS_COMMITMENT, sender, salt, encode([list(pair) for pair in weights]))


Body = Transfer | AddStake | Register | SetWeights | CommitWeights | RevealWeights


class SignedTransaction(Record, frozen=True, kw_only=True):
    """One body under its sender's signature; ``nonce`` counts the sender's transactions, so none applies twice."""

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    sender: bytes
    nonce: NonNegative
    body: Body
    signature: bytes

    def __post_init__(self) -> None:
        require_length("sender", self.sender, PUBLIC_KEY_BYTES)
        require_length("signature", self.signature, SIGNATURE_BYTES)

    @property
    def id(self) -> bytes:
        """The 32-byte hash that names this transaction."""
        return tagged_hash(Domain.TRANSACTION, encode_record(self))

    @property
    def size_bytes(self) -> int:
        """Length of the encoded transaction, which a block's limit counts."""
        return len(encode_record(self))

    def check_signature(self, network_id: bytes) -> None:
        """Raise `BadSignature` unless the sender signed this body and nonce for this network."""
        payload = _signed_payload(self.sender, self.nonce, self.body)
        verify(self.sender, Domain.TRANSACTION, network_id, payload, self.signature)


def _signed_payload(sender: bytes, nonce: int, body: Body) -> bytes:
    return encode([sender, nonce, encode_record(body)])


def sign_transaction(identity: Identity, network_id: bytes, nonce: int, body: Body) -> SignedTransaction:
    """The transaction that ``identity`` sends as its ``nonce``-th on this network."""
    payload = _signed_payload(identity.public_key, nonce, body)
    signature = identity.sign(Domain.TRANSACTION, network_id, payload)
    return SignedTransaction(sender=identity.public_key, nonce=nonce, body=body, signature=signature)


def decode_transaction(data: bytes | memoryview) -> SignedTransaction:
    """Parse one transaction from its own bytes. Raises `Malformed` or `TooLarge`; the signature is not checked."""
    return decode_record(data, SignedTransaction, max_bytes=MAX_TRANSACTION_BYTES)


def transactions_root(transactions: tuple[SignedTransaction, ...]) -> bytes:
    """The hash over the ids of a block's transactions, in order."""
    return tagged_hash(Domain.TRANSACTIONS_ROOT, *(transaction.id for transaction in transactions))
