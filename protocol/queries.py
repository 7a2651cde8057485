"""The Kademlia questions and answers inside an envelope, between bytes and typed values.

A body is what the kademlia package's wire has always been: one byte (0 question, 1 answer), a 20-byte message id,
msgpack. A question is ``[name, arguments]`` with the asker's node id first; names and meanings are the package's
(ping, store, find_node, find_value, stun). Two things are ours: ``find_value`` carries the offset of the piece that
is asked for, and its answer ``{"value": [record…], "next": offset, "nodes": […]}`` holds a piece of a set and, where
room is left, neighbours, so that one question can both find records and go on looking.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, TypeAlias, TypeVar

import msgspec

from .errors import Malformed, Unexpected
from .identity import NODE_ID_BYTES, NodeId

MESSAGE_ID_BYTES = 20
HEADER_BYTES = 1 + MESSAGE_ID_BYTES
MAX_NEIGHBORS = 32
MAX_PIECES = 16
"""The most pieces of one set that are fetched from one node."""

_Id = Annotated[bytes, msgspec.Meta(min_length=NODE_ID_BYTES, max_length=NODE_ID_BYTES)]
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_Host = Annotated[str, msgspec.Meta(min_length=2, max_length=45)]
_Neighbors = Annotated[list[tuple[_Id, _Host, _Port]], msgspec.Meta(max_length=MAX_NEIGHBORS)]
_Offset = Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]


@dataclass(frozen=True, slots=True)
class Contact:
    """A node and the numeric address where it answers. ``last_seen_s`` is unix time, 0 if only heard of."""

    node_id: NodeId
    host: str
    port: int
    last_seen_s: float = 0.0

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there, and who are you? Answered with the node id."""

    asker: bytes


@dataclass(frozen=True, slots=True)
class Store:
    """Keep this record under this key. Answered with whether it is what is held now."""

    asker: bytes
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class FindNode:
    """Which contacts do you know nearest to this id?"""

    asker: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class FindValue:
    """Which records do you hold under this key, from this offset on?"""

    asker: bytes
    key: bytes
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Stun:
    """From which address do you see me?"""


Query: TypeAlias = Ping | Store | FindNode | FindValue | Stun


@dataclass(frozen=True, slots=True)
class Message:
    """A body taken apart; ``payload`` is still msgpack."""

    is_answer: bool
    message_id: bytes
    payload: bytes


class Found(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to `FindValue`: a piece of the set, where it goes on, and neighbours of the key."""

    value: Annotated[list[bytes], msgspec.Meta(max_length=64)] = []
    next: _Offset | None = None
    nodes: _Neighbors = []


_ARGUMENTS: dict[str, msgspec.msgpack.Decoder[tuple[object, ...]]] = {
    "ping": msgspec.msgpack.Decoder(tuple[_Id]),
    "store": msgspec.msgpack.Decoder(tuple[_Id, _Id, bytes]),
    "find_node": msgspec.msgpack.Decoder(tuple[_Id, _Id]),
    "find_value": msgspec.msgpack.Decoder(tuple[_Id, _Id, _Offset]),
    "stun": msgspec.msgpack.Decoder(tuple[()]),
}
_QUERIES = {"ping": Ping, "store": Store, "find_node": FindNode, "find_value": FindValue, "stun": Stun}
_NAMES = {query: name for name, query in _QUERIES.items()}
_question = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
_pong = msgspec.msgpack.Decoder(_Id)
_stored = msgspec.msgpack.Decoder(bool)
_neighbors = msgspec.msgpack.Decoder(_Neighbors)
_found = msgspec.msgpack.Decoder(Found)
_seen_from = msgspec.msgpack.Decoder(tuple[_Host, _Port])

_T = TypeVar("_T")


def split_body(body: bytes) -> Message:
    """Take a body apart. Raises `Malformed`."""
    if len(body) <= HEADER_BYTES or body[0] > 1:
        raise Malformed("the body is neither question nor answer")
    return Message(body[0] == 1, body[1:HEADER_BYTES], body[HEADER_BYTES:])


def encode_query(message_id: bytes, query: Query) -> bytes:
    """The body that asks ``query``."""
    match query:
        case Ping(asker):
            arguments: list[object] = [asker]
        case Store(asker, key, value):
            arguments = [asker, key, value]
        case FindNode(asker, key):
            arguments = [asker, key]
        case FindValue(asker, key, offset):
            arguments = [asker, key, offset]
        case Stun():
            arguments = []
    return b"\x00" + message_id + msgspec.msgpack.encode([_NAMES[type(query)], arguments])


def decode_query(payload: bytes) -> Query:
    """The question in ``payload``. Raises `Malformed`, or `Unexpected` for a name that is not ours."""
    name, arguments = _decode(_question, payload)
    if name not in _ARGUMENTS:
        raise Unexpected(f"no question is called {name[:20]!r}")
    query: Query = _QUERIES[name](*_decode(_ARGUMENTS[name], arguments))
    return query


def encode_answer(message_id: bytes, answer: object) -> bytes:
    """The body that answers with ``answer``."""
    return b"\x01" + message_id + msgspec.msgpack.encode(answer)


def decode_pong(payload: bytes) -> NodeId:
    """The answer to `Ping`. Raises `Malformed`."""
    return NodeId(_decode(_pong, payload))


def decode_stored(payload: bytes) -> bool:
    """The answer to `Store`. Raises `Malformed`."""
    return _decode(_stored, payload)


def decode_neighbors(payload: bytes) -> list[tuple[bytes, str, int]]:
    """The answer to `FindNode`, still to go through `contacts_of`. Raises `Malformed`."""
    return _decode(_neighbors, payload)


def decode_found(payload: bytes) -> Found:
    """The answer to `FindValue`. Raises `Malformed`."""
    return _decode(_found, payload)


def decode_seen_from(payload: bytes) -> tuple[str, int]:
    """The answer to `Stun`: the address the asker is seen from. Raises `Malformed`."""
    return _decode(_seen_from, payload)


def contacts_of(neighbors: Sequence[tuple[bytes, str, int]]) -> list[Contact]:
    """Neighbours from the wire as contacts. Raises `Malformed` for a host that is no unicast address.

    Only numeric addresses pass, so that a stranger's answer never causes a name look-up here.
    """
    contacts = []
    for node_id, host, port in neighbors:
        _require_unicast(host)
        contacts.append(Contact(NodeId(node_id), host, port))
    return contacts


@lru_cache(maxsize=4096)  # the same hosts are named in answer after answer, and parsing one takes microseconds
def _require_unicast(host: str) -> None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise Malformed(f"a neighbour's host is no numeric address: {host!r}") from error
    if "%" in host or address.is_multicast or address.is_unspecified:
        raise Malformed(f"a neighbour's host is no unicast address: {host!r}")


def fit_neighbors(neighbors: Sequence[tuple[bytes, str, int]], budget_bytes: int) -> list[tuple[bytes, str, int]]:
    """The first ``neighbors`` whose msgpack fits ``budget_bytes``: the nearest ones, when they come in order."""
    fitting = []
    budget_bytes -= 3
    for node_id, host, port in neighbors[:MAX_NEIGHBORS]:
        # heads: array 1, bytes 2, text at most 2, port at most 3
        budget_bytes -= len(node_id) + len(host) + 8
        if budget_bytes < 0:
            break
        fitting.append((node_id, host, port))
    return fitting


def _decode(decoder: msgspec.msgpack.Decoder[_T], payload: bytes | msgspec.Raw) -> _T:
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # a datagram has room for 1,000 levels
        raise Malformed(f"the message does not parse: {error}") from error
