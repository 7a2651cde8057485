"""Which work a network does: its genesis says, and what peers ask besides is refused at the door."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from moed.consensus.genesis import Workload
from moed.protocol.experts import BACKWARD, FORWARD
from moed.protocol.messages import Announced

from .network.calls import Call, Handler, Method, Refused, Reply

REFUSAL = "other_workload"
WORKLOAD_OF: Mapping[str, Workload] = {
    FORWARD: "inference",
    BACKWARD: "training",
    "mixture.complete": "inference",
    "mixture.forward": "inference",
}
"""The work behind each method; one that is not here belongs to no workload, and every network has it."""


def admitted(handlers: Mapping[str, Handler | Method], workloads: Collection[Workload]) -> dict[str, Handler | Method]:
    """The same methods; those whose work the network does not do refuse every call, before its body is read."""
    return {name: one if _is_admitted(name, workloads) else _closed(name, workloads) for name, one in handlers.items()}


def _is_admitted(name: str, workloads: Collection[Workload]) -> bool:
    return name not in WORKLOAD_OF or WORKLOAD_OF[name] in workloads


def _closed(name: str, workloads: Collection[Workload]) -> Method:
    words = f"{name} is {WORKLOAD_OF[name]}, and this network is for {', '.join(workloads)}"

    async def refuse(_call: Call) -> Reply:
        raise Refused(REFUSAL, words)

    def screen(_announced: Announced) -> None:
        raise Refused(REFUSAL, words)

    return Method(refuse, screen=screen)
