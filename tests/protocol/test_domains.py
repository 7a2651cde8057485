"""Hashes under a purpose: the frames that keep two purposes and two lists of parts apart."""

from __future__ import annotations

from hashlib import blake2b
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from moed.protocol.domains import Domain, hash_pair, signing_input, tagged_hash

DOMAINS = st.sampled_from(Domain)
PARTS = st.lists(st.binary(max_size=80), max_size=5)


def frames(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


@given(domain=DOMAINS, parts=PARTS)
def test_a_hash_covers_its_purpose_and_every_part_behind_its_length(domain: Domain, parts: list[bytes]) -> None:
    assert tagged_hash(domain, *parts) == blake2b(frames(domain.value, *parts), digest_size=32).digest()
    payload = b"".join(parts)
    assert signing_input(domain, b"network", payload) == frames(domain.value, b"network", payload)


@given(first=st.binary(min_size=32, max_size=32), second=st.binary(min_size=32, max_size=32))
def test_a_pair_of_hashes_is_hashed_as_two_parts(first: bytes, second: bytes) -> None:
    assert hash_pair(Domain.STATE_NODE, first, second) == tagged_hash(Domain.STATE_NODE, first, second)


def test_no_purpose_is_there_twice() -> None:
    tags = sorted(domain.value for domain in Domain)
    assert all(one != other for one, other in pairwise(tags))
    assert len(tags) == len(Domain.__members__)
