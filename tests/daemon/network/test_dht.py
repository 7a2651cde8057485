"""Discovery over real loopback sockets: join, publish, find, leave, and every way a record can be wrong."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import pytest
import structlog
import trio

from moed.daemon.network.datagrams import UdpPort
from moed.daemon.network.dht import Dht
from moed.daemon.network.entrance import resolve_name
from moed.daemon.network.routing import Peer
from moed.protocol import queries
from moed.protocol.envelope import Opener, seal
from moed.protocol.identity import Identity
from moed.protocol.queries import Contact
from moed.protocol.records import (
    DeviceSummary,
    ExpertSummary,
    PeerRecord,
    TopicEntry,
    key_of_peer,
    key_of_topic,
    sign_record,
)
from support.dht_nodes import NETWORK_ID, LoopbackNode, identity, loopback_nodes


def record_of(port: int, *, experts: int = 1) -> PeerRecord:
    return PeerRecord(
        addresses=(f"127.0.0.1:{port}",),
        roles=("miner",),
        devices=(
            DeviceSummary(
                kind="cpu",
                name="eight cores",
                total_bytes=1 << 34,
                free_bytes=1 << 33,
                matmul_flops_per_s=10**11,
                copy_bytes_per_s=10**10,
            ),
        ),
        experts=tuple(
            ExpertSummary(
                name=f"text.{number}",
                kind="text.next",
                domain="python",
                batch_limit=32,
                forwards_per_s=120.5,
                queue_delay_ms=1.5,
            )
            for number in range(experts)
        ),
        load=0.25,
        price=1000,
    )


async def test_nodes_find_each_other_through_one_address() -> None:
    """Six nodes that know one address know all contacts, each other's records and the members of a topic."""
    async with loopback_nodes(6) as nodes:
        for node in nodes:
            assert await node.dht.publish_peer(record_of(node.address[1])) == 5
        for node in nodes[2:]:
            assert await node.dht.announce("miners", note=b"text") == 5
        for node in nodes:
            assert {each.node_id for each in node.dht.contacts()} == {
                other.identity.node_id for other in nodes if other is not node
            }
            for other in nodes:
                found = await node.dht.find_peer(other.identity.node_id)
                assert found is not None
                assert (found.node_id, found.addresses) == (
                    other.identity.node_id,
                    (f"127.0.0.1:{other.address[1]}",),
                )
                assert (found.devices, found.experts, found.load, found.price) == (
                    record_of(1).devices,
                    record_of(1).experts,
                    0.25,
                    1000,
                )
            entries = await node.dht.find_topic("miners")
            assert [entry.node_id for entry in entries] == [
                each.node_id for each in sorted((n.identity for n in nodes[2:]), key=lambda each: each.public_key)
            ]
            assert {entry.note for entry in entries} == {b"text"}
        assert await nodes[1].dht.find_peer(bytes(20)) is None
        assert await nodes[1].dht.find_topic("nobody") == []


async def test_a_set_larger_than_a_datagram_is_found_whole() -> None:
    """Forty entries of one topic, more than ten datagrams, come back piece by piece."""
    async with loopback_nodes(2) as nodes:
        topic = "crowded"
        for number in range(100, 140):
            owner = identity(number)
            entry = TopicEntry(
                topic=topic,
                note=bytes(100),
                owner=owner.public_key,
                sequence=1,
                expires_at_s=int(time.time()) + 600,
            )
            nodes[0].dht._records.put(key_of_topic(topic), sign_record(entry, owner, NETWORK_ID), time.time())
        assert len(await nodes[1].dht.find_topic(topic)) == 40


async def test_a_newer_record_replaces_the_older_everywhere() -> None:
    """What is published later is what is found, and too many experts are cut to one datagram."""
    async with loopback_nodes(4) as nodes:
        await nodes[1].dht.publish_peer(record_of(1111))
        with structlog.testing.capture_logs() as logs:
            await nodes[1].dht.publish_peer(record_of(2222, experts=30))
        assert any(each["event"] == "dht.record_shortened" for each in logs)
        for node in nodes:
            found = await node.dht.find_peer(nodes[1].identity.node_id)
            assert found is not None
            assert found.addresses == ("127.0.0.1:2222",)
            assert 5 < len(found.experts) < 30


async def test_a_graceful_leave_withdraws_the_records() -> None:
    """After `withdraw` neither the peer nor its topic entries are found, although older copies were everywhere."""
    async with loopback_nodes(4) as nodes:
        await nodes[3].dht.publish_peer(record_of(nodes[3].address[1]))
        await nodes[3].dht.announce("miners")
        await nodes[2].dht.announce("miners")
        assert await nodes[0].dht.find_peer(nodes[3].identity.node_id) is not None
        await nodes[3].dht.withdraw()
        for node in nodes[:3]:
            assert await node.dht.find_peer(nodes[3].identity.node_id) is None
            assert [entry.node_id for entry in await node.dht.find_topic("miners")] == [nodes[2].identity.node_id]


