"""Addresses as text: what is read, what is refused, and that both ways agree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moed.protocol.addresses import Address
from moed.protocol.errors import Malformed


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:4100", "127.0.0.1", 4100),
        ("Node-1.example.org:1", "node-1.example.org", 1),
        ("localhost:65535", "localhost", 65535),
        ("[::1]:4100", "::1", 4100),
        ("[2001:DB8::0:1]:80", "2001:db8::1", 80),
    ],
)
def test_good_addresses(text: str, host: str, port: int) -> None:
    """IPv4, names and bracketed IPv6, in one written form."""
    address = Address.parse(text)
    assert address == Address(host, port)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", ":80", "host:0", "host:65536", "host:-1", "host: 80", "host:80 ", "::1:80", "[::1]", "[]:80",
     "[host]:80", "1.2.3:80", "1.2.3.256:80", "01.2.3.4:80", "a_b:80", "-a:80", "a-:80", "a..b:80", "a" * 64 + ":80",
     "a\n:80", "host:80\n", "ho st:80", "http://host:80", "host:٨٠", "x" * 300 + ":80"],
)  # fmt: skip
def test_bad_addresses(text: str) -> None:
    """Everything else is refused in one typed way."""
    with pytest.raises(Malformed):
        Address.parse(text)


@given(text=st.text(max_size=40) | st.from_regex(r"[a-z0-9.\[\]:-]{1,20}:[0-9]{1,6}"))
def test_any_text_is_an_address_or_malformed(text: str) -> None:
    """What is read is written back to something that reads the same."""
    try:
        address = Address.parse(text)
    except Malformed:
        return
    assert Address.parse(str(address)) == address
