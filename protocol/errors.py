"""What can go wrong between bytes and records, and whose fault it was.

The tree:

    ProtocolError
    ├── LocalProtocolError          we broke the rules: a bug here, never caused by a peer
    └── RemoteProtocolError         they broke the rules: score the peer, close, carry on
        ├── Malformed               bytes that are not what they claim to be
        ├── TooLarge                a size over the limit that we announced
        ├── BadSignature            a signature that its key did not make
        ├── BadCiphertext           bytes that were not encrypted with the session's key
        ├── WrongIdentity           an authentic peer, but not the one that we asked for
        ├── Unexpected              a well-formed message that this state does not allow
        └── Expired                 a record or message whose time is over
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Base of everything that this layer raises."""


class LocalProtocolError(ProtocolError):
    """We asked for something that the protocol forbids; fix the caller."""


class RemoteProtocolError(ProtocolError):
    """The other side sent something that the protocol forbids; nothing of it was kept.

    ``code`` is the short stable name that travels in a refusal and in logs.
    """

    code = "protocol_error"


class Malformed(RemoteProtocolError):
    """The bytes do not parse, or parse to something of the wrong shape."""

    code = "malformed"


class TooLarge(RemoteProtocolError):
    """The announced or actual size exceeds the limit; refused before anything was allocated."""

    code = "too_large"

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(f"{what}: {size} exceeds the limit of {limit}")
        self.size = size
        self.limit = limit


class BadSignature(RemoteProtocolError):
    """A signature does not verify under the key that it names."""

    code = "bad_signature"


class BadCiphertext(RemoteProtocolError):
    """An encrypted message is not authentic: another network, version or key, or changed on the way."""

    code = "bad_ciphertext"


class WrongIdentity(RemoteProtocolError):
    """The peer proved who it is, and it is not the node that was expected here."""

    code = "wrong_identity"


class Unexpected(RemoteProtocolError):
    """A well-formed message arrived where this state, network or version does not allow it."""

    code = "unexpected"


class Expired(RemoteProtocolError):
    """A record or message is past its time, or was seen before."""

    code = "expired"
