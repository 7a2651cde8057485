"""Whom a validator can ask now, and asking them: many miners at once, with the time that each answer took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
import trio

from moed.consensus.state import read_neurons
from moed.protocol.experts import FORWARD, longest_text_answer
from moed.protocol.identity import NodeId

from .chain import Chain
from .discovery import Discovery
from .network.errors import CallError
from .network.peers import Peer, Peers

logger = structlog.get_logger()

EXPERT_KIND = "text.next"
ANSWER_DEADLINE_S = 10.0
MAX_PARTS = 16
"""A miner that takes fewer rows at once than we have is asked in parts, but no more than these."""

Tokens = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A registered miner that serves the kind of expert that we mix and that we have a session with.

    One uid is one model to us: of several experts of that kind ``expert`` is the first in the miner's record, which is
    the first of its configuration. The others are asked by whoever names them, and earn nothing here.
    """

    uid: int
    node_id: NodeId
    public_key: bytes
    expert: str
    max_rows: int
    registered_block: int


@dataclass(frozen=True, slots=True)
class Heard:
    """What came back: the answers by uid, how long each of those asked took, None for no answer, and whose key held
    the uid when it was asked."""

    answers: dict[int, npt.NDArray[Any]]
    latency_s: dict[int, float | None]
    keys: dict[int, bytes]


class Panel:
    """The miners that this node can ask, found on the chain, in the DHT and among its sessions."""

    def __init__(self, chain: Chain, peers: Peers, discovery: Discovery, public_key: bytes) -> None:
        self._chain = chain
        self._peers = peers
        self._discovery = discovery
        self._public_key = public_key
        self.miners: dict[int, Candidate] = {}
        """Those whom `ask` knows; whoever keeps them up to date sets this."""

    def candidates(self) -> dict[int, Candidate]:
        """The miners that can be asked now, by uid: on the chain, in the DHT, and in session with us."""
        found = {}
        for neuron in read_neurons(self._chain.head.state):
            if neuron.key == self._public_key or self._peers.get(neuron.node_id) is None:
                continue
            known = self._discovery.directory.get(neuron.node_id)
            # a record that another key signed cannot speak for this uid
            if known is None or known.record.owner != neuron.key:
                continue
            served = next((expert for expert in known.record.experts if expert.kind == EXPERT_KIND), None)
            if served is not None:
                found[neuron.uid] = Candidate(
                    neuron.uid, neuron.node_id, neuron.key, served.name, served.batch_limit, neuron.registered_block
                )
        return found

    async def ask(self, rows: Mapping[int, Tokens], deadline_s: float = ANSWER_DEADLINE_S) -> Heard:
        """Ask each uid of ``rows`` about its rows [B, T], all at once."""
        heard = Heard({}, {}, {uid: self.miners[uid].public_key for uid in rows if uid in self.miners})

        async def ask(uid: int, tokens: Tokens) -> None:
            asked_s = trio.current_time()
            answer = await self._ask_one(uid, tokens, deadline_s)
            heard.latency_s[uid] = None if answer is None else trio.current_time() - asked_s
            if answer is not None:
                heard.answers[uid] = answer

        async with trio.open_nursery() as nursery:
            for uid, tokens in rows.items():
                nursery.start_soon(ask, uid, tokens)
        return heard

    def still_held(self, heard: Heard) -> Heard:
        """What was heard of those whose uid is theirs as yet: another key has not answered for the one before it."""
        held = {uid for uid, key in heard.keys.items() if uid in self.miners and self.miners[uid].public_key == key}
        return Heard(
            {uid: answer for uid, answer in heard.answers.items() if uid in held},
            {uid: latency_s for uid, latency_s in heard.latency_s.items() if uid in held},
            {uid: heard.keys[uid] for uid in held},
        )

    async def _ask_one(self, uid: int, tokens: Tokens, deadline_s: float) -> npt.NDArray[Any] | None:
        """One miner's log-probabilities for ``tokens``, or None: no answer has no value, nor has a part of one."""
        miner = self.miners.get(uid)
        peer = self._peers.get(miner.node_id) if miner is not None else None
        if miner is None or peer is None:
            return None
        rows = max(miner.max_rows, -(-len(tokens) // MAX_PARTS))
        parts = [tokens[start : start + rows] for start in range(0, len(tokens), rows)]
        answers: list[npt.NDArray[Any] | None] = [None] * len(parts)

        async def ask(place: int) -> None:
            answers[place] = await _ask_peer(peer, miner, parts[place], deadline_s)

        async with trio.open_nursery() as nursery:
            for place in range(len(parts)):
                nursery.start_soon(ask, place)
        return _join(parts, answers)


async def _ask_peer(peer: Peer, miner: Candidate, tokens: Tokens, deadline_s: float) -> npt.NDArray[Any] | None:
    try:
        reply = await peer.call(
            FORWARD,
            {"expert": miner.expert, "codec": "float16"},
            [tokens],
            deadline_s=deadline_s,
            max_answer_bytes=longest_text_answer(tokens.shape),
        )
    except CallError as error:
        logger.info("validator.no_answer", uid=miner.uid, reason=str(error))
        return None
    tensors = reply.tensors
    return tensors[0] if len(tensors) == 1 and isinstance(tensors[0], np.ndarray) else None


def _join(parts: Sequence[Tokens], answers: Sequence[npt.NDArray[Any] | None]) -> npt.NDArray[Any] | None:
    """The answers to all parts as one, or None if one is missing or they are no parts of one answer."""
    first = answers[0]
    if first is None or len(parts) == 1:
        return first
    whole = []
    for part, answer in zip(parts, answers, strict=True):
        if answer is None or answer.dtype != first.dtype or answer.shape != (len(part), *first.shape[1:]):
            return None
        whole.append(answer)
    return np.concatenate(whole)
