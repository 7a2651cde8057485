"""The buffer path of the ciphers equals the public binding, and nothing forged passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moed.protocol import aead
from moed.protocol.aead import TAG_BYTES, Cipher, held_ciphers, nonce_bytes, open_into, seal_into
from moed.protocol.errors import BadCiphertext

HELD = [cipher for cipher in Cipher if cipher in held_ciphers()]


@pytest.mark.parametrize("cipher", HELD)
@given(data=st.binary(max_size=300), ad=st.binary(max_size=40), key=st.binary(min_size=32, max_size=32))
def test_buffers_and_public_binding_agree(cipher: Cipher, data: bytes, ad: bytes, key: bytes) -> None:
    """What either path seals is the same bytes, and either path opens it."""
    nonce = nonce_bytes(cipher, 7)
    first, second = bytearray(len(data) + TAG_BYTES), bytearray(len(data) + TAG_BYTES)
    assert seal_into(cipher, memoryview(first), data, ad=ad, nonce=nonce, key=key) == len(first)
    assert aead._public_seal(cipher)(memoryview(second), data, ad, nonce, key) == len(second)
    assert first == second
    for unseal in (aead._OPEN[cipher], aead._public_open(cipher)):
        out = bytearray(len(data))
        assert unseal(memoryview(out), bytes(first), ad, nonce, key) == len(data)
        assert bytes(out) == data


@pytest.mark.parametrize("cipher", HELD)
@given(data=st.binary(max_size=80), flip=st.integers(min_value=0))
def test_a_changed_bit_is_refused_on_both_paths(cipher: Cipher, data: bytes, flip: int) -> None:
    """Flipping any one bit of a ciphertext gives BadCiphertext, whichever path opens it."""
    key, nonce = bytes(32), nonce_bytes(cipher, 0)
    sealed = bytearray(len(data) + TAG_BYTES)
    seal_into(cipher, memoryview(sealed), data, ad=b"", nonce=nonce, key=key)
    flip %= len(sealed) * 8
    sealed[flip // 8] ^= 1 << flip % 8
    out = memoryview(bytearray(len(data)))
    for unseal in (aead._OPEN[cipher], aead._public_open(cipher)):
        with pytest.raises(BadCiphertext):
            unseal(out, bytes(sealed), b"", nonce, key)


@pytest.mark.parametrize("cipher", HELD)
def test_short_buffers_are_refused(cipher: Cipher) -> None:
    """No write happens past the end of an output, and a ciphertext shorter than its tag is not authentic."""
    key, nonce = bytes(32), bytes(12)
    with pytest.raises(ValueError, match="shorter"):
        seal_into(cipher, memoryview(bytearray(10)), b"data", ad=b"", nonce=nonce, key=key)
    with pytest.raises(ValueError, match="shorter"):
        open_into(cipher, memoryview(bytearray(1)), bytes(TAG_BYTES + 4), ad=b"", nonce=nonce, key=key)
    with pytest.raises(BadCiphertext):
        open_into(cipher, memoryview(bytearray(1)), bytes(TAG_BYTES - 1), ad=b"", nonce=nonce, key=key)


def test_nonce_is_big_endian_for_aesgcm_and_little_for_chacha() -> None:
    """The counter's byte order is the one of Noise revision 34, section 12."""
    assert nonce_bytes(Cipher.AESGCM, 1) == bytes(11) + b"\x01"
    assert nonce_bytes(Cipher.CHACHAPOLY, 1) == bytes(4) + b"\x01" + bytes(7)
