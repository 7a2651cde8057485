"""The Noise XX handshake and its transport ciphers (revision 34), as a machine without I/O.

Names: https://noiseprotocol.org/noise.html, sections 5 (objects), 7 (patterns), 11.3 (rekey), 12 (crypto functions).
Ephemeral keys are arguments, never drawn here, so the published vectors run through the same code as a session.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nacl.bindings
import nacl.exceptions

from .aead import KEY_BYTES, TAG_BYTES, Cipher, nonce_bytes, open_into, seal_into
from .errors import LocalProtocolError, Malformed, TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable

    from .aead import Buffer

DH_BYTES = 32
MAX_MESSAGE_BYTES = 65_535
MAX_PLAINTEXT_BYTES = MAX_MESSAGE_BYTES - TAG_BYTES
RESERVED_NONCE = (1 << 64) - 1  # section 5.1: never used for a message, only by rekey

# The XX pattern, one tuple of tokens per message; the initiator writes the first and the third.
XX_PATTERN = (("e",), ("e", "ee", "s", "es"), ("s", "se"))


@dataclass(frozen=True, slots=True)
class HashFunction:
    """A hash of section 12 with its output and block length in bytes."""

    new: Callable[..., Any]
    length: int
    block: int

    def digest(self, data: bytes) -> bytes:
        """The hash of ``data``."""
        result: bytes = self.new(data).digest()
        return result

    def hmac(self, key: bytes, data: bytes) -> bytes:
        """HMAC (RFC 2104) of ``data``; the BLAKE2 functions too are used through HMAC, not in keyed mode."""
        return hmac.new(key, data, self.new).digest()

    def hkdf(self, chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
        """The two outputs of section 4.3, each of the hash's full length."""
        secret = self.hmac(chaining_key, material)
        first = self.hmac(secret, b"\x01")
        return first, self.hmac(secret, first + b"\x02")


HASHES = {
    "BLAKE2b": HashFunction(hashlib.blake2b, 64, 128),
    "BLAKE2s": HashFunction(hashlib.blake2s, 32, 64),
    "SHA256": HashFunction(hashlib.sha256, 32, 64),
    "SHA512": HashFunction(hashlib.sha512, 64, 128),
}


def protocol_name(cipher: Cipher, hash_name: str = "BLAKE2b") -> str:
    """The Noise name that both ends mix in first."""
    return f"Noise_XX_25519_{cipher.value}_{hash_name}"


class CipherState:
    """One direction's key and message counter, replaced by the Noise rekey after a volume of ciphertext.

    ``rekey_after_bytes`` counts ciphertext with its tags; both ends count the same messages, so they change the key
    after the same one without saying so. None never rekeys.
    """

    def __init__(self, cipher: Cipher, key: bytes, *, rekey_after_bytes: int | None = None) -> None:
        self._cipher = cipher
        self._key = key[:KEY_BYTES]
        self._counter = 0
        self._rekey_after_bytes = rekey_after_bytes
        self._volume_bytes = 0
        self.rekeys = 0

    def encrypt_into(self, out: memoryview, plaintext: Buffer, ad: bytes = b"") -> int:
        """Encrypt the next message into ``out``; returns its length, `TAG_BYTES` over the plaintext's."""
        if len(plaintext) > MAX_PLAINTEXT_BYTES:
            raise LocalProtocolError(f"a Noise message holds at most {MAX_PLAINTEXT_BYTES} bytes")
        written = seal_into(
            self._cipher, out, plaintext, ad=ad, nonce=nonce_bytes(self._cipher, self._counter), key=self._key
        )
        self._count(written)
        return written

    def decrypt_into(self, out: memoryview, ciphertext: Buffer, ad: bytes = b"") -> int:
        """Decrypt the next message into ``out``; returns its length, or raises `BadCiphertext`."""
        written = open_into(
            self._cipher, out, ciphertext, ad=ad, nonce=nonce_bytes(self._cipher, self._counter), key=self._key
        )
        self._count(len(ciphertext))
        return written

    def encrypt(self, plaintext: Buffer, ad: bytes = b"") -> bytes:
        """The next message, encrypted into bytes of its own."""
        out = bytearray(len(plaintext) + TAG_BYTES)
        self.encrypt_into(memoryview(out), plaintext, ad)
        return bytes(out)

    def decrypt(self, ciphertext: Buffer, ad: bytes = b"") -> bytes:
        """The next message, decrypted into bytes of its own. Raises `BadCiphertext`."""
        out = bytearray(max(len(ciphertext) - TAG_BYTES, 0))
        self.decrypt_into(memoryview(out), ciphertext, ad)
        return bytes(out)

    def rekey(self) -> None:
        """Replace the key by a one-way function of itself (section 11.3); the counter goes on."""
        out = bytearray(KEY_BYTES + TAG_BYTES)
        nonce = nonce_bytes(self._cipher, RESERVED_NONCE)
        seal_into(self._cipher, memoryview(out), bytes(KEY_BYTES), ad=b"", nonce=nonce, key=self._key)
        self._key = bytes(out[:KEY_BYTES])
        self._volume_bytes = 0
        self.rekeys += 1

    def _count(self, ciphertext_bytes: int) -> None:
        self._counter += 1
        if self._counter == RESERVED_NONCE:
            raise LocalProtocolError("the nonces of this direction are used up")
        self._volume_bytes += ciphertext_bytes
        if self._rekey_after_bytes is not None and self._volume_bytes >= self._rekey_after_bytes:
            self.rekey()


