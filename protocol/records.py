"""Signed records of the DHT: who a peer is and where, who serves a topic, and the checks on both.

A stored value is one `SignedRecord`: kind, owner, sequence, expiry, payload and the owner's signature. Its key is
the hash of its kind and of the node id (peer record) or topic (topic entry), so nobody can store under the key of
somebody else. All three structs are arrays on the wire: a record has to fit one datagram, names would not.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NewType, TypeVar

import msgspec

from .addresses import Address
from .codec import Record, decode_record, encode, encode_record, require_length
from .domains import Domain, tagged_hash
from .errors import Expired, LocalProtocolError, Malformed, ProtocolError
from .identity import PUBLIC_KEY_BYTES, Identity, NodeId, node_id_of, verify

RecordKey = NewType("RecordKey", bytes)

MAX_RECORD_BYTES = 960
"""A store request with the envelope around it (at most 219 bytes) stays under 1,200 bytes."""
MAX_LIFETIME_S = 2 * 3600
"""The farthest expiry that is accepted: an owner that vanished is forgotten after this at the latest."""
MAX_CLOCK_SKEW_S = 60
MAX_ADDRESSES = 6
MAX_TOPIC_CHARS = 64
MAX_NOTE_BYTES = 128
VERSION: Literal[1] = 1

_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Word = Annotated[str, msgspec.Meta(min_length=1, max_length=24)]
_Topic = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TOPIC_CHARS)]
_Address = Annotated[str, msgspec.Meta(max_length=255)]


class DeviceSummary(Record, frozen=True, kw_only=True, array_like=True):
    """One kind of device of a peer, with its measured speed; ``count`` of them alike.

    ``matmul_flops_per_s`` counts a multiply and an add as two; ``copy_bytes_per_s`` counts each byte copied once.
    """

    kind: _Word
    name: _Name
    total_bytes: _Count
    free_bytes: _Count
    matmul_flops_per_s: _Count
    copy_bytes_per_s: _Count
    count: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 1


class ExpertSummary(Record, frozen=True, kw_only=True, array_like=True):
    """One expert that a peer serves, with its measured rate for a batch of ``batch_limit`` rows."""

    name: _Name
    kind: _Word
    domain: Annotated[str, msgspec.Meta(max_length=64)]
    batch_limit: _Count
    forwards_per_s: float
    queue_delay_ms: float

    def __post_init__(self) -> None:
        require_measure("forwards_per_s", self.forwards_per_s)
        require_measure("queue_delay_ms", self.queue_delay_ms)


class _PeerBody(Record, frozen=True, kw_only=True, array_like=True):
    """The payload of a peer record: what its owner says about itself."""

    addresses: Annotated[tuple[_Address, ...], msgspec.Meta(max_length=MAX_ADDRESSES)] = ()
    roles: Annotated[tuple[_Word, ...], msgspec.Meta(max_length=4)] = ()
    devices: Annotated[tuple[DeviceSummary, ...], msgspec.Meta(max_length=16)] = ()
    experts: Annotated[tuple[ExpertSummary, ...], msgspec.Meta(max_length=32)] = ()
    load: float = 0.0
    price: _Count = 0
    withdrawn: bool = False
    is_client: bool = False

    def __post_init__(self) -> None:
        require_measure("load", self.load)
        for address in self.addresses:
            Address.parse(address)


class PeerRecord(_PeerBody, frozen=True, kw_only=True, array_like=True):
    """Where the peer with this key is and what it can do, in its own signed words.

    ``addresses`` are 'host:port' (IPv6 in brackets), best first. ``load`` is the share of its capacity in use
    (1.0 is full, more is a queue). ``price`` is in 10⁻⁹ credits for one forward row. ``sequence`` grows with each
    new record of the owner. A record that is ``withdrawn`` says that the peer has left. A peer that ``is_client``
    cannot be dialled from outside: it dials others.
    """

    owner: bytes = bytes(PUBLIC_KEY_BYTES)
    sequence: _Count = 0
    expires_at_s: _Count = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_length("owner", self.owner, PUBLIC_KEY_BYTES)

    @property
    def node_id(self) -> NodeId:
        return node_id_of(self.owner)

    @property
    def key(self) -> RecordKey:
        return key_of_peer(self.node_id)


class _TopicBody(Record, frozen=True, kw_only=True, array_like=True):
    """The payload of a topic entry."""

    topic: _Topic
    note: bytes = b""
    withdrawn: bool = False

    def __post_init__(self) -> None:
        if len(self.note) > MAX_NOTE_BYTES:
            raise Malformed(f"a topic note has {len(self.note)} bytes, over {MAX_NOTE_BYTES}")


class TopicEntry(_TopicBody, frozen=True, kw_only=True, array_like=True):
    """One owner's word that it belongs to a topic (serves an expert, takes part in a role)."""

    owner: bytes = bytes(PUBLIC_KEY_BYTES)
    sequence: _Count = 0
    expires_at_s: _Count = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_length("owner", self.owner, PUBLIC_KEY_BYTES)

    @property
    def node_id(self) -> NodeId:
        return node_id_of(self.owner)

    @property
    def key(self) -> RecordKey:
        return key_of_topic(self.topic)


class SignedRecord(Record, frozen=True, kw_only=True, array_like=True):
    """What is stored and sent: a payload under its owner's signature."""

    version: Literal[1]
    kind: Literal["peer", "topic"]
    owner: bytes
    sequence: _Count
    expires_at_s: _Count
    payload: bytes
    signature: bytes

    def signed_bytes(self) -> bytes:
        """What the signature covers: every field but itself."""
        return encode([self.version, self.kind, self.owner, self.sequence, self.expires_at_s, self.payload])


