"""Groups waiting requests into batches: fair between callers by stake, by deadline within a caller.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) over rows: each place in the queue has a *tag* that moves
on by rows / weight with each of its requests that is served, and the smallest tag goes first. While all are busy each
gets rows in proportion to its weight, so nobody starves, and an idle caller saves nothing up. Callers with less stake
than the floor share one place of the floor's weight, first come first served, and fewer of each may wait: a thousand
keys without stake weigh as much as one, and cannot keep an older request waiting for ever.

Time is an argument and nothing here waits.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from moed.protocol.errors import LocalProtocolError
from moed.protocol.experts import BatchSchema
from moed.protocol.tensors import dtype_of

from .errors import DeadlinePassed, NoBackward, QueueFull, RequestTooLarge, ShapeMismatch, UnknownExpert

Rows = npt.NDArray[Any]

STAKE_FLOOR = 0.01
_UNSTAKED = b""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait, all in all and for one caller."""

    max_requests: int = 1024
    max_rows: int = 4096
    max_requests_per_caller: int = 128
    max_requests_per_unstaked_caller: int = 16
    max_rows_per_caller: int = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One waiting request: ``inputs`` [rows, T], and for a backward pass ``gradients`` [rows, out] at the outputs.

    ``deadline_s`` and ``submitted_s`` are on the caller's clock.
    """

    request_id: int
    expert: str
    caller: bytes
    inputs: Rows
    gradients: Rows | None
    stake_share: float
    deadline_s: float
    submitted_s: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests of one expert, one direction and one length, to run together; `rows` in all."""

    expert: str
    requests: tuple[Request, ...]

    @property
    def rows(self) -> int:
        """The rows of all requests."""
        return sum(len(request.inputs) for request in self.requests)


@dataclass(slots=True)
class _Place:
    """One share of the device: a staked caller, or all unstaked ones; ``waiting`` in the order to serve them."""

    tag: float
    waiting: list[Request] = field(default_factory=list)


