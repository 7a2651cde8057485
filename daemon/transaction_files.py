"""Transactions as files: built where the chain is, signed where the key is, sent from anywhere.

The file holds the canonical bytes of what is signed, and `describe` reads them back in words: whoever signs sees what
the bytes say, and no second copy that might say something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from moed.consensus.params import NonNegative
from moed.consensus.transactions import Body, SignedTransaction, sign_transaction
from moed.protocol.codec import Record, decode, encode_record
from moed.protocol.errors import Malformed, ProtocolError
from moed.protocol.identity import Identity

from .errors import ChainFileError
from .tables import exact_credits

MAX_FILE_BYTES = 1 << 18
AMOUNTS = frozenset({"amount"})
_BYTES = frozenset({"to", "pool", "owner", "key", "consent", "memo"})
KINDS = frozenset(
    {
        "transfer",
        "add_stake",
        "delegate",
        "undelegate",
        "withdraw",
        "set_take",
        "register",
        "sponsor",
        "rotate_key",
        "set_owner",
    }
)
"""What people send; weights and evidence are the daemon's own to write."""
_REMEDY = "build it again with `moectl tx build`"


class TransactionFile(Record, frozen=True, kw_only=True):
    """A transaction on its way; ``body`` is the hexadecimal of its canonical bytes, ``signature`` is null at first."""

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    network_id: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    sender: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    nonce: NonNegative
    body: Annotated[str, Meta(pattern="^([0-9a-f]{2})+$")]
    signature: Annotated[str, Meta(pattern="^[0-9a-f]{128}$")] | None = None


def unsigned(network_id: bytes, sender: bytes, nonce: int, body: Body) -> TransactionFile:
    """A transaction that its sender has yet to sign."""
    return TransactionFile(
        network_id=network_id.hex(), sender=sender.hex(), nonce=nonce, body=encode_record(body).hex()
    )


def body_from_fields(kind: str, fields: Mapping[str, Any]) -> Body:
    """A body from what people give: keys and other bytes in hexadecimal, amounts in units. Raises `ChainFileError`."""
    if kind not in KINDS:
        raise ChainFileError(f"{kind!r} is no kind of transaction", f"it is one of: {', '.join(sorted(KINDS))}")
    try:
        plain = {name: _from_hex(name, value) if name in _BYTES else value for name, value in fields.items()}
        body: Body = msgspec.convert({"type": kind, **plain}, Body, strict=True, builtin_types=(bytes,))
    except (ProtocolError, msgspec.ValidationError, ValueError, TypeError) as error:
        raise ChainFileError(
            f"no {kind} can be made of this: {error}", "see `moectl tx --help` for its fields"
        ) from error
    return body


def _from_hex(name: str, value: Any) -> bytes:
    try:
        return bytes.fromhex(value)
    except (ValueError, TypeError):
        raise Malformed(f"{name}={value} is not in hexadecimal digits") from None


def body_of(file: TransactionFile) -> Body:
    """What the file's bytes ask for. Raises `ChainFileError`."""
    try:
        value = decode(bytes.fromhex(file.body))
        body: Body = msgspec.convert(value, Body, strict=True, builtin_types=(bytes,))
        if encode_record(body).hex() != file.body:
            raise Malformed("the bytes are not in their one form")
    except (ProtocolError, msgspec.ValidationError) as error:
        raise ChainFileError(f"the file's transaction does not parse: {error}", _REMEDY) from error
    return body


def sign_file(file: TransactionFile, identity: Identity) -> TransactionFile:
    """The file with its sender's signature. Raises `ChainFileError` if ``identity`` is somebody else."""
    if identity.public_key.hex() != file.sender:
        raise ChainFileError(
            f"this is a transaction of {file.sender[:12]}, and the key is {identity.public_key.hex()[:12]}",
            "sign with the sender's key",
        )
    signed = sign_transaction(identity, bytes.fromhex(file.network_id), file.nonce, body_of(file))
    return msgspec.structs.replace(file, signature=signed.signature.hex())


def signed_transaction(file: TransactionFile) -> SignedTransaction:
    """The transaction to send; its signature is checked. Raises `ChainFileError`."""
    if file.signature is None:
        raise ChainFileError("the transaction is not signed", "sign it with `moed keys sign`")
    transaction = SignedTransaction(
        sender=bytes.fromhex(file.sender),
        nonce=file.nonce,
        body=body_of(file),
        signature=bytes.fromhex(file.signature),
    )
    try:
        transaction.check_signature(bytes.fromhex(file.network_id))
    except ProtocolError as error:
        raise ChainFileError(f"the transaction cannot be sent: {error}", "sign it again") from error
    return transaction


def describe(body: Body) -> dict[str, Any]:
    """A body as builtins for people and JSON: bytes in hexadecimal, amounts in units and in credits."""
    plain = msgspec.to_builtins(body, builtin_types=(bytes,))
    shown = {name: _shown(value) for name, value in plain.items() if value is not None and value != b""}
    return shown | {f"{name}_credits": exact_credits(plain[name]) for name in AMOUNTS & shown.keys()}


def read_file(path: Path) -> TransactionFile:
    """Read a transaction file. Raises `ChainFileError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ChainFileError(f"{path} is too large for a transaction", _REMEDY)
        return msgspec.json.decode(data, type=TransactionFile, strict=True)
    except OSError as error:
        raise ChainFileError(f"cannot read {path}: {error.strerror}", _REMEDY) from error
    except msgspec.DecodeError as error:
        raise ChainFileError(f"{path} is no transaction file: {error}", _REMEDY) from error


def write_file(path: Path, file: TransactionFile) -> None:
    """Write a transaction file, over an older one. Raises `ChainFileError`."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n")
    except OSError as error:
        raise ChainFileError(f"cannot write {path}: {error.strerror}", "name another file") from error


def _shown(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: _shown(one) for name, one in value.items()}
    return [_shown(one) for one in value] if isinstance(value, list | tuple) else value
