"""What strangers can send: random bytes, mutated real datagrams, floods. The node stays up, small and right."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import random
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing
import umsgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from moed.daemon.network.datagrams import Address, UdpPort
from moed.daemon.network.dht import Dht
from moed.daemon.network.library import Node, open_loop
from moed.protocol.envelope import HEADER_BYTES, MAX_DATAGRAM_BYTES, seal
from moed.protocol.queries import Ping, encode_query
from moed.protocol.records import PeerRecord, check_record
from support.dht_nodes import NETWORK_ID, identity, loopback_nodes

SEED = 20
JUNK = int(os.environ.get("MOED_FUZZ_DATAGRAMS", "10000"))
"""How many datagrams each of the two fuzzers sends: MOED_FUZZ_DATAGRAMS=100000 for the long run."""
SIXTY_BYTES = random.Random(26).randbytes(60)


class CapturingPort:
    """A `UdpPort` that keeps what passes through it, in both directions."""

    def __init__(self, socket: trio.socket.SocketType) -> None:
        self.inner = UdpPort(socket)
        self.captured: list[bytes] = []

    def send(self, data: bytes, address: Address) -> None:
        self.captured.append(data)
        self.inner.send(data, address)

    def reaches(self, host: str) -> bool:
        return self.inner.reaches(host)

    def block(self, addresses: Sequence[Address]) -> bool:
        return self.inner.block(addresses)

    async def receive(self) -> list[tuple[bytes, Address]]:
        batch = await self.inner.receive()
        self.captured += [data for data, _ in batch]
        return batch


def mutate(data: bytes, rng: random.Random) -> bytes:
    """``data`` with a byte changed, and bytes cut out, put in, repeated, or its parts swapped."""
    changed = bytearray(data)
    changed[rng.randrange(len(changed))] ^= rng.randrange(1, 256)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0:
                del changed[at : at + rng.randrange(1, 60)]
            case 1:
                changed[at:at] = rng.randbytes(rng.randrange(1, 40))
            case 2:
                changed = changed[at:] + changed[:at]
            case _:
                changed += changed[: rng.randrange(200)]
    return bytes(changed[:1500])


async def capture_real_datagrams() -> list[bytes]:
    """Everything that one node of three sends and receives while it joins, publishes, finds and leaves."""
    async with loopback_nodes(2) as nodes:
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as socket:
            await socket.bind(("127.0.0.1", 0))
            port = CapturingPort(socket)
            dht = Dht(identity(30), NETWORK_ID)
            async with trio.open_nursery() as nursery:
                await nursery.start(dht.serve, port)
                await dht.join([nodes[0].address])
                await dht.publish_peer(PeerRecord(addresses=("127.0.0.1:1",)))
                await dht.announce("miners")
                await dht.find_topic("miners")
                await dht.find_peer(nodes[1].identity.node_id)
                await dht.withdraw()
                nursery.cancel_scope.cancel()
            port.inner.close()
            return port.captured


async def test_junk_datagrams_change_nothing() -> None:
    """Random and mutated real datagrams: the node answers, its table is honest, its memory is flat."""
    rng = random.Random(SEED)
    real = await capture_real_datagrams()
    assert len(real) > 20
    # The limits are off here, so that every datagram is really looked at.
    async with loopback_nodes(3, max_datagrams_per_s=1e9) as nodes:
        node = nodes[0]
        for each in nodes:
            await each.dht.publish_peer(PeerRecord(addresses=(f"127.0.0.1:{each.address[1]}",)))
        before = {each.node_id for each in node.dht.contacts()}

        def junk(count: int) -> None:
            for number in range(count):
                data = mutate(rng.choice(real), rng) if number % 2 else rng.randbytes(rng.randrange(1400))
                node.dht._protocol.datagram_received(data, ("127.0.0.1", rng.randrange(1, 65536)))

        junk(JUNK // 2)  # tables of addresses and drop counts reach their size
        gc.collect()
        tracemalloc.start()
        junk(JUNK // 2)
        gc.collect()
        grown_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert grown_bytes < 1_000_000
        assert sum(node.dht.dropped.values()) == JUNK
        assert node.dht.dropped["bug"] == 0
        assert {each.node_id for each in node.dht.contacts()} == before
        for other in nodes[1:]:
            found = await other.dht.find_peer(node.identity.node_id)
            assert found is not None
            assert await other.dht._search.ping(node.address) is not None


async def test_signed_nonsense_from_many_keys_changes_nothing() -> None:
    """Mutated bodies under valid envelopes reach the decoders and the store, and do no more than be counted."""
    rng = random.Random(SEED)
    bodies = [data[HEADER_BYTES:] for data in await capture_real_datagrams()]
    questions = [body.rstrip(b"\0") for body in bodies if body[0] == 0 and body.count(identity(30).node_id)]
    strangers = [identity(number) for number in range(200, 230)]
    async with loopback_nodes(2, max_datagrams_per_s=1e9) as nodes:
        node = nodes[0]
        before = {each.node_id for each in node.dht.contacts()}
        for number in range(JUNK * 2 // 5):
            stranger = rng.choice(strangers)
            if number % 2:
                body = mutate(rng.choice(bodies), rng)[: MAX_DATAGRAM_BYTES - HEADER_BYTES]
            else:  # one byte of a question that names the right asker: it gets as far as it can
                question = rng.choice(questions).replace(identity(30).node_id, stranger.node_id)
                at = rng.randrange(1, len(question))
                body = question[:at] + rng.randbytes(1) + question[at + 1 :]
            nonce = number.to_bytes(8, "big")
            datagram = seal(stranger, NETWORK_ID, node.identity.node_id, body, now_s=time.time(), nonce=nonce)
            node.dht._protocol.datagram_received(datagram, ("127.0.0.1", 1 + number % 65535))
        assert node.dht.dropped["bug"] == 0
        assert node.dht.dropped["malformed"] + node.dht.dropped["unexpected"] > JUNK // 5
        assert node.dht._protocol.answered > 100, "the nonsense was too broken to reach the answers"
        assert {each.node_id for each in node.dht.contacts()} == before
        for key, record in node.dht._records:
            assert check_record(record, NETWORK_ID, time.time()).key == key
        assert await nodes[1].dht._search.ping(node.address) is not None


@settings(max_examples=200)
@given(data=st.binary(max_size=1300), cut=st.integers(0, 1200), at=st.integers(0, 1300), byte=st.integers(0, 255))
def test_any_datagram_is_counted_and_no_more(data: bytes, cut: int, at: int, byte: int) -> None:
    """Whatever hypothesis makes, raw or in a properly signed question, is dropped or answered, never raised."""
    dht = Dht(identity(0), NETWORK_ID, max_datagrams_per_s=1e9)
    sent: list[bytes] = []
    dht._protocol.connection_made(RecordingTransport(sent))
    question = encode_query(bytes(20), Ping(identity(1).node_id))
    body = (question[:cut] + data)[: MAX_DATAGRAM_BYTES - HEADER_BYTES]
    signed = seal(identity(1), NETWORK_ID, identity(0).node_id, body, now_s=time.time(), nonce=bytes(8))
    broken = bytearray(signed)
    broken[at % len(broken)] ^= byte
    for each in (data, signed, bytes(broken)):
        dht._protocol.datagram_received(each, ("127.0.0.1", 9))
    assert dht.dropped["bug"] == 0
    assert sum(dht.dropped.values()) + len(sent) == 3
    assert dht.contacts() == []


class RecordingTransport(asyncio.DatagramTransport):
    """Keeps what is sent."""

    def __init__(self, sent: list[bytes]) -> None:
        super().__init__()
        self._sent = sent

    def sendto(self, data: Any, addr: Any = None) -> None:
        self._sent.append(data)


async def test_the_kernel_drops_a_flooding_address_and_no_other() -> None:
    """An address far over its rate is shut out before its datagrams are received; others are heard meanwhile."""
    async with loopback_nodes(2, max_datagrams_per_s=50) as nodes:
        node = nodes[0]
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as flooder:
            await flooder.connect(node.address)
            for _ in range(20):
                for _ in range(100):
                    await flooder.send(SIXTY_BYTES)
                await trio.testing.wait_all_tasks_blocked(0.002)
            refused = node.dht.dropped["rate_limited"]
            assert 400 <= refused < 1500, "the filter came late or never"
            assert await nodes[1].dht._search.ping(node.address) is not None
            for _ in range(50):
                await flooder.send(SIXTY_BYTES)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert node.dht.dropped["rate_limited"] == refused
            node.dht._protocol._floods._until_s = dict.fromkeys(node.dht._protocol._floods._until_s, 0.0)
            node.dht._protocol.forgive_floods()
            await flooder.send(SIXTY_BYTES)
            with trio.fail_after(30):
                while sum(node.dht.dropped.values()) == refused + node.dht.dropped["malformed"]:
                    if node.dht.dropped["rate_limited"] > refused:
                        break
                    await trio.sleep(0.01)
                    await flooder.send(SIXTY_BYTES)


async def test_replayed_real_datagrams_do_nothing() -> None:
    """Every real datagram, sent once more to the same nodes from elsewhere, is dropped."""
    async with loopback_nodes(2) as nodes:
        stranger = identity(40)
        ping = seal(
            stranger,
            NETWORK_ID,
            nodes[0].identity.node_id,
            encode_query(bytes(20), Ping(stranger.node_id)),
            now_s=time.time(),
            nonce=bytes(8),
        )
        protocol = nodes[0].dht._protocol
        protocol.datagram_received(ping, ("127.0.0.1", 9))
        assert protocol.answered > 0
        answered = protocol.answered
        for port in range(10, 60):
            protocol.datagram_received(ping, ("127.0.0.1", port))
        assert protocol.answered == answered
        assert nodes[0].dht.dropped["expired"] == 50


async def test_sixty_random_bytes_end_a_program_on_the_stock_protocol() -> None:
    """Why decoding is guarded: in the library the same datagram raises in a task, which ends the loop around it."""
    stock = importlib.import_module("kademlia.protocol")

    async def program() -> None:
        async with open_loop() as loop:
            protocol = stock.KademliaProtocol(Node(identity(0).node_id), {}, 20)
            loop.call_soon(protocol.datagram_received, SIXTY_BYTES, ("127.0.0.1", 9))
            await trio.sleep(1)

    with pytest.raises(BaseExceptionGroup) as raised:
        await program()
    assert raised.group_contains(umsgpack.UnpackException)


async def test_sixty_random_bytes_do_nothing() -> None:
    """The datagram that ends a stock trio-asyncio program is one more in a counter here."""
    async with loopback_nodes(2) as nodes:
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as socket:
            await socket.sendto(SIXTY_BYTES, nodes[0].address)
            with trio.fail_after(3):
                while not nodes[0].dht.dropped:
                    await trio.lowlevel.checkpoint()
        assert nodes[0].dht.dropped == {"malformed": 1}
        assert await nodes[1].dht._search.ping(nodes[0].address) is not None
        assert len(nodes[0].dht.contacts()) == 1


async def test_a_flood_from_one_address_leaves_the_others_served() -> None:
    """Validly signed questions from one address beyond its rate are dropped; another peer still gets answers."""
    async with loopback_nodes(2, max_datagrams_per_s=50) as nodes:
        stranger = identity(41)
        protocol = nodes[0].dht._protocol
        for number in range(1000):
            body = encode_query(number.to_bytes(20, "big"), Ping(stranger.node_id))
            protocol.datagram_received(
                seal(
                    stranger,
                    NETWORK_ID,
                    nodes[0].identity.node_id,
                    body,
                    now_s=time.time(),
                    nonce=number.to_bytes(8, "big"),
                ),
                ("127.0.0.1", 9),
            )
        assert nodes[0].dht.dropped["rate_limited"] > 800
        assert await nodes[1].dht._search.ping(nodes[0].address) is not None


async def test_a_bug_met_by_a_datagram_is_logged_and_does_not_end_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown exception while one datagram is handled is counted; the next one is answered."""
    async with loopback_nodes(2) as nodes:
        protocol = nodes[0].dht._protocol
        monkeypatch.setattr(protocol, "rpc_ping", lambda: 1 // 0)
        assert await nodes[1].dht._search.ping(nodes[0].address) is None
        monkeypatch.undo()
        assert nodes[0].dht.dropped["bug"] == 1
        assert await nodes[1].dht._search.ping(nodes[0].address) is not None
