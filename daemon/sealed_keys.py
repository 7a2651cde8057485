"""A key in an encrypted file: for the owner key, which need not be on any machine, and for copies of work keys.

The seed is sealed with secretbox (XSalsa20-Poly1305) under a key that argon2id makes of a passphrase (RFC 9106). The
file says how hard argon2id worked, within bounds, so that a foreign file cannot ask for all memory; the public key lies
open in it, and is checked against the seed when that is opened.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import nacl.pwhash.argon2id as argon2id
from msgspec import Meta
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from moed.protocol.codec import Record
from moed.protocol.identity import SEED_BYTES, Identity

from .errors import KeyFileError
from .keystore import write_key_file

MAX_FILE_BYTES = 1 << 14
MIN_PASSPHRASE = 8


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard a passphrase is to try: passes over so many bytes of memory."""

    operations: int
    memory_bytes: int


CAREFUL = Effort(argon2id.OPSLIMIT_MODERATE, argon2id.MEMLIMIT_MODERATE)
"""Libsodium's choice for keys that matter: 3 passes over 256 MiB, about a second."""
LEAST = Effort(argon2id.OPSLIMIT_MIN, argon2id.MEMLIMIT_MIN)
"""The least that argon2id does: for tests, and for keys that protect nothing."""


class SealedKey(Record, frozen=True, kw_only=True):
    """The file, in JSON; binary fields are base64."""

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    public_key: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    kdf: Literal["argon2id"] = "argon2id"
    operations: Annotated[int, Meta(ge=argon2id.OPSLIMIT_MIN, le=64)]
    memory_bytes: Annotated[int, Meta(ge=argon2id.MEMLIMIT_MIN, le=1 << 31)]
    salt: Annotated[bytes, Meta(min_length=argon2id.SALTBYTES, max_length=argon2id.SALTBYTES)]
    box: Annotated[bytes, Meta(max_length=128)]


def seal(seed: bytes, passphrase: str, *, effort: Effort = CAREFUL) -> SealedKey:
    """The sealed form of a seed. Raises `KeyFileError` for a passphrase that is no protection."""
    if len(passphrase) < MIN_PASSPHRASE:
        raise KeyFileError(
            f"the passphrase has {len(passphrase)} characters", f"take {MIN_PASSPHRASE} or more; several words are best"
        )
    salt = secrets.token_bytes(argon2id.SALTBYTES)
    box = SecretBox(_stretch(passphrase, salt, effort)).encrypt(seed)
    return SealedKey(
        public_key=Identity(seed).public_key.hex(),
        operations=effort.operations,
        memory_bytes=effort.memory_bytes,
        salt=salt,
        box=bytes(box),
    )


def unseal(sealed: SealedKey, passphrase: str) -> bytes:
    """The seed. Raises `KeyFileError` for a wrong passphrase or a changed file."""
    effort = Effort(sealed.operations, sealed.memory_bytes)
    try:
        seed = SecretBox(_stretch(passphrase, sealed.salt, effort)).decrypt(sealed.box)
    except (CryptoError, ValueError) as error:
        raise KeyFileError("the passphrase does not open this key, or the file was changed", "try again") from error
    if len(seed) != SEED_BYTES or Identity(seed).public_key.hex() != sealed.public_key:
        raise KeyFileError("the file names another key than the one sealed in it", "restore it from a copy")
    return seed


def create_sealed(path: Path, passphrase: str, *, effort: Effort = CAREFUL) -> SealedKey:
    """Draw a key and write it sealed to ``path``; an existing file is never replaced. Raises `KeyFileError`."""
    sealed = seal(secrets.token_bytes(SEED_BYTES), passphrase, effort=effort)
    write_sealed(path, sealed)
    return sealed


def write_sealed(path: Path, sealed: SealedKey) -> None:
    """Write a sealed key to a new file. Raises `KeyFileError`."""
    write_key_file(path, msgspec.json.format(msgspec.json.encode(sealed), indent=2) + b"\n")


def read_sealed(path: Path) -> SealedKey:
    """Read a sealed key; what is secret stays sealed. Raises `KeyFileError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {error.strerror}", "name a file of `moed keys new`") from error
    if len(data) > MAX_FILE_BYTES:
        raise KeyFileError(f"{path} is too large for a sealed key", "name a file of `moed keys new`")
    try:
        return msgspec.json.decode(data, type=SealedKey, strict=True)
    except msgspec.DecodeError as error:
        raise KeyFileError(f"{path} holds no sealed key: {error}", "name a file of `moed keys new`") from error


def _stretch(passphrase: str, salt: bytes, effort: Effort) -> bytes:
    return argon2id.kdf(
        SecretBox.KEY_SIZE, passphrase.encode(), salt, opslimit=effort.operations, memlimit=effort.memory_bytes
    )
