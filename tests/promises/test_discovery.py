"""Promises that discovery keeps by itself: real DHT nodes, on loopback sockets or on virtual time."""

from __future__ import annotations

import random

import trio
from trio.testing import MockClock

from moed.consensus.yuma import EpochInputs, EpochResult, epoch
from moed.daemon.discovery import TOPIC_HERE
from moed.daemon.network.dht import Dht, part_of
from moed.daemon.network.library import open_loop
from moed.protocol.identity import Identity
from moed.protocol.records import DeviceSummary, PeerRecord, TopicEntry, key_of_topic, sign_record
from support.datagram_network import DatagramNetwork
from support.dht_nodes import EPOCH_S, NETWORK_ID, VirtualNodes, loopback_nodes
from support.peering import until

MINERS = 3_523
INSTITUTIONS = 3
EACH = 3


def machine(institution: int) -> DeviceSummary:
    return DeviceSummary(
        kind="cpu",
        name=f"institution {institution}",
        total_bytes=(institution + 1) << 30,
        free_bytes=1 << 30,
        matmul_flops_per_s=10**9,
        copy_bytes_per_s=10**9,
    )


async def test_t1_machines_of_several_institutions_form_one_pool() -> None:
    """Three institutions with a network each become one pool once one machine of each knows another's door."""
    async with loopback_nodes(INSTITUTIONS * EACH, joined=False) as nodes:
        owned = [nodes[start : start + EACH] for start in range(0, len(nodes), EACH)]
        for institution in owned:
            for node in institution[1:]:
                await node.dht.join([institution[0].address])
        # a contact counts once it has answered, which nothing waits for
        await until(lambda: all(len(node.dht.contacts()) == EACH - 1 for node in nodes), within_s=30)
        for institution, door in zip(owned[1:], owned, strict=False):
            await institution[0].dht.join([door[0].address])
        for number, institution in enumerate(owned):
            for node in institution:
                await node.dht.publish_peer(PeerRecord(devices=(machine(number),)))
                await node.dht.announce(TOPIC_HERE)
        for asking in (owned[0][-1], owned[2][1]):
            members = await asking.dht.find_topic(TOPIC_HERE)
            assert {member.node_id for member in members} == {node.identity.node_id for node in nodes}
            records = [await asking.dht.find_peer(member.node_id) for member in members]
            pooled = [device for record in records if record is not None for device in record.devices]
            assert sum(device.total_bytes for device in pooled) == EACH * (1 + 2 + 3) << 30
            assert len({device.name for device in pooled}) == INSTITUTIONS


async def test_b24_thousands_of_miners_are_listed_counted_and_ranked(autojump_clock: MockClock) -> None:
    """3,523 miners, each under its own key, enter the DHT; any node lists all of them, and an epoch ranks them."""
    async with open_loop(), trio.open_nursery() as nursery:
        nodes = VirtualNodes(nursery, DatagramNetwork(seed=24, keep_captured=False))
        await nodes.add(12, k=4)
        rng = random.Random(24)
        miners = [Identity(rng.randbytes(32)) for _ in range(MINERS)]
        await _enter_all(miners, nodes.dhts)
        listed = await nodes.dhts[5].find_everybody(TOPIC_HERE)
        assert [entry.node_id for entry in listed] == [
            miner.node_id for miner in sorted(miners, key=lambda each: each.public_key)
        ]
        nursery.cancel_scope.cancel()
    worth = [rng.randrange(1, 65_536) for _ in listed]
    result = rank(worth)
    incentive = result.incentive_bits[2:]
    assert len(incentive) == len(listed) == MINERS
    by_incentive = sorted(range(MINERS), key=lambda uid: (-int(incentive[uid]), -worth[uid]))
    assert [worth[uid] for uid in by_incentive] == sorted(worth, reverse=True)
    assert incentive.min() > 0


def rank(worth: list[int]) -> EpochResult:
    """The epoch in which two validators, uids 0 and 1, give each listed miner a weight by its worth."""
    count = len(worth) + 2
    row = [(uid, weight) for uid, weight in enumerate(worth, start=2)]
    return epoch(
        EpochInputs(
            n=count,
            block=100,
            last_tempo_block=64,
            emission=10**12,
            stake=[60, 40, *[0] * len(worth)],
            validator_permit=[True, True, *[False] * len(worth)],
            last_update=[90] * count,
            block_at_registration=[0] * count,
            weights_u16=[row, row, *[[] for _ in worth]],
            bonds_u16=[[] for _ in range(count)],
        )
    )


async def _enter_all(miners: list[Identity], dhts: list[Dht]) -> None:
    """Each miner's entry, signed by itself, is stored through one of the nodes, part by part of the topic."""
    parts: dict[str, list[Identity]] = {}
    for miner in miners:
        parts.setdefault(part_of(TOPIC_HERE, miner.node_id), []).append(miner)

    async def enter(topics: list[str], dht: Dht) -> None:
        for topic in topics:
            nearest = await dht.nearest(key_of_topic(topic))
            for miner in parts[topic]:
                entry = TopicEntry(
                    topic=topic,
                    owner=miner.public_key,
                    sequence=1,
                    expires_at_s=int(EPOCH_S + trio.current_time()) + 7000,
                )
                data = sign_record(entry, miner, NETWORK_ID)
                assert await dht._search.store_on(nearest, entry.key, data) >= 2

    async with trio.open_nursery() as nursery:
        for number, dht in enumerate(dhts):
            nursery.start_soon(enter, list(parts)[number :: len(dhts)], dht)
