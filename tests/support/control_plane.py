"""A small node behind the real control server: a real chain, and a mixture of two letter-counting models.

It has what the local API asks for and nothing else: blocks that were built, signed and executed, and text models
that were counted from text of the standard library, so that answers vary with the question as a node's do.
"""

from __future__ import annotations

import math
import pydoc_data.topics
import random
import textwrap
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import trio
from numpy.typing import NDArray

from moed import __version__
from moed.consensus.explain import explain_reward
from moed.consensus.params import CREDIT
from moed.consensus.state import read_account
from moed.consensus.transactions import SignedTransaction, Transfer
from moed.consensus.transition import Head
from moed.daemon.config import load_config, write_default
from moed.daemon.control.api import ControlRefused
from moed.daemon.control.credentials import AccessRules
from moed.daemon.control.server import ControlServer
from moed.daemon.desk import OperatorDesk
from moed.daemon.dht_view import DhtView
from moed.daemon.ledger_view import LedgerView
from moed.daemon.limits_watch import LimitsWatch
from moed.daemon.logs import Logs, configure_logging
from moed.daemon.network.peers import Peers
from moed.daemon.network.reach import Reach
from moed.daemon.network.traffic import Moved, PeerClass
from moed.daemon.reward_answer import reward_answer
from moed.daemon.settings import Settings
from moed.daemon.store import Store
from moed.protocol.identity import node_id_of
from moed.protocol.records import PeerRecord

from .chains import grow, key, make_genesis, sign_commit, signed
from .dht_nodes import NETWORK_ID, LoopbackNode, loopback_nodes
from .epochs import two_validators_two_miners

ORDER = 3
TEXTS = {
    "prose": "".join(pydoc_data.topics.topics[name] for name in ("assert", "import", "while", "if", "with")),
    "python": Path(textwrap.__file__).read_text("utf-8"),
}
HELD_OUT = "".join(text[-400:] for text in TEXTS.values())


class LetterModel:
    """The next letter after the last three, as often as it came in one text."""

    def __init__(self, text: str) -> None:
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for at in range(len(text) - ORDER):
            self._counts[text[at : at + ORDER]][text[at + ORDER]] += 1

    def shares(self, context: str) -> dict[str, float]:
        counts = self._counts.get(context[-ORDER:], Counter())
        total = counts.total()
        return {letter: count / total for letter, count in counts.items()}

    def chance(self, context: str, letter: str) -> float:
        return 0.9 * self.shares(context).get(letter, 0.0) + 0.1 / 128


