"""How a node learns from its peers where it is seen and whether it can be dialled: real sockets, real sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from moed.daemon.network.errors import RemoteRefusal
from moed.daemon.network.peers import Peers
from moed.daemon.network.reach import METHOD, Reach, Reachability, answers_ping, majority, opens_session
from moed.daemon.ports import free_ports
from moed.protocol.addresses import Address
from support.dht_nodes import NETWORK_ID, LoopbackNode, identity, loopback_nodes


@dataclass(frozen=True)
class Reached:
    """A DHT node with sessions and a `Reach`."""

    node: LoopbackNode
    peers: Peers
    reach: Reach
    tcp: Address


@asynccontextmanager
async def reached_nodes(count: int, *, closed: frozenset[int] = frozenset()) -> AsyncIterator[list[Reached]]:
    """``count`` nodes with a session between the first and each other; ``closed`` ones say a port where nobody is."""
    async with loopback_nodes(count) as nodes, trio.open_nursery() as nursery:
        made = []
        for number, node in enumerate(nodes):
            peers = Peers(node.identity, NETWORK_ID)
            port = node.address[1] if number not in closed else free_ports(1)[0]
            reach = Reach(node.dht, peers, node.identity.node_id, NETWORK_ID, port)
            peers.add_handlers(reach.handlers)
            await nursery.start(peers.run, [node.listener])
            made.append(Reached(node, peers, reach, Address("127.0.0.1", node.address[1])))
        for other in made[1:]:
            await made[0].peers.connect(other.tcp, other.node.identity.node_id, timeout_s=5)
        yield made
        nursery.cancel_scope.cancel()


async def test_peers_dial_a_node_back_over_udp_and_tcp() -> None:
    """An open node hears from all peers that it is reached, where they see it, and stays a full node."""
    async with reached_nodes(4) as nodes:
        known = await nodes[0].reach.check()
        assert known == Reachability("127.0.0.1", 3, udp=True, tcp=True, dial_votes=3)
        assert not known.is_client
        assert len(nodes[0].peers.connected()) == 3, "dialling back disturbed the sessions"


async def test_a_node_behind_a_closed_port_is_a_client_and_no_contact_of_others() -> None:
    """Where nobody answers the dial back the node is a client: its word keeps it out of tables it was not yet in."""
    async with reached_nodes(3, closed=frozenset({0})) as nodes:
        known = await nodes[0].reach.check()
        assert (known.udp, known.tcp, known.dial_votes) == (False, False, 2)
        assert known.is_client
        client, other = nodes[0].node, nodes[1].node
        client.dht.is_client = True
        assert client.identity.node_id in {each.node_id for each in other.dht.contacts()}
        assert await client.dht._search.ping(other.address) is not None
        assert client.identity.node_id not in {each.node_id for each in other.dht.contacts()}
        assert await client.dht.find_peer(other.identity.node_id) is None  # it still asks, and gets an answer
        assert client.dht.contacts() != []


async def test_dialling_back_is_bounded() -> None:
    """A peer is dialled back once in a while, and a port that is none is refused; one peer's word is not enough."""
    async with reached_nodes(2) as nodes:
        known = await nodes[0].reach.check()
        assert (known.udp, known.tcp, known.dial_votes) == (None, None, 1)
        asked = nodes[0].peers.get(nodes[1].node.identity.node_id)
        assert asked is not None
        with pytest.raises(RemoteRefusal, match="too_often"):
            await asked.call(METHOD, {"port": nodes[0].node.address[1]}, deadline_s=5)
        for body in ({"port": 0}, {"port": 1, "host": "192.0.2.1"}, None):
            with pytest.raises(RemoteRefusal, match="malformed"):
                await asked.call(METHOD, body, deadline_s=5)


async def test_another_node_at_the_address_is_not_taken_for_the_one_that_was_meant() -> None:
    """Whoever answers has to prove the node id that was asked for, over UDP and TCP."""
    async with reached_nodes(2) as nodes:
        stranger, target = identity(700), nodes[0].tcp
        meant, other = (each.node.identity.node_id for each in nodes)
        assert await answers_ping(stranger, NETWORK_ID, meant, target)
        assert await opens_session(stranger, NETWORK_ID, meant, target)
        assert not await answers_ping(stranger, NETWORK_ID, other, target)
        assert not await opens_session(stranger, NETWORK_ID, other, target)


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([], (None, 0)),
        (["192.0.2.1"], (None, 1)),
        (["192.0.2.1", "192.0.2.1"], ("192.0.2.1", 2)),
        (["192.0.2.1", "192.0.2.1", "198.51.100.66"], ("192.0.2.1", 2)),
        (["192.0.2.1", "192.0.2.1", "198.51.100.66", "198.51.100.66"], (None, 2)),
    ],
)
def test_an_address_takes_more_than_half_of_the_votes(votes: list[str], expected: tuple[str | None, int]) -> None:
    """One peer alone decides nothing, nor does a tie."""
    assert majority(votes) == expected
