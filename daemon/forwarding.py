"""The mixture of a node without a gate: completions are forwarded to a validator that has one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

import numpy as np
import structlog
from msgspec import Meta
from numpy.typing import NDArray

from moed.consensus.state import read_neurons, stake_behind
from moed.protocol.codec import Record, convert_record
from moed.protocol.errors import Malformed, RemoteProtocolError
from moed.protocol.experts import longest_text_answer
from moed.protocol.identity import NodeId

from .chain import Chain
from .control.api import ControlRefused
from .control.questions import MAX_COMPLETION_BYTES
from .network.calls import SMALL_ANSWER_BYTES, Reply
from .network.errors import CallError
from .network.peers import Peers

logger = structlog.get_logger()
T = TypeVar("T")

MAX_PIECE_BYTES = 4 << 10
"""One byte of a continuation, or one row, with the shares of everybody who had a part in it."""


class CompletionRequest(Record, frozen=True, kw_only=True):
    """Asks a validator for a continuation of ``prompt``."""

    prompt: bytes
    max_bytes: Annotated[int, Meta(ge=1, le=MAX_COMPLETION_BYTES)]
    temperature: Annotated[float, Meta(ge=0, le=10)] = 0.0
    seed: int | None = None


class ForwardedMixture:
    """The mixture of a node without a gate: the validator with the most stake that we have a session with."""

    def __init__(self, chain: Chain, peers: Peers, *, deadline_s: float = 120.0) -> None:
        self._chain = chain
        self._peers = peers
        self._deadline_s = deadline_s

    async def complete(
        self, prompt: bytes, *, max_bytes: int, temperature: float, seed: int | None
    ) -> AsyncIterator[dict[str, Any]]:
        """Forward to a validator; its pieces come back together. Raises `ControlRefused` if there is none."""
        body = {"prompt": prompt, "max_bytes": max_bytes, "temperature": temperature, "seed": seed}
        longest = max_bytes * MAX_PIECE_BYTES + SMALL_ANSWER_BYTES
        for piece in await self._ask("mixture.complete", body, (), longest, _pieces_of):
            yield {"text": piece.text, "experts": piece.experts}

    async def forward(self, inputs: NDArray[np.uint8]) -> tuple[NDArray[np.float32], list[dict[str, float]]]:
        """Forward to a validator. Raises `ControlRefused` if there is none."""
        longest = longest_text_answer((len(inputs), 1)) + len(inputs) * MAX_PIECE_BYTES
        return await self._ask("mixture.forward", None, (inputs,), longest, partial(_rows_of, len(inputs)))

    async def _ask(
        self, method: str, body: Any, tensors: Sequence[NDArray[Any]], longest_bytes: int, read: Callable[[Reply], T]
    ) -> T:
        """What the first of the validators, in order of stake, answers that ``read`` understands.

        Raises `ControlRefused` if none does.
        """
        for node_id, _ in sorted(self._validators(), key=lambda one: -one[1]):
            peer = self._peers.get(node_id)
            if peer is None:
                continue
            try:
                return read(
                    await peer.call(method, body, tensors, deadline_s=self._deadline_s, max_answer_bytes=longest_bytes)
                )
            except (CallError, RemoteProtocolError) as error:
                logger.info("mixture.forward_failed", peer=peer.node_id.hex(), reason=str(error))
        raise ControlRefused(
            503,
            "no_validator",
            "no validator is reachable that could answer",
            "the network needs a validator and miners; `moectl peers` shows who is there",
        )

    async def losses(self) -> dict[str, Any]:
        """Only a validator can compare."""
        raise ControlRefused(409, "not_a_validator", "this node has no gate to measure", "ask a validator's socket")

    async def route(self, text: bytes) -> dict[str, Any]:
        """Only a validator routes."""
        raise ControlRefused(409, "not_a_validator", "this node has no gate to look into", "ask a validator's socket")

    async def teach(self, texts: Sequence[bytes], *, steps: int) -> dict[str, Any]:
        """Only a validator has a gate."""
        raise ControlRefused(409, "not_a_validator", "this node has no gate to teach", "ask a validator's socket")

    def _validators(self) -> Iterable[tuple[NodeId, int]]:
        state = self._chain.head.state
        for neuron in read_neurons(state):
            if neuron.has_permit:
                yield neuron.node_id, stake_behind(state, neuron.key)


class _Piece(Record, frozen=True, kw_only=True):
    text: str
    experts: dict[str, float]


class _Shares(Record, frozen=True, kw_only=True):
    rows: tuple[dict[str, float], ...]


class _Pieces(Record, frozen=True, kw_only=True):
    pieces: tuple[_Piece, ...]


def _pieces_of(reply: Reply) -> tuple[_Piece, ...]:
    """The pieces of a continuation. Raises `Malformed`."""
    return convert_record({"pieces": reply.body}, _Pieces).pieces


def _rows_of(count: int, reply: Reply) -> tuple[NDArray[np.float32], list[dict[str, float]]]:
    """Log-probabilities [B, 256] and shares for so many rows. Raises `Malformed`."""
    shares = convert_record({"rows": reply.body}, _Shares).rows
    if [one.shape for one in reply.tensors] != [(count, 256)] or len(shares) != count:
        raise Malformed(f"an answer for {count} rows has another shape")
    return np.asarray(reply.tensors[0], dtype=np.float32), list(shares)