class SmallNode:
    """A `ControlPlane` over five blocks of a two-validator chain, two models, and a DHT of two nodes."""

    discovery: DhtView

    def __init__(self, logs: Logs) -> None:
        self.logs = logs
        self.stopped = trio.Event()
        self.open_gate = trio.Event()
        self.open_gate.set()
        self.running = 0
        self.head = Head.at_genesis(make_genesis((60, 40), balances=(CREDIT,)))  # enough for the fees
        signers = [key(1), key(2)]
        self.blocks = [
            grow(self.head, signers, [signed(self.head, key(3), Transfer(to=key(9).public_key, amount=1), nonce)])
            for nonce in range(5)
        ]
        self.models = {str(uid): LetterModel(text[:-400]) for uid, text in enumerate(TEXTS.values(), start=2)}
        self.ledger = LedgerView(key(3), lambda: self.head, self._next_nonce, self._take)
        self._started = trio.current_time()

    def _next_nonce(self, sender: bytes) -> int:
        return read_account(self.head.state, sender).nonce

    async def _take(self, transaction: SignedTransaction) -> None:
        """A transaction is final in a block of its own."""
        self.blocks.append(grow(self.head, [key(1), key(2)], [transaction]))

    def request_stop(self) -> None:
        self.stopped.set()

    async def status(self) -> dict[str, Any]:
        return {
            "node_id": key(1).node_id.hex(),
            "network": self.head.network_id.hex(),
            "network_name": self.head.genesis.name,
            "version": __version__,
            "role": "validator",
            "uid": read_account(self.head.state, key(1).public_key).uid,
            "height": self.head.height,
            "best_known_height": self.head.height,
            "heights_heard": 1,
            "state_root": self.head.state_root.hex(),
            "peers": 1,
            "uptime_s": trio.current_time() - self._started,
            "ready": True,
            "synced": True,
        }

    async def peers(self) -> list[dict[str, Any]]:
        return [
            {
                "node_id": key(2).node_id.hex(),
                "address": "127.0.0.1:4700",
                "uid": read_account(self.head.state, key(2).public_key).uid,
                "roles": ["validator"],
                "direction": "out",
                "rtt_ms": 0.25,
            }
        ]

    async def experts(self) -> list[dict[str, Any]]:
        return [
            {"uid": int(uid), "node_id": key(int(uid) + 1).node_id.hex(), "name": name, "domain": name}
            for uid, name in zip(self.models, TEXTS, strict=True)
        ]

    async def capacity(self, owner: str | None = None) -> dict[str, Any]:
        raise ControlRefused(503, "not_measured", "nothing was measured yet", "ask again in a minute")

    async def rankings(self) -> dict[str, Any]:
        losses = {uid: self._loss([model]) for uid, model in self.models.items()}
        worth = {uid: 1 / loss for uid, loss in losses.items()}
        shares = {uid: value / sum(worth.values()) for uid, value in worth.items()}
        return {
            "epoch": 0,
            "height": self.head.height,
            "miners": [
                {
                    "uid": int(uid),
                    "node_id": key(int(uid) + 1).node_id.hex(),
                    "domain": domain,
                    "incentive": shares[uid],
                    "emission": 0,
                    "weight_by_validator": {"0": shares[uid]},
                }
                for uid, domain in zip(self.models, TEXTS, strict=True)
            ],
            "validators": [
                {
                    "uid": read_account(self.head.state, member.key).uid,
                    "node_id": node_id_of(member.key).hex(),
                    "stake": member.power,
                    "dividends": 0.0,
                    "trust": 0.0,
                }
                for member in self.head.validators.members
            ],
        }

    async def why_reward(self, *, uid: int, epoch: int | None) -> dict[str, Any]:
        if epoch not in (None, 1) or uid >= 4:
            raise ControlRefused(404, "unknown_epoch", "there was one epoch of four uids", "ask for that")
        return reward_answer(1, explain_reward(two_validators_two_miners(), uid))

    async def dht_get(self, key: str) -> dict[str, Any]:
        return await self.discovery.get(key)

    async def dht_table(self) -> dict[str, Any]:
        return self.discovery.table()

    async def dht_lookup(self, target: str) -> dict[str, Any]:
        return await self.discovery.lookup(target)

    async def doctor(self) -> dict[str, Any]:
        drift_s = self.head.params.max_clock_drift_ms / 1000
        return {**await self.discovery.doctor(), "max_clock_drift_s": drift_s, "signs_blocks": True}

    async def chain(self, *, start: int | None, limit: int) -> dict[str, Any]:
        first = max(self.head.height - limit + 1, 1) if start is None else max(start, 1)
        chosen = [block for block in self.blocks if block.height >= first][:limit]
        return {
            "height": self.head.height,
            "state_root": self.head.state_root.hex(),
            "validators": [{"node_id": node_id_of(member.key).hex()} for member in self.head.validators.members],
            "blocks": [
                {
                    "height": block.height,
                    "hash": block.hash.hex(),
                    "time_ms": block.header.time_ms,
                    "proposer": node_id_of(block.header.proposer).hex(),
                    "transactions": len(block.transactions),
                    "state_root": block.header.state_root.hex(),
                }
                for block in chosen
            ],
        }

    async def complete(
        self, prompt: bytes, *, max_bytes: int, temperature: float, seed: int | None
    ) -> AsyncIterator[dict[str, Any]]:
        text, draw = prompt.decode(), random.Random(seed)
        self.running += 1
        try:
            for _ in range(max_bytes):
                await self.open_gate.wait()
                by_model = {uid: model.shares(text) for uid, model in self.models.items()}
                mixed: Counter[str] = Counter()
                for shares in by_model.values():
                    mixed.update(shares)
                if not mixed:
                    raise ControlRefused(503, "no_answer", "no model knows these letters", "ask in plain English")
                letters = sorted(mixed, key=lambda letter: (-mixed[letter], letter))
                letter = letters[0] if temperature == 0 else draw.choices(letters, [mixed[c] for c in letters])[0]
                text += letter
                yield {
                    "text": letter,
                    "experts": {uid: shares.get(letter, 0.0) / mixed[letter] for uid, shares in by_model.items()},
                }
        finally:
            self.running -= 1

    async def forward(self, inputs: NDArray[np.uint8]) -> tuple[NDArray[np.float32], list[dict[str, float]]]:
        log_probs = np.full((len(inputs), 256), -np.inf, dtype=np.float32)
        rows: list[dict[str, float]] = []
        for row, context in enumerate(inputs):
            text = context.tobytes().decode("latin-1")
            chances = [
                sum(model.chance(text, chr(byte)) for model in self.models.values()) / len(self.models)
                for byte in range(256)
            ]
            log_probs[row] = np.log(np.array(chances) / sum(chances))
            rows.append({uid: 1 / len(self.models) for uid in self.models})
        return log_probs, rows

    async def route(self, text: bytes) -> dict[str, Any]:
        letters = text.decode()
        losses = {uid: -math.log2(model.chance(letters[:-1], letters[-1])) for uid, model in self.models.items()}
        mixture = -math.log2(sum(2**-loss for loss in losses.values()) / len(losses))
        shares = {uid: 2**-loss / sum(2**-one for one in losses.values()) for uid, loss in losses.items()}
        return {
            "context_bytes": len(text),
            "k": len(losses),
            "mixture_bits": mixture,
            "baseline_bits": 7.0,
            "experts": [
                {
                    "uid": int(uid), "name": uid, "score": -loss, "chosen": True, "share": shares[uid],
                    "latency_ms": 0.0, "bits": loss, "leave_one_out_bits": 7.0 - loss, "refused": None,
                }
                for uid, loss in losses.items()
            ],
            "next": [],
        }  # fmt: skip

    async def teach(self, texts: Sequence[bytes], *, steps: int) -> dict[str, Any]:
        raise ControlRefused(409, "not_a_validator", "counted models have no gate", "ask a validator's socket")

    async def losses(self) -> dict[str, Any]:
        each = [self._loss([model]) for model in self.models.values()]
        mixture = self._loss(list(self.models.values()))
        return {"mixture": mixture, "best_single": min(each), "uniform_average": mixture}

    def _loss(self, models: list[LetterModel]) -> float:
        """Bits per letter of held-out text under the mean of ``models``."""
        bits = [
            -math.log2(sum(model.chance(HELD_OUT[:at], HELD_OUT[at]) for model in models) / len(models))
            for at in range(ORDER, len(HELD_OUT))
        ]
        return sum(bits) / len(bits)