async def test_a_first_node_is_there_alone() -> None:
    """Without bootstraps `join` ends at once; what a lone node publishes it finds, and the next node gets it."""
    async with loopback_nodes(2, joined=False) as nodes:
        assert await nodes[0].dht.join([]) == 0
        assert await nodes[0].dht.publish_peer(record_of(1)) == 0
        assert await nodes[0].dht.find_peer(nodes[0].identity.node_id) is not None
        assert await nodes[1].dht.join([nodes[0].address]) == 1
        with trio.fail_after(3):
            while not nodes[1].dht._records.get(key_of_peer(nodes[0].identity.node_id), time.time()):
                await trio.lowlevel.checkpoint()


async def test_dead_bootstraps_and_names_cost_little_beside_a_live_one() -> None:
    """With one live bootstrap by name among a dead one and two without an address, joining is quick; a line warns."""

    async def resolve(host: str, port: int) -> list[tuple[str, int]]:
        if host == "no.such.host":
            raise OSError("no such host")
        return await resolve_name("127.0.0.1" if host == "boot" else host, port)

    async with loopback_nodes(3) as nodes:
        silent = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        late = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        with silent, late:
            await silent.bind(("127.0.0.1", 0))
            await late.bind(("127.0.0.1", 0))
            joiner = Dht(identity(77), NETWORK_ID, resolve=resolve)
            async with trio.open_nursery() as nursery:
                await nursery.start(joiner.run, late)
                with structlog.testing.capture_logs() as logs, trio.fail_after(2.5):
                    known = await joiner.join(
                        [silent.getsockname(), ("no.such.host", 1), ("no..name", 1), ("boot", nodes[0].address[1])]
                    )
                assert known == 3
                nursery.cancel_scope.cancel()
        events = [each["event"] for each in logs]
        assert "dht.bootstrap_unresolved" in events
        assert "dht.joined" in events


async def test_a_remembered_peer_is_enough_to_come_back() -> None:
    """The contacts of one life, as plain data, let the next one join without any bootstrap."""
    async with loopback_nodes(3) as nodes:
        remembered = [Contact(each.node_id, each.host, each.port, each.last_seen_s) for each in nodes[2].dht.contacts()]
        assert len(remembered) == 2
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as socket:
            await socket.bind(("127.0.0.1", 0))
            again = Dht(identity(50), NETWORK_ID, remembered=remembered)
            async with trio.open_nursery() as nursery:
                await nursery.start(again.run, socket)
                assert await again.join([]) == 3
                nursery.cancel_scope.cancel()


async def test_it_opens_a_loop_of_its_own_where_none_runs() -> None:
    """Outside trio-asyncio `run` brings its own loop, ends cleanly, and questions open at that moment end too."""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as socket:
        await socket.bind(("127.0.0.1", 0))
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as silent:
            await silent.bind(("127.0.0.1", 0))
            dht = Dht(identity(1), NETWORK_ID)
            async with trio.open_nursery() as running:
                await running.start(dht.run, socket)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(dht.join, [silent.getsockname()])
                    await silent.recv(2048)  # its ping is out and will never be answered
                    with trio.fail_after(1):
                        running.cancel_scope.cancel()
                        await trio.lowlevel.checkpoint_if_cancelled()
    assert dht.contacts() == []


async def test_another_key_can_neither_forge_nor_overwrite_a_record() -> None:
    """A node that signs its stores properly still cannot place a record of somebody else."""
    async with loopback_nodes(3) as nodes:
        victim, attacker, holder = nodes[0], nodes[1], nodes[2]
        await victim.dht.publish_peer(record_of(victim.address[1]))
        target = contact_of(holder)
        place = key_of_peer(victim.identity.node_id)
        own = PeerRecord(
            owner=attacker.identity.public_key,
            sequence=1 << 60,
            expires_at_s=int(time.time()) + 600,
            addresses=("192.0.2.66:1",),
        )
        own_bytes = sign_record(own, attacker.identity, NETWORK_ID)
        forged = own_bytes.replace(attacker.identity.public_key, victim.identity.public_key)
        foreign_network = sign_record(
            msgspec.structs.replace(own, owner=victim.identity.public_key), victim.identity, b"other".ljust(32)
        )
        for data in (own_bytes, forged, foreign_network, b"rubbish"):
            assert not await attacker.dht._search.store(target, place, data)
        assert holder.dht.dropped["record_bad_signature"] == 2
        assert holder.dht.dropped["record_unexpected"] == 1
        assert holder.dht.dropped["record_malformed"] == 1
        for node in nodes:
            found = await node.dht.find_peer(victim.identity.node_id)
            assert found is not None
            assert found.addresses == (f"127.0.0.1:{victim.address[1]}",)
        assert {each.node_id for each in attacker.dht.contacts()} >= {holder.identity.node_id}