class SymmetricState:
    """The chaining key and the running hash of everything both sides saw (section 5.2)."""

    def __init__(self, name: str, cipher: Cipher, hash_function: HashFunction) -> None:
        encoded = name.encode()
        if len(encoded) <= hash_function.length:
            self.handshake_hash = encoded.ljust(hash_function.length, b"\0")
        else:
            self.handshake_hash = hash_function.digest(encoded)
        self._chaining_key = self.handshake_hash
        self._cipher_name = cipher
        self._hash = hash_function
        self._cipher: CipherState | None = None

    def mix_key(self, material: bytes) -> None:
        self._chaining_key, key = self._hash.hkdf(self._chaining_key, material)
        self._cipher = CipherState(self._cipher_name, key)

    def mix_hash(self, data: bytes) -> None:
        self.handshake_hash = self._hash.digest(self.handshake_hash + data)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = plaintext
        if self._cipher is not None:
            ciphertext = self._cipher.encrypt(plaintext, self.handshake_hash)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        plaintext = ciphertext
        if self._cipher is not None:
            plaintext = self._cipher.decrypt(ciphertext, self.handshake_hash)
        self.mix_hash(ciphertext)
        return plaintext

    @property
    def overhead_bytes(self) -> int:
        """What encryption adds to a field now: nothing before the first key."""
        return 0 if self._cipher is None else TAG_BYTES

    def split(self, rekey_after_bytes: int | None) -> tuple[CipherState, CipherState]:
        first, second = self._hash.hkdf(self._chaining_key, b"")
        return (
            CipherState(self._cipher_name, first, rekey_after_bytes=rekey_after_bytes),
            CipherState(self._cipher_name, second, rekey_after_bytes=rekey_after_bytes),
        )


