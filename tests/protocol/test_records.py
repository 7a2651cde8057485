"""Signed records: they round-trip, forgeries and foreign bytes give typed errors, the newest valid one wins."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moed.protocol.addresses import Address
from moed.protocol.codec import decode_record, encode_record
from moed.protocol.errors import (
    BadSignature,
    Expired,
    LocalProtocolError,
    Malformed,
    RemoteProtocolError,
    TooLarge,
)
from moed.protocol.identity import Identity
from moed.protocol.records import (
    MAX_LIFETIME_S,
    MAX_RECORD_BYTES,
    DeviceSummary,
    ExpertSummary,
    Gathered,
    PeerRecord,
    SignedRecord,
    TopicEntry,
    check_record,
    fit_peer_record,
    key_of_peer,
    key_of_topic,
    sign_record,
)

NETWORK = b"n" * 32
NOW_S = 1_800_000_000.0
ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)

counts = st.integers(0, (1 << 63) - 1)
measures = st.floats(0, 1e12, allow_nan=False)
texts = st.text(min_size=1, max_size=20)
hosts = st.one_of(st.ip_addresses().map(str), st.from_regex(r"[a-z][a-z0-9]{0,9}(\.[a-z]{2,5})?", fullmatch=True))
addresses = st.builds(Address, hosts, st.integers(1, 65535)).map(str)
devices = st.builds(
    DeviceSummary,
    kind=st.sampled_from(["cuda", "cpu"]),
    name=texts,
    total_bytes=counts,
    free_bytes=counts,
    matmul_flops_per_s=counts,
    copy_bytes_per_s=counts,
    count=st.integers(1, 16),
)
experts = st.builds(
    ExpertSummary,
    name=texts,
    kind=st.just("text.next"),
    domain=texts,
    batch_limit=counts,
    forwards_per_s=measures,
    queue_delay_ms=measures,
)
peers = st.builds(
    PeerRecord,
    owner=st.just(ALICE.public_key),
    sequence=counts,
    expires_at_s=st.integers(int(NOW_S) + 1, int(NOW_S) + MAX_LIFETIME_S),
    addresses=st.lists(addresses, max_size=3).map(tuple),
    roles=st.lists(st.sampled_from(["miner", "validator"]), max_size=2).map(tuple),
    devices=st.lists(devices, max_size=2).map(tuple),
    experts=st.lists(experts, max_size=2).map(tuple),
    load=measures,
    price=counts,
    withdrawn=st.booleans(),
)


def peer_of(identity: Identity, *, sequence: int = 1, port: int = 9000, lifetime_s: int = 60) -> PeerRecord:
    return PeerRecord(
        owner=identity.public_key,
        sequence=sequence,
        expires_at_s=int(NOW_S) + lifetime_s,
        addresses=(f"192.0.2.1:{port}",),
    )


@given(peers)
def test_a_peer_record_comes_back_as_it_was_signed(record: PeerRecord) -> None:
    """What is signed and encoded decodes to the same record, under its owner's key."""
    data = sign_record(record, ALICE, NETWORK)
    assert len(data) <= MAX_RECORD_BYTES < 1024
    assert check_record(data, NETWORK, NOW_S) == record
    assert record.key == key_of_peer(ALICE.node_id)
    assert record.node_id == ALICE.node_id


@given(st.text(min_size=1, max_size=64), st.binary(max_size=128))
def test_a_topic_entry_comes_back_as_it_was_signed(topic: str, note: bytes) -> None:
    """A topic entry round-trips with its note, under the key of its topic."""
    entry = TopicEntry(topic=topic, note=note, owner=ALICE.public_key, sequence=3, expires_at_s=int(NOW_S) + 5)
    checked = check_record(sign_record(entry, ALICE, NETWORK), NETWORK, NOW_S)
    assert checked == entry
    assert checked.key == key_of_topic(topic) != key_of_peer(topic.encode())


@given(st.binary(max_size=1100))
def test_any_bytes_give_only_typed_errors(data: bytes) -> None:
    """Random bytes are never a record and never another exception."""
    with pytest.raises(RemoteProtocolError):
        check_record(data, NETWORK, NOW_S)


@given(st.data())
def test_a_changed_byte_is_never_accepted(data: st.DataObject) -> None:
    """Whichever byte of a real record is changed, it is refused with a typed error."""
    signed = bytearray(sign_record(peer_of(ALICE), ALICE, NETWORK))
    at = data.draw(st.integers(0, len(signed) - 1))
    signed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RemoteProtocolError):
        check_record(bytes(signed), NETWORK, NOW_S)


def test_a_record_is_good_for_its_network_and_time_only() -> None:
    """Another network, an expired record and one that claims to live for ever are refused, each by its name."""
    data = sign_record(peer_of(ALICE, lifetime_s=60), ALICE, NETWORK)
    with pytest.raises(BadSignature):
        check_record(data, b"m" * 32, NOW_S)
    with pytest.raises(Expired, match="expired at"):
        check_record(data, NETWORK, NOW_S + 60)
    eternal = sign_record(peer_of(ALICE, lifetime_s=10 * MAX_LIFETIME_S), ALICE, NETWORK)
    with pytest.raises(Expired, match="too far ahead"):
        check_record(eternal, NETWORK, NOW_S)