async def test_an_older_record_does_not_come_back() -> None:
    """A copy of a record that its owner has replaced is answered with no and changes nothing."""
    async with loopback_nodes(3) as nodes:
        owner, holder = nodes[0], nodes[1]
        place = key_of_peer(owner.identity.node_id)
        await owner.dht.publish_peer(record_of(1111))
        [old] = holder.dht._records.get(place, time.time())
        await owner.dht.publish_peer(record_of(2222))
        assert not await nodes[2].dht._search.store(contact_of(holder), place, old)
        [held] = holder.dht._records.get(place, time.time())
        assert held != old


async def test_lying_nodes_can_hide_nothing_while_honest_ones_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that answer with forged values and invented neighbours do not change what is found."""
    async with loopback_nodes(6) as nodes:
        owner = nodes[0]
        await owner.dht.publish_peer(record_of(owner.address[1]))
        fake = sign_record(
            PeerRecord(
                owner=identity(99).public_key,
                sequence=1 << 60,
                expires_at_s=int(time.time()) + 600,
                addresses=("192.0.2.66:1",),
            ),
            identity(99),
            NETWORK_ID,
        )
        for liar in nodes[1:3]:
            monkeypatch.setattr(liar.dht._protocol, "rpc_find_value", lie_with(fake))
        for seeker in nodes[3:]:
            seeker.dht._records.expire(time.time() + 10_000)  # what it held itself must not help it
            found = await seeker.dht.find_peer(owner.identity.node_id)
            assert found is not None
            assert found.addresses == (f"127.0.0.1:{owner.address[1]}",)


async def test_a_stranger_enters_no_table_before_it_answers() -> None:
    """A signed question from an address that does not answer gets its answer and one ping, and no place."""
    async with loopback_nodes(1) as [node]:
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as socket:
            await socket.bind(("127.0.0.1", 0))
            port = UdpPort(socket)
            stranger = identity(60)
            opener = Opener(stranger.node_id, NETWORK_ID)
            sent_bytes = received_bytes = pings = 0
            for number in range(20):
                datagram = question(stranger, node, queries.FindNode(stranger.node_id, bytes(20)), number)
                sent_bytes += len(datagram)
                port.send(datagram, node.address)
            messages = 0
            with trio.move_on_after(5) as patience:
                while True:
                    for data, _ in await port.receive():
                        received_bytes += len(data)
                        message = queries.split_body(opener.open(data, time.time()).body)
                        pings += not message.is_answer
                        messages += 1
                    if messages >= 21:  # all is here that may come; a little longer for what may not
                        patience.deadline = min(patience.deadline, trio.current_time() + 0.2)
            assert pings == 1
            assert 0 < received_bytes <= 4 * sent_bytes
            assert node.dht.contacts() == []
            port.close()


async def test_a_node_id_that_is_not_the_keys_is_refused() -> None:
    """A question that names another id than the hash of its key is dropped before it touches the table."""
    async with loopback_nodes(1) as [node]:
        stranger = identity(61)
        datagram = question(stranger, node, queries.Ping(identity(62).node_id), 1)
        node.dht._protocol.datagram_received(datagram, ("127.0.0.1", 9))
        unaddressed = seal(
            stranger,
            NETWORK_ID,
            None,
            queries.encode_query(bytes(20), queries.FindNode(stranger.node_id, bytes(20))),
            now_s=time.time(),
            nonce=bytes(8),
        )
        node.dht._protocol.datagram_received(unaddressed, ("127.0.0.1", 9))
        assert node.dht.dropped["unexpected"] == 2
        assert node.dht.contacts() == []


async def test_a_misspelt_call_is_an_error_and_not_a_remote_call() -> None:
    """The library turns unknown names into remote calls; ours does not."""
    async with loopback_nodes(1) as [node]:
        assert not hasattr(node.dht._protocol, "find_nod")
        assert not hasattr(node.dht._protocol, "_private")


def question(sender: Identity, node: LoopbackNode, query: queries.Query, number: int) -> bytes:
    body = queries.encode_query(number.to_bytes(20, "big"), query)
    nonce = number.to_bytes(8, "big")
    return seal(sender, NETWORK_ID, node.identity.node_id, body, now_s=time.time(), nonce=nonce)


def contact_of(node: LoopbackNode) -> Contact:
    return Peer(Contact(node.identity.node_id, *node.address)).contact


def lie_with(record: bytes) -> Callable[[bytes, bytes, int, int], queries.Found]:
    def rpc_find_value(asker: bytes, key: bytes, offset: int, budget_bytes: int) -> queries.Found:
        invented = [(bytes([number]) * 20, "127.0.0.1", 9 + number) for number in range(1, 4)]
        return queries.Found(value=[b"rubbish", record], next=offset + 1, nodes=invented)

    return rpc_find_value