class Handshake:
    """One side of Noise XX: messages are written and read in turn, then `split` gives the transport ciphers.

    Any message from the other side raises only `RemoteProtocolError` subclasses; calls out of turn raise
    `LocalProtocolError`. A payload may depend on the transcript: between ``start_message`` and ``finish_message``,
    and after ``read_message``, `transcript_hash` covers everything up to, not including, that message's payload.
    """

    def __init__(
        self,
        cipher: Cipher,
        *,
        is_initiator: bool,
        prologue: bytes,
        static_private: bytes,
        ephemeral_private: bytes,
        hash_name: str = "BLAKE2b",
    ) -> None:
        """``static_private`` and ``ephemeral_private`` are 32-byte X25519 secrets; the latter is used once."""
        self._symmetric = SymmetricState(protocol_name(cipher, hash_name), cipher, HASHES[hash_name])
        self._symmetric.mix_hash(prologue)
        self._is_initiator = is_initiator
        self._private = {"s": static_private, "e": ephemeral_private}
        self._remote: dict[str, bytes] = {}
        self._step = 0
        self._started: bytes | None = None
        self.transcript_hash = b""

    @property
    def is_complete(self) -> bool:
        """Whether all three messages have passed."""
        return self._step == len(XX_PATTERN)

    @property
    def is_my_turn(self) -> bool:
        """Whether the next message is ours to write."""
        return not self.is_complete and self._is_initiator == (self._step % 2 == 0)

    @property
    def handshake_hash(self) -> bytes:
        """The hash of the whole transcript so far; a channel binding once complete."""
        return self._symmetric.handshake_hash

    @property
    def remote_static(self) -> bytes:
        """The other side's X25519 public key. Raises `LocalProtocolError` before it arrived."""
        if "s" not in self._remote:
            raise LocalProtocolError("the remote static key is not known yet")
        return self._remote["s"]

    def start_message(self) -> None:
        """Write our keys of this turn and mix the Diffie-Hellman results; `finish_message` must follow."""
        if not self.is_my_turn or self._started is not None:
            raise LocalProtocolError("it is not our turn to write a handshake message")
        parts = []
        for token in XX_PATTERN[self._step]:
            if token in ("e", "s"):
                public = nacl.bindings.crypto_scalarmult_base(self._private[token])
                parts.append(self._put_key(token, public))
            else:
                self._mix_dh(token)
        self._started = b"".join(parts)
        self.transcript_hash = self.handshake_hash

    def finish_message(self, payload: bytes = b"") -> bytes:
        """The whole message of this turn with its ``payload`` (in clear in the first message, else encrypted)."""
        if self._started is None:
            raise LocalProtocolError("no handshake message was started")
        message = self._started + self._symmetric.encrypt_and_hash(payload)
        if len(message) > MAX_MESSAGE_BYTES:
            raise LocalProtocolError("the handshake payload is too long for one message")
        self._started = None
        self._step += 1
        return message

    def write_message(self, payload: bytes = b"") -> bytes:
        """`start_message` and `finish_message` at once, for a payload that needs no transcript."""
        self.start_message()
        return self.finish_message(payload)

    def read_message(self, message: bytes) -> bytes:
        """Take the other side's message and return its payload.

        Raises `Malformed` for a wrong length or an unusable key, `BadCiphertext` for what is not authentic: another
        prologue (network, version, cipher choice), another key, or bytes changed on the way.
        """
        if self.is_complete or self.is_my_turn:
            raise LocalProtocolError("it is not our turn to read a handshake message")
        if len(message) > MAX_MESSAGE_BYTES:
            raise TooLarge("handshake message", len(message), MAX_MESSAGE_BYTES)
        rest = message
        for token in XX_PATTERN[self._step]:
            if token in ("e", "s"):
                rest = self._take_key(token, rest)
            else:
                self._mix_dh(token)
        self.transcript_hash = self.handshake_hash
        payload = self._symmetric.decrypt_and_hash(rest)
        self._step += 1
        return payload

    def split(self, *, rekey_after_bytes: int | None = None) -> tuple[CipherState, CipherState]:
        """The transport ciphers (to send with, to receive with)."""
        if not self.is_complete:
            raise LocalProtocolError("the handshake is not complete")
        from_initiator, from_responder = self._symmetric.split(rekey_after_bytes)
        return (from_initiator, from_responder) if self._is_initiator else (from_responder, from_initiator)

    def _put_key(self, name: str, public: bytes) -> bytes:
        if name == "e":
            self._symmetric.mix_hash(public)
            return public
        return self._symmetric.encrypt_and_hash(public)

    def _take_key(self, name: str, message: bytes) -> bytes:
        size = DH_BYTES + (self._symmetric.overhead_bytes if name == "s" else 0)
        if len(message) < size:
            raise Malformed("a handshake message is shorter than its keys")
        field, rest = message[:size], message[size:]
        if name == "e":
            self._symmetric.mix_hash(field)
            self._remote["e"] = field
        else:
            self._remote["s"] = self._symmetric.decrypt_and_hash(field)
        return rest

    def _mix_dh(self, token: str) -> None:
        # A token names the initiator's key first: "es" is the initiator's ephemeral and the responder's static.
        ours, theirs = (token[0], token[1]) if self._is_initiator else (token[1], token[0])
        try:
            shared = nacl.bindings.crypto_scalarmult(self._private[ours], self._remote[theirs])
        except nacl.exceptions.RuntimeError as error:
            raise Malformed("the remote key is a point of low order") from error
        self._symmetric.mix_key(shared)
