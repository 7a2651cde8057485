"""Transactions: what an account may ask of the ledger, signed by its key."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import Annotated

from msgspec import Meta

from moed.protocol.codec import Record, decode_record, encode, encode_record, require_length
from moed.protocol.domains import Domain, tagged_hash
from moed.protocol.errors import Malformed
from moed.protocol.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, verify

from .evidence import Evidence
from .params import U16, NonNegative, Positive

MAX_TRANSACTION_BYTES = 1 << 16
"""Room for a row of 9,000 weights; everything else is a few hundred bytes."""

MAX_MEMO_BYTES = 1_024
COMMITMENT_BYTES = 32
SALT_BYTES = 32

Uid = Annotated[int, Meta(ge=0, lt=U16)]
WeightRow = Annotated[tuple[tuple[Uid, Annotated[int, Meta(ge=0, le=U16)]], ...], Meta(max_length=U16)]
"""``(uid, weight)`` pairs, uids rising, weights of any scale up to 65535."""


class Transfer(Record, frozen=True, kw_only=True, tag="transfer"):
    """Move ``amount`` units from the sender's balance to another account's; ``memo`` is for the two of them."""

    to: bytes
    amount: Positive
    memo: Annotated[bytes, Meta(max_length=MAX_MEMO_BYTES)] = b""

    def __post_init__(self) -> None:
        require_length("to", self.to, PUBLIC_KEY_BYTES)


class AddStake(Record, frozen=True, kw_only=True, tag="add_stake"):
    """Bond ``amount`` units of the sender's balance behind its own key."""

    amount: Positive


class Delegate(Record, frozen=True, kw_only=True, tag="delegate"):
    """Bond ``amount`` units of the sender's balance behind the key ``to``; the sender goes on owning them."""

    to: bytes
    amount: Positive

    def __post_init__(self) -> None:
        require_length("to", self.to, PUBLIC_KEY_BYTES)


class Undelegate(Record, frozen=True, kw_only=True, tag="undelegate"):
    """Let stake of the sender leave a pool: ``amount`` units, or all. It earns no more, and can still be slashed."""

    pool: bytes
    amount: Positive | None = None

    def __post_init__(self) -> None:
        require_length("pool", self.pool, PUBLIC_KEY_BYTES)


class Withdraw(Record, frozen=True, kw_only=True, tag="withdraw"):
    """Take what has left a pool, and whose unbonding time is over, into the sender's balance."""

    pool: bytes

    def __post_init__(self) -> None:
        require_length("pool", self.pool, PUBLIC_KEY_BYTES)


class SetTake(Record, frozen=True, kw_only=True, tag="set_take"):
    """Set the part of a uid's dividends that its owner, the sender, gets before the delegators share."""

    uid: Uid
    take_ppm: Annotated[int, Meta(ge=0, le=1_000_000)]


class Register(Record, frozen=True, kw_only=True, tag="register"):
    """Take a uid for the sender's key: the lowest free one, or the one that pruning gives up.

    ``owner`` is the key that is paid and may replace the sender's; without one the sender owns itself.
    """

    owner: bytes | None = None

    def __post_init__(self) -> None:
        if self.owner is not None:
            require_length("owner", self.owner, PUBLIC_KEY_BYTES)


class Sponsor(Record, frozen=True, kw_only=True, tag="sponsor"):
    """Take a uid for another key, which agrees to it by its ``consent``; the sender pays, and owns the uid."""

    key: bytes
    consent: bytes
    expires: NonNegative = 0

    def __post_init__(self) -> None:
        require_length("key", self.key, PUBLIC_KEY_BYTES)
        require_length("consent", self.consent, SIGNATURE_BYTES)


class RotateKey(Record, frozen=True, kw_only=True, tag="rotate_key"):
    """Give a uid of the sender's another work key, with that key's consent, or the same one another end.

    Uid, rank, weights, bonds and stake stay. ``expires`` is the block from which on the key may not act, or 0.
    """

    uid: Uid
    key: bytes
    consent: bytes
    expires: NonNegative = 0

    def __post_init__(self) -> None:
        require_length("key", self.key, PUBLIC_KEY_BYTES)
        require_length("consent", self.consent, SIGNATURE_BYTES)


class SetOwner(Record, frozen=True, kw_only=True, tag="set_owner"):
    """Hand a uid of the sender's to another owner, for example to a key that is kept off the machine."""

    uid: Uid
    owner: bytes

    def __post_init__(self) -> None:
        require_length("owner", self.owner, PUBLIC_KEY_BYTES)


class ReportEvidence(Record, frozen=True, kw_only=True, tag="report_evidence"):
    """Show that a validator signed twice; the stake behind it is slashed."""

    evidence: Evidence


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


Body = (
    Transfer
    | AddStake
    | Delegate
    | Undelegate
    | Withdraw
    | SetTake
    | Register
    | Sponsor
    | RotateKey
    | SetOwner
    | SetWeights
    | CommitWeights
    | RevealWeights
    | ReportEvidence
)


class SignedTransaction(Record, frozen=True, kw_only=True, dict=True):
    """One body under its sender's signature; ``nonce`` counts the sender's transactions, so none applies twice."""

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    sender: bytes
    nonce: NonNegative
    body: Body
    signature: bytes

    def __post_init__(self) -> None:
        require_length("sender", self.sender, PUBLIC_KEY_BYTES)
        require_length("signature", self.signature, SIGNATURE_BYTES)

    @cached_property
    def id(self) -> bytes:
        """The 32-byte hash that names this transaction."""
        encoded = encode_record(self)
        self.__dict__["size_bytes"] = len(encoded)
        return tagged_hash(Domain.TRANSACTION, encoded)

    @cached_property
    def size_bytes(self) -> int:
        """Length of the encoded transaction, which a block's limit counts."""
        return len(encode_record(self))

    def check_signature(self, network_id: bytes) -> None:
        """Raise `BadSignature` unless the sender signed this body and nonce for this network.

        Signatures inside the body count as well: a new work key's consent, and both of evidence.
        """
        payload = _signed_payload(self.sender, self.nonce, self.body)
        verify(self.sender, Domain.TRANSACTION, network_id, payload, self.signature)
        match self.body:
            case Sponsor() | RotateKey() as body:
                verify(body.key, Domain.KEY_CONSENT, network_id, consent_payload(self.sender), body.consent)
            case ReportEvidence() as body:
                body.evidence.check(network_id)


def consent_payload(owner: bytes) -> bytes:
    """The bytes that a work key signs to agree that ``owner`` may put it to work."""
    return encode([owner])


def sign_consent(identity: Identity, network_id: bytes, owner: bytes) -> bytes:
    """The consent of ``identity`` to become a work key of ``owner`` on this network."""
    return identity.sign(Domain.KEY_CONSENT, network_id, consent_payload(owner))


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