_RecordT = TypeVar("_RecordT", PeerRecord, TopicEntry)


def require_measure(name: str, value: float) -> None:
    """Raise `Malformed` unless ``value`` is a finite number that is not negative."""
    if not (math.isfinite(value) and value >= 0):
        raise Malformed(f"{name} is no finite measure: {value!r}")


def key_of_peer(node_id: bytes) -> RecordKey:
    """Where the record of the peer with this id is stored."""
    return RecordKey(tagged_hash(Domain.RECORD_KEY, b"peer", node_id)[:20])


def key_of_topic(topic: str) -> RecordKey:
    """Where the entries of a topic are stored."""
    return RecordKey(tagged_hash(Domain.RECORD_KEY, b"topic", topic.encode())[:20])


def sign_record(record: PeerRecord | TopicEntry, identity: Identity, network_id: bytes) -> bytes:
    """The signed, encoded form of ``record``, which must name ``identity`` as its owner.

    Raises `LocalProtocolError` for a foreign owner or a record over `MAX_RECORD_BYTES`.
    """
    if record.owner != identity.public_key:
        raise LocalProtocolError("a record is signed by its own owner")
    kind: Literal["peer", "topic"] = "peer" if isinstance(record, PeerRecord) else "topic"
    unsigned = SignedRecord(
        version=VERSION,
        kind=kind,
        owner=record.owner,
        sequence=record.sequence,
        expires_at_s=record.expires_at_s,
        payload=_payload_of(record),
        signature=b"",
    )
    signature = identity.sign(Domain.RECORD, network_id, unsigned.signed_bytes())
    data = encode_record(msgspec.structs.replace(unsigned, signature=signature))
    if len(data) > MAX_RECORD_BYTES:
        raise LocalProtocolError(f"a {kind} record of {len(data)} bytes exceeds {MAX_RECORD_BYTES}")
    return data


def fit_peer_record(record: PeerRecord, identity: Identity, network_id: bytes) -> tuple[PeerRecord, bytes]:
    """Sign ``record``, leaving out its last experts, then devices, until it fits one datagram.

    Returns what was signed and its bytes. Raises `LocalProtocolError` if even a bare record does not fit.
    """
    while True:
        try:
            return record, sign_record(record, identity, network_id)
        except LocalProtocolError:
            if record.experts:
                record = msgspec.structs.replace(record, experts=record.experts[:-1])
            elif record.devices:
                record = msgspec.structs.replace(record, devices=record.devices[:-1])
            else:
                raise


def check_record(data: bytes, network_id: bytes, now_s: float) -> PeerRecord | TopicEntry:
    """Decode ``data`` and prove it: shape, time, signature, payload. Cheap checks come first.

    Raises `TooLarge`, `Malformed`, `Expired` (over, or too far ahead) and `BadSignature`.
    """
    signed = decode_record(data, SignedRecord, max_bytes=MAX_RECORD_BYTES)
    if signed.expires_at_s <= now_s:
        raise Expired(f"the record expired at {signed.expires_at_s}")
    if signed.expires_at_s > now_s + MAX_LIFETIME_S + MAX_CLOCK_SKEW_S:
        raise Expired(f"the record claims to live until {signed.expires_at_s}, too far ahead")
    verify(signed.owner, Domain.RECORD, network_id, signed.signed_bytes(), signed.signature)
    return _open_payload(signed)


class Gathered:
    """The records gathered under one key from many nodes, each checked once, the newest of each owner kept.

    What does not check is left out: an answer from a lying node can only be missing, never wrong. Withdrawn records
    stay in, so that they outlive older copies; the caller leaves them out of what it shows.
    """

    def __init__(self, key: bytes, network_id: bytes) -> None:
        self._key = key
        self._network_id = network_id
        self._checked: dict[bytes, bool] = {}
        self._newest: dict[bytes, PeerRecord | TopicEntry] = {}

    def add(self, data: bytes, now_s: float) -> bool:
        """Take in one record as it came; whether it is valid under this key."""
        is_valid = self._checked.get(data)
        if is_valid is None:
            is_valid = self._checked[data] = self._check(data, now_s)
        return is_valid

    def records(self) -> list[PeerRecord | TopicEntry]:
        """The newest valid record of each owner, ordered by owner."""
        return [self._newest[owner] for owner in sorted(self._newest)]

    def _check(self, data: bytes, now_s: float) -> bool:
        try:
            record = check_record(data, self._network_id, now_s)
        except ProtocolError:
            return False
        if record.key != self._key:
            return False
        held = self._newest.get(record.owner)
        if held is None or record.sequence > held.sequence:
            self._newest[record.owner] = record
        return True


def _payload_of(record: PeerRecord | TopicEntry) -> bytes:
    body = _PeerBody if isinstance(record, PeerRecord) else _TopicBody
    fields = {name: getattr(record, name) for name in body.__struct_fields__}
    return encode_record(body(**fields))


def _open_payload(signed: SignedRecord) -> PeerRecord | TopicEntry:
    if signed.kind == "peer":
        return _own(signed, decode_record(signed.payload, _PeerBody, max_bytes=MAX_RECORD_BYTES), PeerRecord)
    return _own(signed, decode_record(signed.payload, _TopicBody, max_bytes=MAX_RECORD_BYTES), TopicEntry)


def _own(signed: SignedRecord, body: Record, kind: type[_RecordT]) -> _RecordT:
    fields: dict[str, Any] = msgspec.structs.asdict(body)
    return kind(**fields, owner=signed.owner, sequence=signed.sequence, expires_at_s=signed.expires_at_s)
