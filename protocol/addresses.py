"""Where a node listens: one host and one port, as text and back."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from .errors import Malformed

MAX_ADDRESS_CHARACTERS = 255
# Letters, digits and hyphens between dots: what resolvers take, and nothing that a log or shell reads otherwise.
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"(?=.{{1,247}}\Z){_LABEL}(\.{_LABEL})*\Z")
_TEXT = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:]+)):(?P<port>[0-9]{1,5})\Z")


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A host (IPv4, IPv6 without brackets, or a name) and a port from 1 to 65,535."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``host:port`` or ``[v6]:port``. Raises `Malformed` for anything else."""
        match = _TEXT.match(text) if len(text) <= MAX_ADDRESS_CHARACTERS else None
        if match is None:
            raise Malformed(f"an address is HOST:PORT or [IPv6]:PORT, not {text[:80]!r}")
        host = _checked_ipv6(match["six"]) if match["six"] else _checked_host(match["host"])
        port = int(match["port"])
        if not 0 < port < 65536:
            raise Malformed(f"a port is 1 to 65535, not {port}")
        return cls(host, port)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _checked_ipv6(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError as error:
        raise Malformed(f"{text[:80]!r} is no IPv6 address") from error


def _checked_host(text: str) -> str:
    # A host that ends in a number is an address, and then a whole one (as browsers read it); the rest are names.
    if text.rpartition(".")[2].isdigit():
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError as error:
            raise Malformed(f"{text[:80]!r} is no IPv4 address") from error
    if _NAME.match(text) is None:
        raise Malformed(f"{text[:80]!r} is no host name")
    return text.lower()
