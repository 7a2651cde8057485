"""Promises about layers of remote experts: real sessions, and real DHT nodes on virtual time; no devnet."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import nn

from moed.daemon.dmoe.finding import find_experts
from moed.daemon.expert_transport import ThreadTransport
from moed.models.beam import Grid, children_of, search
from moed.models.remote import RemoteExpert
from support.layer_threads import ServerThread
from support.layers import WIDTH, make_layer
from support.peering import NETWORK_ID, identity_of


def questions(experts_a_side: int) -> int:
    """How many look-ups find the best four of a square grid for one input."""
    grid = Grid("e.", (experts_a_side, experts_a_side))
    names = [grid.name(index) for index in range(0, grid.places, 2)]
    asked: set[str] = set()

    def look_up(prefixes: Collection[str]) -> Mapping[str, Collection[int]]:
        asked.update(prefixes)
        return children_of(names, prefixes)

    torch.manual_seed(9)
    best = search([torch.randn(1, experts_a_side) for _ in range(2)], grid, 4, look_up, width=8)
    assert best.is_exact.all()
    assert best.picked.shape == (1, 4)
    return len(asked)


def test_b9_few_experts_are_called_and_finding_them_stays_quick() -> None:
    """Four calls an input among 128 experts or 8,192, found by about as many questions; in a real DHT three times as
    many nodes make the search no more than a few round trips longer."""
    assert questions(128) <= 2 * questions(16) <= 64
    few, many = (find_experts(count, 5, 9, lambda _text: None)["widened"] for count in (10, 30))
    assert few["recall"] == many["recall"] == 1.0
    assert many["p95_s"] <= few["p95_s"] + 4 * 0.05


def test_b23_one_miners_output_is_anothers_input(tmp_path: Path) -> None:
    """A model of two miners' layers one after the other: values and gradients are those of both in one graph, and both
    learn from one loss."""
    layers = [make_layer(tmp_path, name, rate=1e-2) for name in ("first", "second")]
    here = nn.Sequential(*(make_layer(tmp_path, layer.name, rate=0.0).module for layer in layers))
    nodes = [ServerThread(number, layer) for number, layer in enumerate(layers, start=1)]
    try:
        with ThreadTransport(identity_of(9), NETWORK_ID, [node.place for node in nodes]) as transport:
            model = nn.Sequential(*(RemoteExpert(transport, layer.name) for layer in layers))
            x = torch.randn(16, WIDTH, requires_grad=True)
            loss = (model(x) - torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1))).square().mean()
            torch.autograd.backward(loss)
            local = x.detach().clone().requires_grad_()
            again = (here(local) - torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1))).square().mean()
            torch.autograd.backward(again)
    finally:
        for node in nodes:
            node.stop()
    assert torch.isclose(loss, again)
    assert x.grad is not None
    assert local.grad is not None
    assert torch.allclose(x.grad, local.grad, atol=1e-5)
    assert all(layer.training_steps == 1 for layer in layers)