class BatchQueue:
    """The waiting requests of all experts of one device."""

    def __init__(
        self,
        experts: Mapping[str, BatchSchema],
        limits: QueueLimits | None = None,
        *,
        gradients: Mapping[str, BatchSchema] | None = None,
    ) -> None:
        """``experts`` and the batches that each takes; ``gradients`` at the outputs, of those that give any."""
        self._experts = dict(experts)
        self._gradients = dict(gradients or {})
        self._limits = limits or QueueLimits()
        self._places: dict[bytes, _Place] = {}
        self._waiting: dict[int, tuple[bytes, Request]] = {}
        self._of_caller: dict[bytes, tuple[int, int]] = {}  # requests and rows that wait
        self._virtual = 0.0
        self._ids = itertools.count()
        self.rows = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(
        self,
        expert: str,
        inputs: Rows,
        *,
        gradients: Rows | None = None,
        caller: bytes,
        stake_share: float,
        deadline_s: float,
        now_s: float,
    ) -> Request:
        """Put a request in line.

        Raises `UnknownExpert`, `RequestTooLarge`, `DeadlinePassed` or `QueueFull`; nothing was kept then.
        """
        self._check_request(expert, inputs, gradients, deadline_s, now_s)
        is_staked = stake_share >= STAKE_FLOOR
        self._check_room(caller, len(inputs), is_staked=is_staked)
        request = Request(next(self._ids), expert, caller, inputs, gradients, stake_share, deadline_s, now_s)
        key = caller if is_staked else _UNSTAKED
        place = self._places.setdefault(key, _Place(self._virtual))
        if not place.waiting:
            place.tag = max(place.tag, self._virtual)  # who was away while others were served saves nothing up
        bisect.insort(place.waiting, request, key=_by_deadline if is_staked else _by_arrival)
        self._waiting[request.request_id] = (key, request)
        self._count(request, 1)
        return request

    def _check_request(
        self, expert: str, inputs: Rows, gradients: Rows | None, deadline_s: float, now_s: float
    ) -> None:
        schema = self._experts.get(expert)
        if schema is None:
            raise UnknownExpert(f"no expert {expert!r} is served here")
        if problem := schema.misfit(_wire_name(inputs), inputs.shape):
            raise ShapeMismatch(f"expert {expert!r} {problem}")
        if problem := schema.excess(inputs.shape):
            raise RequestTooLarge(f"expert {expert!r} {problem}")
        if gradients is not None:
            self._check_gradients(expert, inputs, gradients)
        if not deadline_s > now_s:
            raise DeadlinePassed("the deadline passed before the request came")

    def _check_gradients(self, expert: str, inputs: Rows, gradients: Rows) -> None:
        schema = self._gradients.get(expert)
        if schema is None:
            raise NoBackward(f"expert {expert!r} gives no gradients")
        if problem := schema.misfit(_wire_name(gradients), gradients.shape):
            raise ShapeMismatch(f"as a gradient expert {expert!r} {problem}")
        if len(gradients) != len(inputs):
            raise ShapeMismatch(f"{len(gradients)} gradients for {len(inputs)} rows of expert {expert!r}")

    def _check_room(self, caller: bytes, rows: int, *, is_staked: bool) -> None:
        limits = self._limits
        if len(self) >= limits.max_requests or self.rows + rows > limits.max_rows:
            raise QueueFull(f"{len(self)} requests of {self.rows} rows are waiting already")
        allowed = limits.max_requests_per_caller if is_staked else limits.max_requests_per_unstaked_caller
        requests, own_rows = self._of_caller.get(caller, (0, 0))
        if requests >= allowed or own_rows + rows > limits.max_rows_per_caller:
            raise QueueFull(f"{requests} requests of {own_rows} rows of this caller are waiting already")

    def cancel(self, request: Request) -> bool:
        """Drop a request that nobody awaits any more; False if it was not waiting."""
        key, _ = self._waiting.get(request.request_id, (None, None))
        if key is None:
            return False
        self._remove(key, request)
        return True

    def expire(self, now_s: float) -> list[Request]:
        """Drop and return the requests whose deadline has passed."""
        late = [request for _, request in self._waiting.values() if request.deadline_s <= now_s]
        for request in late:
            self.cancel(request)
        return late

    def next_batch(self, now_s: float) -> Batch | None:
        """Take the next batch: the fairest request, and others of its expert and length in fair order up to the
        batch limit. None if nothing waits that can still be in time; `expire` tells of the rest."""
        first = self._take(None, 0, now_s)
        if first is None:
            return None
        batch = [first]
        room = self._experts[first.expert].max_rows - len(first.inputs)
        while room > 0 and (more := self._take(first, room, now_s)) is not None:
            batch.append(more)
            room -= len(more.inputs)
        return Batch(first.expert, tuple(batch))

    def _take(self, like: Request | None, room: int, now_s: float) -> Request | None:
        """Take the fairest request, or the fairest that fits in a batch with ``like``."""
        for key, place in sorted(self._places.items(), key=lambda item: (item[1].tag, item[0])):
            for request in place.waiting:
                if request.deadline_s > now_s and (like is None or _fits(request, like, room)):
                    self._virtual = max(self._virtual, place.tag)
                    place.tag += len(request.inputs) / max(request.stake_share if key else 0.0, STAKE_FLOOR)
                    self._remove(key, request)
                    return request
        return None

    def _remove(self, key: bytes, request: Request) -> None:
        self._places[key].waiting.remove(request)
        del self._waiting[request.request_id]
        self._count(request, -1)
        if not self._waiting:
            # The end of a busy time: whoever comes next starts level.
            self._places.clear()
            self._virtual = 0.0
        elif not self._places[key].waiting and self._places[key].tag <= self._virtual:
            del self._places[key]

    def _count(self, request: Request, sign: int) -> None:
        rows = sign * len(request.inputs)
        requests, own_rows = self._of_caller.get(request.caller, (0, 0))
        self.rows += rows
        if requests + sign:
            self._of_caller[request.caller] = (requests + sign, own_rows + rows)
        else:
            del self._of_caller[request.caller]


def _wire_name(rows: Rows) -> str:
    """The dtype as `BatchSchema` writes it; another text for what does not travel."""
    try:
        return dtype_of(rows).wire_name
    except LocalProtocolError:
        return rows.dtype.name


def _by_deadline(request: Request) -> tuple[float, int]:
    return request.deadline_s, request.request_id


def _by_arrival(request: Request) -> int:
    return request.request_id


def _fits(request: Request, like: Request, room: int) -> bool:
    same = request.expert == like.expert and request.inputs.shape[1] == like.inputs.shape[1]
    same = same and (request.gradients is None) == (like.gradients is None)
    return same and len(request.inputs) <= room
