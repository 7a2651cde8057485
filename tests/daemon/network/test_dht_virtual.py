"""Discovery on virtual time: expiry, renewal, dead nodes, loss and coming back, hours in a moment."""

from __future__ import annotations

import random

import structlog
import trio
from trio.testing import MockClock

from moed.daemon.network.dht import Dht
from moed.daemon.network.library import open_loop
from moed.daemon.network.routing import Peer
from moed.daemon.simulation.schedule import same_schedule
from moed.protocol import queries
from moed.protocol.envelope import HEADER_BYTES, MAX_AMPLIFICATION, MAX_DATAGRAM_BYTES
from moed.protocol.queries import Contact
from moed.protocol.records import PeerRecord, key_of_peer
from support.datagram_network import DatagramNetwork
from support.dht_nodes import EPOCH_S, VirtualNodes, identity


def record_of(number: int) -> PeerRecord:
    return PeerRecord(addresses=(f"192.0.2.1:{number + 1}",))


async def test_sixty_nodes_find_everybody_with_a_third_of_them_dead(autojump_clock: MockClock) -> None:
    """With k of 8 and 20 of 60 nodes gone, every record of the living is found, none later than a few time-outs."""
    async with open_loop(), trio.open_nursery() as nursery:
        nodes = VirtualNodes(nursery, DatagramNetwork(seed=1))
        await nodes.add(60, k=8)
        for number, dht in enumerate(nodes.dhts):
            assert await dht.publish_peer(record_of(number)) >= 8
        rng = random.Random(1)
        dead = set(rng.sample(range(60), 20))
        for number in dead:
            nodes.kill(number)
        living = sorted(set(range(60)) - dead)
        times_s = []
        for number in living:
            wanted = rng.choice(living)
            started_s = trio.current_time()
            found = await nodes.dhts[number].find_peer(identity(wanted).node_id)
            times_s.append(trio.current_time() - started_s)
            assert found is not None
            assert found.addresses == record_of(wanted).addresses
        assert max(times_s) < 2.5
        assert sorted(times_s)[len(times_s) // 2] < 1.0
        nursery.cancel_scope.cancel()


async def test_records_live_while_their_owner_does_and_not_much_longer(autojump_clock: MockClock) -> None:
    """Over three hours a living owner stays findable; a dead owner's record is gone an hour after its last word."""
    async with open_loop(), trio.open_nursery() as nursery:
        nodes = VirtualNodes(nursery, DatagramNetwork(seed=2))
        await nodes.add(8)
        for number in (3, 4):
            await nodes.dhts[number].publish_peer(record_of(number))
        nodes.kill(4)
        for _ in range(6):
            await trio.sleep(1800)
            assert await nodes.dhts[1].find_peer(identity(3).node_id) is not None
        assert await nodes.dhts[1].find_peer(identity(4).node_id) is None
        place = key_of_peer(identity(4).node_id)
        assert nodes.dhts[1]._records.get(place, EPOCH_S + trio.current_time()) == []
        nursery.cancel_scope.cancel()


async def test_a_tenth_of_datagrams_lost_loses_no_record(autojump_clock: MockClock) -> None:
    """With every tenth datagram lost, all of twelve nodes still find all records."""
    async with open_loop(), trio.open_nursery() as nursery:
        network = DatagramNetwork(seed=3)
        nodes = VirtualNodes(nursery, network)
        await nodes.add(12)
        network.loss = 0.1
        for number, dht in enumerate(nodes.dhts):
            assert await dht.publish_peer(record_of(number)) >= 3
        for dht in nodes.dhts:
            for number in range(12):
                assert await dht.find_peer(identity(number).node_id) is not None
        nursery.cancel_scope.cancel()


async def test_a_node_that_lost_everybody_comes_back_by_itself(autojump_clock: MockClock) -> None:
    """After an hour cut off the node knows nobody, says so, and is found again soon after the network is back."""
    async with open_loop(), trio.open_nursery() as nursery:
        nodes = VirtualNodes(nursery, DatagramNetwork(seed=4))
        await nodes.add(5)
        lost = nodes.dhts[4]
        await lost.publish_peer(record_of(4))
        nodes.ports[4].is_dead = True
        with structlog.testing.capture_logs() as logs:
            await trio.sleep(2 * 3600)
        assert [each["event"] for each in logs].count("dht.alone") == 1
        assert lost.contacts() == []
        nodes.ports[4].is_dead = False
        await trio.sleep(60)
        assert len(lost.contacts()) == 4
        await trio.sleep(1200)
        assert await nodes.dhts[1].find_peer(identity(4).node_id) is not None
        nursery.cancel_scope.cancel()


async def test_every_datagram_on_the_wire_fits_and_answers_keep_the_bound(autojump_clock: MockClock) -> None:
    """In a busy network no datagram exceeds 1,200 bytes and no answer three times its question."""
    async with open_loop(), trio.open_nursery() as nursery:
        network = DatagramNetwork(seed=5, round_trip_s=0.02)
        nodes = VirtualNodes(nursery, network)
        await nodes.add(30)
        for number, dht in enumerate(nodes.dhts):
            await dht.publish_peer(record_of(number))
            await dht.announce("everybody", note=bytes(100))
        assert len(await nodes.dhts[7].find_topic("everybody")) == 30
        assert max(len(data) for data, _, _ in network.captured) <= MAX_DATAGRAM_BYTES
        questions = {}
        answers = 0
        for data, _, _ in network.captured:
            message_id = data[HEADER_BYTES + 1 :][:20]
            if data[HEADER_BYTES] == 0:
                questions[message_id] = len(data)
            else:
                answers += 1
                assert len(data) <= MAX_AMPLIFICATION * questions[message_id]
        assert answers > 1000
        assert all(dht.dropped.get("bug", 0) == 0 for dht in nodes.dhts)
        nursery.cancel_scope.cancel()


async def test_an_idle_network_refreshes_its_buckets(autojump_clock: MockClock) -> None:
    """After more than an hour without look-ups each node has asked again, and nobody was forgotten."""
    async with open_loop(), trio.open_nursery() as nursery:
        network = DatagramNetwork(seed=6)
        nodes = VirtualNodes(nursery, network)
        await nodes.add(10)
        await trio.sleep(60)  # what joining set going is over
        network.captured.clear()
        await trio.sleep(3000)
        assert network.captured == []
        await trio.sleep(1000)
        assert len(network.captured) > 10
        assert all(len(dht.contacts()) == 9 for dht in nodes.dhts)
        nursery.cancel_scope.cancel()


async def test_liars_cannot_pass_off_an_older_record(autojump_clock: MockClock) -> None:
    """With a third of all nodes replaying a record that its owner has replaced, everybody gets the newest one."""
    async with open_loop(), trio.open_nursery() as nursery:
        nodes = VirtualNodes(nursery, DatagramNetwork(seed=7))
        await nodes.add(30)
        owner = nodes.dhts[0]
        key = key_of_peer(identity(0).node_id)
        await owner.publish_peer(record_of(1))
        old = {number: dht._records.get(key, EPOCH_S + trio.current_time()) for number, dht in enumerate(nodes.dhts)}
        await owner.publish_peer(record_of(2))
        holders = [number for number in range(1, 30) if old[number]]
        for number in holders[: len(holders) * 2 // 5]:
            replay(nodes.dhts[number], old[number])
        for dht in nodes.dhts[1:]:
            dht._records.expire(EPOCH_S + 1e9)  # its own copy must not help it
            found = await dht.find_peer(identity(0).node_id)
            assert found is not None
            assert found.addresses == record_of(2).addresses
            await owner.publish_peer(record_of(2))
        nursery.cancel_scope.cancel()


def replay(dht: Dht, old: list[bytes]) -> None:
    """From now on this node answers with ``old``, whatever it is given, and names nobody."""

    def rpc_find_value(asker: bytes, key: bytes, offset: int, budget_bytes: int) -> queries.Found:
        return queries.Found(value=old)

    setattr(dht._protocol, "rpc_find_value", rpc_find_value)  # noqa: B010  # a method may not be assigned


async def test_a_node_without_ipv6_asks_no_ipv6_neighbours(autojump_clock: MockClock) -> None:
    """Neighbours of a family that the port does not reach are left out, and cost no time-out."""
    async with open_loop(), trio.open_nursery() as nursery:
        network = DatagramNetwork(seed=8)
        nodes = VirtualNodes(nursery, network)
        await nodes.add(3)
        far = Peer(Contact(identity(900).node_id, "2001:db8::1", 9000))
        nodes.dhts[0]._protocol.router.add_contact(far)
        seeker = nodes.dhts[2]
        for reaches_all in (True, False):
            seeker._protocol.reaches = (lambda host: True) if reaches_all else (lambda host: ":" not in host)
            network.captured.clear()
            await seeker.nearest(identity(900).node_id)
            asked = {target[0] for _, source, target in network.captured if source == nodes.ports[2].address}
            assert ("2001:db8::1" in asked) == reaches_all
        nursery.cancel_scope.cancel()


def test_the_same_seed_gives_the_same_run() -> None:
    """Two runs on virtual time carry the very same datagrams at the very same moments."""

    async def run() -> list[bytes]:
        async with open_loop(), trio.open_nursery() as nursery:
            network = DatagramNetwork(seed=9)
            nodes = VirtualNodes(nursery, network)
            await nodes.add(12)
            for number, dht in enumerate(nodes.dhts):
                await dht.publish_peer(record_of(number))
            await trio.sleep(100)
            nursery.cancel_scope.cancel()
            return [data for data, _, _ in network.captured]

    traces = []
    for _ in range(2):
        with same_schedule(3):
            traces.append(trio.run(run, clock=MockClock(autojump_threshold=0)))
    assert traces[0] == traces[1]
