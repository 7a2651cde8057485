"""How others see this node: the address that most of them name, and whether they can dial it back.

Both come from several peers and the majority decides, so one liar changes nothing. A peer that is asked to dial back
tries only the host that the question came from, over UDP and TCP, under a key made for this one attempt: the answer
comes from a stranger, as it would for anybody else, and nobody can be aimed at a third party.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog
import trio

from moed.protocol import queries
from moed.protocol.addresses import Address
from moed.protocol.codec import Record, convert_record
from moed.protocol.envelope import NONCE_BYTES, Opener, seal
from moed.protocol.errors import RemoteProtocolError
from moed.protocol.identity import Identity, NodeId

from .calls import SMALL_ANSWER_BYTES, Call, Refused, Reply
from .datagrams import UdpPort
from .errors import CallError
from .peers import Peers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .calls import Handler
    from .dht import Dht

logger = structlog.get_logger()

METHOD = "reach.dial_back"
ASKED = 5
"""So many peers are asked where they see us and to dial back."""
MIN_VOTES = 2
"""Fewer say nothing: a peer that is alone could be lying."""
DIAL_S = 4.0
ANSWER_S = 12.0
FIRST_CHECK_S = 30.0
CHECK_EVERY_S = 600.0
MAX_AT_ONCE = 4
AGAIN_AFTER_S = 5.0
"""A peer may ask for a dial back this often."""
MAX_ASKERS = 512
UDP_TRIES = 3


class DialBack(Record, frozen=True, kw_only=True):
    """Please dial the host that this comes from at ``port``, over UDP and TCP."""

    port: int

    def __post_init__(self) -> None:
        Address.parse(f"localhost:{self.port}")


class DialledBack(Record, frozen=True, kw_only=True):
    """Whether the asker, proven by its key, answered."""

    udp: bool
    tcp: bool


@dataclass(frozen=True, slots=True)
class Reachability:
    """What peers say of us. ``udp`` and ``tcp`` are None as long as too few have said anything."""

    external_host: str | None = None
    host_votes: int = 0
    udp: bool | None = None
    tcp: bool | None = None
    dial_votes: int = 0

    @property
    def is_client(self) -> bool:
        """Whether peers could not dial us: we dial them."""
        return self.udp is False or self.tcp is False


class Reach:
    """Learns how this node is reached, and dials others back for them.

    ``port`` is where this node listens, over UDP and TCP alike.
    """

    def __init__(self, dht: Dht, peers: Peers, node_id: NodeId, network_id: bytes, port: int) -> None:
        self._dht = dht
        self._peers = peers
        self._node_id = node_id
        self._network_id = network_id
        self._port = port
        self._limit = trio.CapacityLimiter(MAX_AT_ONCE)
        self._asked_at: dict[NodeId, float] = {}
        self.known = Reachability()

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """What this node does for its peers."""
        return {METHOD: self._dial_back}

    @property
    def is_client(self) -> bool:
        """Whether two checks in a row found that peers cannot dial this node."""
        return self._dht.is_client

    async def run(self) -> None:
        """Check again and again until cancelled; twice the same bad news makes this node a client."""
        await trio.sleep(FIRST_CHECK_S)
        was_client = False
        while True:
            before = self.known
            now = await self.check()
            is_client = now.is_client and was_client
            if is_client != self._dht.is_client:
                logger.warning("reach.changed", is_client=is_client, udp=now.udp, tcp=now.tcp)
            self._dht.is_client = is_client
            was_client = now.is_client
            if now.external_host != before.external_host:
                logger.info("reach.address", host=now.external_host, votes=now.host_votes)
            await trio.sleep(FIRST_CHECK_S if now.is_client and not is_client else CHECK_EVERY_S)

    async def check(self) -> Reachability:
        """Ask peers now; the answer is kept in ``known``."""
        seen = await self._dht.seen_from(ASKED)
        host, host_votes = majority([host for host, _ in seen])
        answers = await self._ask_to_dial()
        known = Reachability(host, host_votes, dial_votes=len(answers))
        if len(answers) >= MIN_VOTES:
            known = replace(
                known,
                udp=2 * sum(each.udp for each in answers) >= len(answers),
                tcp=2 * sum(each.tcp for each in answers) >= len(answers),
            )
        self.known = known
        return known

    async def _ask_to_dial(self) -> list[DialledBack]:
        answers: list[DialledBack] = []

        async def ask(peer_index: int) -> None:
            try:
                reply = await peers[peer_index].call(
                    METHOD, {"port": self._port}, deadline_s=ANSWER_S, max_answer_bytes=SMALL_ANSWER_BYTES
                )
                answers.append(convert_record(reply.body, DialledBack))
            except (CallError, RemoteProtocolError) as error:
                logger.debug("reach.no_answer", peer=peers[peer_index].node_id.hex(), reason=str(error))

        peers = self._peers.connected()[:ASKED]
        async with trio.open_nursery() as nursery:
            for index in range(len(peers)):
                nursery.start_soon(ask, index)
        return answers

    async def _dial_back(self, call: Call) -> Reply:
        question = convert_record(call.body, DialBack)
        self._admit(call.peer.node_id)
        target = Address(call.peer.address.host, question.port)
        async with self._limit:
            stranger = Identity(os.urandom(32))
            results: dict[str, bool] = {}

            async def try_udp() -> None:
                results["udp"] = await answers_ping(stranger, self._network_id, call.peer.node_id, target)

            async def try_tcp() -> None:
                results["tcp"] = await opens_session(stranger, self._network_id, call.peer.node_id, target)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(try_udp)
                nursery.start_soon(try_tcp)
        return Reply(results)

    def _admit(self, asker: NodeId) -> None:
        now = trio.current_time()
        if now - self._asked_at.get(asker, float("-inf")) < AGAIN_AFTER_S:
            raise Refused("too_often", f"this node dials back once in {AGAIN_AFTER_S:.0f} s for each peer")
        self._asked_at.pop(asker, None)
        self._asked_at[asker] = now
        while len(self._asked_at) > MAX_ASKERS:
            del self._asked_at[next(iter(self._asked_at))]


def majority(votes: Sequence[str]) -> tuple[str | None, int]:
    """The vote that more than half name, at least `MIN_VOTES` of them, and how many do."""
    if not votes:
        return None, 0
    [(first, count)] = Counter(votes).most_common(1)
    return (first, count) if count >= MIN_VOTES and 2 * count > len(votes) else (None, count)


async def answers_ping(stranger: Identity, network_id: bytes, node_id: NodeId, target: Address) -> bool:
    """Whether the node with this id answers a ping of ``stranger`` at ``target``, from a socket of its own."""
    family = trio.socket.AF_INET6 if ":" in target.host else trio.socket.AF_INET
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as socket:
        await socket.bind(("::" if family == trio.socket.AF_INET6 else "0.0.0.0", 0))  # noqa: S104  # any interface
        port = UdpPort(socket)
        try:
            return await _ping(port, stranger, network_id, node_id, target, time.time)
        finally:
            port.close()


async def _ping(
    port: UdpPort,
    stranger: Identity,
    network_id: bytes,
    node_id: NodeId,
    target: Address,
    now_s: Callable[[], float],
) -> bool:
    opener = Opener(stranger.node_id, network_id)
    for _ in range(UDP_TRIES):
        body = queries.encode_query(os.urandom(queries.MESSAGE_ID_BYTES), queries.Ping(stranger.node_id))
        nonce = os.urandom(NONCE_BYTES)
        datagram = seal(stranger, network_id, node_id, body, now_s=now_s(), nonce=nonce, is_client=True)
        port.send(datagram, (target.host, target.port))
        with trio.move_on_after(DIAL_S / UDP_TRIES):
            while True:
                for data, _ in await port.receive():
                    try:
                        opened = opener.open(data, now_s())
                        message = queries.split_body(opened.body)
                    except RemoteProtocolError:
                        continue
                    if opened.sender_id == node_id and message.is_answer and message.message_id == body[1:21]:
                        return True
    return False


async def opens_session(stranger: Identity, network_id: bytes, node_id: NodeId, target: Address) -> bool:
    """Whether the node with this id opens a session with ``stranger`` at ``target``; it is closed at once."""
    peers = Peers(stranger, network_id)
    async with trio.open_nursery() as nursery:
        await nursery.start(peers.run, [])
        try:
            await peers.connect(target, node_id, timeout_s=DIAL_S)
            is_open = True
        except CallError:
            is_open = False
        nursery.cancel_scope.cancel()
    return is_open
