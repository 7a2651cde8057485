"""Proofs and validator sets as files: what `moed chain prove` writes and `moed chain check-proof` believes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from moed.consensus.errors import RuleBroken
from moed.consensus.proofs import MAX_PROOF_BYTES, StateProof, check_proof
from moed.consensus.state import Validator, ValidatorSet, read_previous_validators, read_validators
from moed.consensus.transition import Head
from moed.protocol.codec import Record, decode_record, encode_record
from moed.protocol.errors import RemoteProtocolError

from .errors import ChainFileError

Hex = Annotated[str, Meta(pattern="^([0-9a-f]{2})+$")]
Key = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
FileT = TypeVar("FileT", bound=Record)
_AGAIN = "make it again with `moed chain {}`"


class ValidatorRow(Record, frozen=True, kw_only=True):
    """One validator: its key in hexadecimal, and the units behind it."""

    key: Key
    power: Annotated[int, Meta(ge=1)]


class ValidatorsFile(Record, frozen=True, kw_only=True):
    """Who decided the block at ``height``; the file that a light check trusts."""

    network_id: Key
    height: int
    validators: Annotated[tuple[ValidatorRow, ...], Meta(min_length=1, max_length=4_096)]

    @property
    def members(self) -> ValidatorSet:
        rows = (Validator(key=bytes.fromhex(row.key), power=row.power) for row in self.validators)
        return ValidatorSet(members=tuple(rows))


class ProofFile(Record, frozen=True, kw_only=True):
    """A proof in hexadecimal of its canonical bytes."""

    network_id: Key
    proof: Annotated[str, Meta(pattern="^([0-9a-f]{2})+$", max_length=2 * MAX_PROOF_BYTES)]


def validators_file(head: Head) -> ValidatorsFile:
    """The set that decided the last block, or at the start the one that decides the first."""
    deciding = read_previous_validators(head.state) if head.height else read_validators(head.state)
    rows = [ValidatorRow(key=one.key.hex(), power=one.power) for one in deciding.members]
    return ValidatorsFile(network_id=head.network_id.hex(), height=head.height, validators=tuple(rows))


def proof_file(head: Head, key: bytes) -> ProofFile:
    """The proof of what the state of ``head`` holds under ``key``. Raises `ChainFileError` before the first block."""
    try:
        proof = head.prove(key)
    except RuleBroken as error:
        raise ChainFileError(str(error), "wait for the first block") from error
    return ProofFile(network_id=head.network_id.hex(), proof=encode_record(proof).hex())


def read_validators_file(path: Path) -> ValidatorsFile:
    """The set that a file trusts. Raises `ChainFileError`."""
    return _read(path, ValidatorsFile, "validators")


def check_files(proof_path: Path, validators_path: Path) -> dict[str, Any]:
    """Check a proof against a trusted set of validators; returns what is proven, as builtins.

    Raises `ChainFileError` naming what does not hold.
    """
    given = _read(proof_path, ProofFile, "prove")
    trusted = read_validators_file(validators_path)
    if given.network_id != trusted.network_id:
        raise ChainFileError(
            f"{proof_path} is of network {given.network_id[:12]}, and the validators of {trusted.network_id[:12]}",
            "ask for both on one network",
        )
    try:
        proof = decode_record(bytes.fromhex(given.proof), StateProof, max_bytes=MAX_PROOF_BYTES)
        record = check_proof(proof, trusted.members, bytes.fromhex(trusted.network_id))
    except (RuleBroken, RemoteProtocolError) as error:
        raise ChainFileError(f"{proof_path} proves nothing: {error}", "believe nothing in it") from error
    return {
        "valid": True,
        "height": proof.header.height,
        "block": proof.header.hash.hex(),
        "time_ms": proof.header.time_ms,
        "key": proof.key.hex(),
        "record": _plain(msgspec.to_builtins(record, builtin_types=(bytes,))) if record is not None else None,
    }


def _plain(value: Any) -> Any:
    """Builtins for JSON: bytes as hexadecimal."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _read(path: Path, kind: type[FileT], verb: str) -> FileT:
    try:
        if path.stat().st_size > 4 * MAX_PROOF_BYTES:
            raise ChainFileError(f"{path} is too large for one", _AGAIN.format(verb))
        return msgspec.json.decode(path.read_bytes(), type=kind, strict=True)
    except OSError as error:
        raise ChainFileError(f"cannot read {path}: {error.strerror}", _AGAIN.format(verb)) from error
    except msgspec.DecodeError as error:
        raise ChainFileError(f"{path} is not such a file: {error}", _AGAIN.format(verb)) from error