def small_desk(node: SmallNode, folder: Path) -> OperatorDesk:
    """The operator's side of ``node``, over a home that it makes in ``folder``: a configuration and its chain."""
    folder.mkdir(parents=True, exist_ok=True)
    write_default(folder / "config.toml", port=4811)
    settings = Settings(load_config(folder, environ={}), environ={})
    settings.on_change.append(lambda config: node.logs.set_level(config.log.level))
    head = Head.at_genesis(node.head.genesis)
    with Store(folder / "chain.db", head.genesis) as store:
        for block in node.blocks:
            executed, commit = head.execute(block), sign_commit(head.genesis, block, [key(1), key(2)])
            store.append(executed, commit)
            head.advance(executed, commit)
    watch = LimitsWatch(lambda: settings.config, traffic=lambda: {one: Moved(5, 7) for one in PeerClass})
    return OperatorDesk(settings, folder / "chain.db", watch.resources)


async def small_discovery(nodes: list[LoopbackNode], nursery: trio.Nursery) -> DhtView:
    """What the first of two DHT nodes shows, once both have published; it has no sessions."""
    for node in nodes:
        await node.dht.publish_peer(describe(node))
    first = nodes[0]
    peers = Peers(first.identity, NETWORK_ID)
    await nursery.start(peers.run, [])
    reach = Reach(first.dht, peers, first.identity.node_id, NETWORK_ID, first.address[1])
    return DhtView(first.dht, peers, reach, lambda: describe(first))


def describe(node: LoopbackNode) -> PeerRecord:
    return PeerRecord(addresses=(f"127.0.0.1:{node.address[1]}",), roles=("miner",))


@contextmanager
def logs_in_memory(level: str = "debug") -> Iterator[Logs]:
    """The process's log in a ring, its lines thrown away; afterwards structlog is as it was."""
    before = structlog.get_config()
    try:
        yield configure_logging(level, stream=StringIO())
    finally:
        structlog.configure(**before)


@contextmanager
def daemon_thread(socket_path: Path, rules: AccessRules | None = None) -> Iterator[SmallNode]:
    """A `SmallNode` served on ``socket_path`` by an event loop in a thread of its own, for blocking clients."""
    with logs_in_memory() as logs:
        ready, made = threading.Event(), []

        async def serve() -> None:
            node = SmallNode(logs)
            made.append((node, trio.lowlevel.current_trio_token()))
            async with loopback_nodes(2) as nodes, trio.open_nursery() as requests:
                async with trio.open_nursery() as doors:
                    node.discovery = await small_discovery(nodes, doors)
                    desk = small_desk(node, socket_path.with_name(f"{socket_path.name}-home"))
                    await doors.start(ControlServer(socket_path, node, desk, logs, rules=rules).run, requests)
                    structlog.get_logger().info("node.ready", node_id=key(1).node_id)
                    ready.set()
                    await node.stopped.wait()
                    doors.cancel_scope.cancel()
                requests.cancel_scope.deadline = trio.current_time() + 2

        thread = threading.Thread(target=trio.run, args=(serve,))
        thread.start()
        assert ready.wait(10), "the server did not start"
        node, token = made[0]
        try:
            yield node
        finally:
            with suppress(trio.RunFinishedError):  # a test stopped it over the socket
                token.run_sync_soon(node.stopped.set)
            thread.join(10)
            assert not thread.is_alive(), "the server did not stop"
