"""A signature holds for one key, purpose, network and content, however often it was good before."""

from __future__ import annotations

import pytest

from moed.protocol.domains import Domain
from moed.protocol.errors import BadSignature
from moed.protocol.identity import Identity, _Verified, verify

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