def test_nobody_signs_for_another() -> None:
    """Bob can neither sign a record of Alice nor put his signature under her words."""
    with pytest.raises(LocalProtocolError):
        sign_record(peer_of(ALICE), BOB, NETWORK)
    hers = decode_record(sign_record(peer_of(ALICE), ALICE, NETWORK), SignedRecord)
    his = decode_record(sign_record(peer_of(BOB), BOB, NETWORK), SignedRecord)
    with pytest.raises(BadSignature):
        check_record(encode_record(msgspec.structs.replace(hers, signature=his.signature)), NETWORK, NOW_S)


def test_an_oversized_record_is_refused_on_both_sides() -> None:
    """The limit is checked when signing and before decoding."""
    crowded = msgspec.structs.replace(peer_of(ALICE), experts=(_expert("x" * 60),) * 32)
    with pytest.raises(LocalProtocolError, match="exceeds"):
        sign_record(crowded, ALICE, NETWORK)
    with pytest.raises(TooLarge):
        check_record(bytes(MAX_RECORD_BYTES + 1), NETWORK, NOW_S)


def test_fitting_keeps_as_many_experts_as_one_datagram_takes() -> None:
    """A record that is too large loses its last experts, no more than needed."""
    crowded = msgspec.structs.replace(peer_of(ALICE), experts=tuple(_expert(f"e{i:02}" * 10) for i in range(32)))
    fitted, data = fit_peer_record(crowded, ALICE, NETWORK)
    kept = len(fitted.experts)
    assert 0 < kept < 32
    assert fitted.experts == crowded.experts[:kept]
    assert check_record(data, NETWORK, NOW_S) == fitted
    with pytest.raises(LocalProtocolError):
        sign_record(msgspec.structs.replace(crowded, experts=crowded.experts[: kept + 1]), ALICE, NETWORK)


def test_devices_go_where_no_expert_is_left_to_leave_out() -> None:
    """What cannot be made to fit is our own mistake: the addresses stay, or nobody would find us."""
    sizes = {"total_bytes": 1 << 40, "free_bytes": 1 << 40, "matmul_flops_per_s": 10**15, "copy_bytes_per_s": 10**12}
    devices = tuple(DeviceSummary(kind="cuda", name="n" * 60, **sizes) for _ in range(16))
    crowded = msgspec.structs.replace(peer_of(ALICE), experts=(_expert("e"),), devices=devices)
    fitted, data = fit_peer_record(crowded, ALICE, NETWORK)
    assert fitted.experts == ()
    assert 0 < len(fitted.devices) < 16
    assert check_record(data, NETWORK, NOW_S) == fitted
    far = msgspec.structs.replace(peer_of(ALICE), addresses=tuple(f"{'h' * 60}.{'h' * 60}.{n}.org:1" for n in range(8)))
    with pytest.raises(LocalProtocolError):
        fit_peer_record(far, ALICE, NETWORK)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_measure_is_a_finite_number(value: float) -> None:
    """No infinite speed or negative load gets in."""
    with pytest.raises(Malformed):
        msgspec.structs.replace(_expert("e"), forwards_per_s=value)
    with pytest.raises(Malformed):
        PeerRecord(load=value)


def test_a_record_names_no_address_that_is_none() -> None:
    """What the one parser of addresses refuses is in no record."""
    with pytest.raises(Malformed):
        PeerRecord(addresses=("192.0.2.1:0",))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from([ALICE, BOB]), st.integers(1, 5)),
            st.binary(max_size=80),
        ),
        max_size=12,
    )
)
def test_merging_keeps_the_newest_valid_record_of_each_owner(answers: list[tuple[Identity, int] | bytes]) -> None:
    """However the answers are ordered and whatever nonsense is among them, the result is the obvious one."""
    topic = "expert/text"
    expected: dict[bytes, int] = {}
    datas = []
    for answer in answers:
        if isinstance(answer, bytes):
            datas.append(answer)
            continue
        owner, sequence = answer
        entry = TopicEntry(topic=topic, owner=owner.public_key, sequence=sequence, expires_at_s=int(NOW_S) + 9)
        datas.append(sign_record(entry, owner, NETWORK))
        expected[owner.public_key] = max(sequence, expected.get(owner.public_key, 0))
    gathered, elsewhere = Gathered(key_of_topic(topic), NETWORK), Gathered(key_of_topic("other"), NETWORK)
    for data in datas:
        is_valid = gathered.add(data, NOW_S)
        assert gathered.add(data, NOW_S) == is_valid
        assert not elsewhere.add(data, NOW_S)
    assert {record.owner: record.sequence for record in gathered.records()} == expected
    assert elsewhere.records() == []


def _expert(name: str) -> ExpertSummary:
    return ExpertSummary(
        name=name, kind="text.next", domain="python", batch_limit=32, forwards_per_s=10.5, queue_delay_ms=2.0
    )
