"""Many accounts that send transactions to validators as fast as blocks take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import trio

from moed.consensus.blocks import decode_block
from moed.consensus.transactions import Body, Transfer, sign_transaction
from moed.daemon.network.calls import Call, Reply
from moed.daemon.network.peers import Peer, Peers
from moed.protocol.addresses import Address
from moed.protocol.codec import encode_record
from moed.protocol.identity import Identity

SENDERS = 500
IN_FLIGHT = 5_000
"""Transactions on the way at most; a pool holds 10,000, or 4 MiB of them."""
IN_FLIGHT_BYTES = 3 << 20
BATCH = 100


def senders() -> list[Identity]:
    """The accounts; a genesis gives each something to spend."""
    return [Identity(number.to_bytes(32, "big")) for number in range(1, SENDERS + 1)]


def transfer(to: bytes, memo_bytes: int) -> Body:
    return Transfer(to=to, amount=1, memo=b"m" * memo_bytes)


def sign_all(network_id: bytes, count: int, memo_bytes: int) -> list[bytes]:
    """So many transactions, ready to send: each sender's in the order of its nonces, senders in turn."""
    keys = senders()
    return [
        encode_record(
            sign_transaction(
                keys[number % SENDERS],
                network_id,
                number // SENDERS,
                transfer(keys[(number + 1) % SENDERS].public_key, memo_bytes),
            )
        )
        for number in range(count)
    ]


@dataclass(frozen=True, slots=True)
class Load:
    """What came of it: transactions final within the seconds that the load lasted, from the first block with any."""

    sent: int
    final: int
    seconds: float
    blocks: int


class Generator:
    """A peer of all validators that sends, and reads from the first what became final."""

    def __init__(self, network_id: bytes, addresses: Sequence[Address], bodies: Sequence[bytes]) -> None:
        self._addresses = addresses
        self._bodies = bodies
        self._window = min(IN_FLIGHT, IN_FLIGHT_BYTES // len(bodies[0]))
        self._peers = Peers(
            Identity(b"load generator".ljust(32)),
            network_id,
            handlers={
                **{f"chain.{name}": _ignore for name in ("vote", "proposal", "have", "transactions")},
                "chain.status": self._note_height,
            },
        )
        self._height = 0
        self._news = trio.Event()
        self._finals: list[tuple[float, int]] = []
        self._sent = 0
        self._final = 0

    async def run(self, seconds: float) -> Load:
        """Send for so long, with ever as much on the way as pools hold."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            await nursery.start(self._peers.run, [listener])
            peers = [await self._peers.connect(address, None, timeout_s=10) for address in self._addresses]
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as work:
                    work.start_soon(self._read, peers[0])
                    work.start_soon(self._write, peers)
            nursery.cancel_scope.cancel()
        counted = [(at, count) for at, count in self._finals if count]
        if len(counted) < 2:
            return Load(self._sent, 0, math.inf, 0)
        # from the first such block to the last: what is in the first one was sent before the clock ran
        return Load(
            self._sent, sum(count for _, count in counted[1:]), counted[-1][0] - counted[0][0], len(counted) - 1
        )

    async def _write(self, peers: Sequence[Peer]) -> None:
        for turn in range(len(self._bodies) // BATCH):
            while self._sent - self._final > self._window - BATCH:
                await self._news.wait()
            batch = list(self._bodies[turn * BATCH : (turn + 1) * BATCH])
            await peers[turn % len(peers)].notify("chain.transactions", batch)
            self._sent += BATCH
        await trio.sleep_forever()

    async def _read(self, peer: Peer) -> None:
        """Ask for each final block, and note when it was there and what it holds."""
        known = -1
        while True:
            while known >= self._height:
                await self._news.wait()
            at = trio.current_time()
            start = self._height if known < 0 else known + 1
            reply = await peer.call("chain.blocks", {"start": start, "limit": 8}, deadline_s=30)
            for encoded, _ in reply.body:
                block = await trio.to_thread.run_sync(partial(decode_block, encoded))
                known = block.height
                self._finals.append((at, len(block.transactions)))
                self._final += len(block.transactions)
            self._announce()

    async def _note_height(self, call: Call) -> Reply:
        self._height = max(self._height, call.body["height"])
        self._announce()
        return Reply(None)

    def _announce(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()


async def _ignore(_: Call) -> Reply:
    return Reply(None)
