"""A transport that asks real layers in this process: what the network adds is left out, and some may be dead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from moed.models.beam import children_of
from moed.models.errors import NoAnswer
from moed.models.hosted_layer import HostedLayer
from moed.models.remote import Ask, Patience, Rows


class InProcess:
    """Asks layers where they are, and knows which are out of reach; ``asked`` counts the calls."""

    def __init__(self, *layers: HostedLayer) -> None:
        self.layers = {one.name: one for one in layers}
        self.dead: set[str] = set()
        self.hidden: set[str] = set()
        self.asked: list[Ask] = []
        self.enough: list[bool] = []

    def live(self, prefixes: Collection[str]) -> Mapping[str, Collection[int]]:
        return children_of(self.layers.keys() - self.hidden, prefixes)

    def ask(
        self, asks: Sequence[Ask], patience: Patience, is_enough: Callable[[Collection[int]], bool]
    ) -> list[Rows | NoAnswer]:
        self.asked += asks
        outcomes: list[Rows | NoAnswer] = []
        answered: set[int] = set()
        for index, one in enumerate(asks):
            if one.expert in self.dead:
                outcomes.append(NoAnswer("PeerLost", f"{one.expert} is gone"))
                continue
            layer = self.layers[one.expert]
            outcomes.append(
                layer.forward(one.inputs) if one.gradients is None else layer.backward(one.inputs, one.gradients)
            )
            answered.add(index)
        self.enough.append(is_enough(answered))
        return outcomes
