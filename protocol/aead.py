"""The two AEAD ciphers of the session, on buffers that the caller owns.

Both are libsodium's. Its cffi handle is private to PyNaCl but reads and writes memory in place, which the public
binding cannot (it takes and returns ``bytes``), so the handle is used where it can be imported and the public
binding stands behind it; a test holds the two equal. `nacl.bindings` is imported first on purpose: it runs
``sodium_init``, without which libsodium silently uses its slow code.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import nacl.bindings
from nacl.exceptions import CryptoError, UnavailableError

from .errors import BadCiphertext

try:
    from nacl._sodium import ffi, lib
except ImportError:  # a PyNaCl built otherwise: the public binding does the same with two copies more
    ffi = lib = None

Buffer = bytes | bytearray | memoryview

if TYPE_CHECKING:
    from collections.abc import Callable

    # (output, input, associated data, 12-byte nonce, 32-byte key) -> bytes written
    Operation = Callable[[memoryview, Buffer, bytes, bytes, bytes], int]

KEY_BYTES = 32
TAG_BYTES = 16


class Cipher(Enum):
    """An AEAD cipher by its name in a Noise protocol name."""

    AESGCM = "AESGCM"
    CHACHAPOLY = "ChaChaPoly"


def nonce_bytes(cipher: Cipher, counter: int) -> bytes:
    """The 12-byte nonce of ``counter`` (Noise revision 34, section 12: big-endian for AESGCM, else little)."""
    return bytes(4) + counter.to_bytes(8, "big" if cipher is Cipher.AESGCM else "little")


def held_ciphers() -> frozenset[Cipher]:
    """The ciphers that this machine can run: AES-256-GCM needs processor instructions, the other none."""
    try:
        nacl.bindings.crypto_aead_aes256gcm_encrypt(b"", None, bytes(12), bytes(KEY_BYTES))
    except UnavailableError:
        return frozenset({Cipher.CHACHAPOLY})
    return frozenset(Cipher)


def _public_seal(cipher: Cipher) -> Operation:
    encrypt = {
        Cipher.AESGCM: nacl.bindings.crypto_aead_aes256gcm_encrypt,
        Cipher.CHACHAPOLY: nacl.bindings.crypto_aead_chacha20poly1305_ietf_encrypt,
    }[cipher]

    def seal(out: memoryview, plaintext: Buffer, ad: bytes, nonce: bytes, key: bytes) -> int:
        ciphertext = encrypt(bytes(plaintext), ad, nonce, key)
        out[: len(ciphertext)] = ciphertext
        return len(ciphertext)

    return seal


def _public_open(cipher: Cipher) -> Operation:
    decrypt = {
        Cipher.AESGCM: nacl.bindings.crypto_aead_aes256gcm_decrypt,
        Cipher.CHACHAPOLY: nacl.bindings.crypto_aead_chacha20poly1305_ietf_decrypt,
    }[cipher]

    def unseal(out: memoryview, ciphertext: Buffer, ad: bytes, nonce: bytes, key: bytes) -> int:
        try:
            plaintext = decrypt(bytes(ciphertext), ad, nonce, key)
        except CryptoError as error:
            raise BadCiphertext("a message does not decrypt") from error
        out[: len(plaintext)] = plaintext
        return len(plaintext)

    return unseal


def _direct_seal(cipher: Cipher) -> Operation:
    encrypt = {
        Cipher.AESGCM: lib.crypto_aead_aes256gcm_encrypt,
        Cipher.CHACHAPOLY: lib.crypto_aead_chacha20poly1305_ietf_encrypt,
    }[cipher]
    from_buffer, null = ffi.from_buffer, ffi.NULL

    def seal(out: memoryview, plaintext: Buffer, ad: bytes, nonce: bytes, key: bytes) -> int:
        size = len(plaintext)
        if len(out) < size + TAG_BYTES:
            raise ValueError("the output is shorter than the ciphertext")
        encrypt(
            from_buffer(out, require_writable=True),
            null,
            from_buffer(plaintext) if size else null,
            size,
            ad or null,
            len(ad),
            null,
            nonce,
            key,
        )
        return size + TAG_BYTES

    return seal


def _direct_open(cipher: Cipher) -> Operation:
    decrypt = {
        Cipher.AESGCM: lib.crypto_aead_aes256gcm_decrypt,
        Cipher.CHACHAPOLY: lib.crypto_aead_chacha20poly1305_ietf_decrypt,
    }[cipher]
    from_buffer, null = ffi.from_buffer, ffi.NULL

    def unseal(out: memoryview, ciphertext: Buffer, ad: bytes, nonce: bytes, key: bytes) -> int:
        size = len(ciphertext) - TAG_BYTES
        if len(out) < size:
            raise ValueError("the output is shorter than the plaintext")
        failed = decrypt(
            from_buffer(out, require_writable=True) if size else null,
            null,
            null,
            from_buffer(ciphertext),
            len(ciphertext),
            ad or null,
            len(ad),
            nonce,
            key,
        )
        if failed:
            raise BadCiphertext("a message does not decrypt")
        return size

    return unseal


def _table(make: Callable[[Cipher], Operation]) -> dict[Cipher, Operation]:
    return {cipher: make(cipher) for cipher in Cipher}


_SEAL = _table(_public_seal if lib is None else _direct_seal)
_OPEN = _table(_public_open if lib is None else _direct_open)


def seal_into(cipher: Cipher, out: memoryview, plaintext: Buffer, *, ad: bytes, nonce: bytes, key: bytes) -> int:
    """Encrypt ``plaintext`` into the start of ``out``; returns the bytes written, `TAG_BYTES` more than given.

    The two buffers must not overlap. ``ValueError`` if ``out`` is too short.
    """
    return _SEAL[cipher](out, plaintext, ad, nonce, key)


def open_into(cipher: Cipher, out: memoryview, ciphertext: Buffer, *, ad: bytes, nonce: bytes, key: bytes) -> int:
    """Decrypt ``ciphertext`` into the start of ``out``; returns the bytes written.

    Raises `BadCiphertext` if it is not authentic; what stands in ``out`` is then meaningless.
    """
    if len(ciphertext) < TAG_BYTES:
        raise BadCiphertext("a message is shorter than its authentication tag")
    return _OPEN[cipher](out, ciphertext, ad, nonce, key)
