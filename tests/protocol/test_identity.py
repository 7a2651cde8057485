"""A signature holds for one key, purpose, network and content, however often it was good before."""

from __future__ import annotations

import pytest

from moed.protocol.domains import Domain
from moed.protocol.errors import BadSignature, LocalProtocolError, Malformed
from moed.protocol.identity import Identity, _Verified, node_id_of, verify, x25519_public_of

SIGNER, OTHER = Identity(bytes(32)), Identity(bytes(31) + b"\1")
NETWORK = b"n" * 32


@pytest.mark.parametrize("domain", [Domain.VOTE, Domain.RECEIPT])
def test_a_good_signature_vouches_for_nothing_else(domain: Domain) -> None:
    """Checked twice, it is good twice; under any other key, purpose, network, content or bytes it is refused."""
    signature = SIGNER.sign(domain, NETWORK, b"content")
    for _ in range(2):
        verify(SIGNER.public_key, domain, NETWORK, b"content", signature)
    flipped = signature[:-1] + bytes((signature[-1] ^ 1,))
    for wrong in (
        (OTHER.public_key, domain, NETWORK, b"content", signature),
        (SIGNER.public_key, Domain.TRANSACTION, NETWORK, b"content", signature),
        (SIGNER.public_key, domain, b"m" * 32, b"content", signature),
        (SIGNER.public_key, domain, NETWORK, b"contents", signature),
        (SIGNER.public_key, domain, NETWORK, b"content", flipped),
        (SIGNER.public_key, domain, NETWORK, b"content", signature[:-1]),
    ):
        for _ in range(2):
            with pytest.raises(BadSignature):
                verify(*wrong)


def test_the_memory_of_good_signatures_is_bounded() -> None:
    """Of many, the last generation or two are remembered."""
    memory = _Verified(generation=10)
    for number in range(100):
        memory.add(bytes((number,)))
        assert bytes((number,)) in memory
    remembered = [number for number in range(100) if bytes((number,)) in memory]
    assert 10 <= len(remembered) <= 20
    assert remembered[-1] == 99


def test_what_is_no_key_is_refused() -> None:
    """A key of another length, one that is no point, one of low order; and a seed of ours of another length."""
    for length in (0, 31, 33):
        with pytest.raises(Malformed):
            node_id_of(bytes(length))
        with pytest.raises(LocalProtocolError):
            Identity(bytes(length))
    for no_point in (b"\2" + bytes(31), b"\1" + bytes(31), b"\xff" * 32, bytes(31)):
        with pytest.raises(Malformed):
            x25519_public_of(no_point)


def test_a_key_pair_of_a_session_is_that_of_the_node() -> None:
    """The secret half that we hold belongs to the public half that others compute."""
    import nacl.bindings

    assert nacl.bindings.crypto_scalarmult_base(OTHER.x25519_private()) == x25519_public_of(OTHER.public_key)


def test_a_key_shows_no_secret() -> None:
    """What a log or a traceback prints of an identity is its node id alone."""
    assert repr(OTHER) == f"Identity({OTHER.node_id.hex()})"
