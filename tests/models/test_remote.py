"""Remote experts in autograd, over a transport that calls real layers in this process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from moed.models.errors import NoAnswer, RowsUnanswered
from moed.models.hosted_layer import HostedLayer
from moed.models.remote import Ask, Patience, RemoteExpert, RemoteMixture, Rows
from support.layers import WIDTH, make_layer


class InProcess:
    """Asks layers where they are, and knows which are out of reach; ``asked`` counts the calls."""

    def __init__(self, *layers: HostedLayer) -> None:
        self.layers = {one.name: one for one in layers}
        self.dead: set[str] = set()
        self.hidden: set[str] = set()
        self.asked: list[Ask] = []
        self.enough: list[bool] = []

    def reachable(self) -> Collection[str]:
        return self.layers.keys() - self.hidden

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


@pytest.fixture
def grid(tmp_path: Path) -> InProcess:
    return InProcess(*(make_layer(tmp_path, f"g.{row}.{column}", rate=0.0) for row in range(3) for column in range(3)))


def mixture(transport: InProcess, **settings: object) -> RemoteMixture:
    torch.manual_seed(4)
    return RemoteMixture(transport, WIDTH, (3, 3), prefix="g.", k=2, **settings)  # type: ignore[arg-type]  # keywords of each test


def test_a_remote_expert_is_its_layer_in_autograd(tmp_path: Path) -> None:
    """Values and input gradients, for any leading dimensions."""
    layer = make_layer(tmp_path, "x", rate=0.0)
    remote = RemoteExpert(InProcess(layer), "x")
    x = torch.randn(2, 3, WIDTH, requires_grad=True)
    there = remote(x)
    torch.autograd.backward(there.square().sum())
    found, x = x.grad, x.detach().clone().requires_grad_()
    here = layer.module(x)
    torch.autograd.backward(here.square().sum())
    assert torch.allclose(there, here, atol=1e-6)
    assert found is not None
    assert x.grad is not None
    assert torch.allclose(found, x.grad, atol=1e-5)


def test_a_lost_expert_is_an_error_in_both_directions(tmp_path: Path) -> None:
    """Never NaN: the rows and the cause are named."""
    transport = InProcess(make_layer(tmp_path, "x"))
    remote = RemoteExpert(transport, "x")
    x = torch.randn(4, WIDTH, requires_grad=True)
    answer = remote(x)
    transport.dead.add("x")
    with pytest.raises(RowsUnanswered, match="PeerLost"):
        torch.autograd.backward(answer.sum())
    with pytest.raises(RowsUnanswered) as caught:
        remote(x)
    assert caught.value.rows == (0, 1, 2, 3)


def test_rows_are_grouped_one_call_for_each_expert(grid: InProcess) -> None:
    """However many rows; each row's mix is the weighted sum of its best two experts' answers."""
    gate = mixture(grid)
    x = torch.randn(40, WIDTH)
    mixed = gate(x)
    assert len({one.expert for one in grid.asked}) == len(grid.asked) <= 9
    assert sum(len(one.inputs) for one in grid.asked) == 80
    scores = gate.project(x).tolist()
    for row in range(40):
        best = max(range(9), key=lambda one: scores[row][one // 3] + scores[row][3 + one % 3])
        assert mixed.picked[row, 0] == best
        answers = [grid.layers[gate.names[one]].forward(x[row : row + 1].numpy())[0] for one in mixed.picked[row]]
        expected = np.einsum("k,kd->d", mixed.weights[row].detach().numpy(), np.stack(answers))
        assert np.allclose(mixed.values[row].detach().numpy(), expected, atol=1e-5)
    assert mixed.answered.all()


def test_the_gate_learns_through_the_mixture(grid: InProcess) -> None:
    """Gradients reach the gate and the input, as through the same layers in one graph."""
    gate = mixture(grid)
    x = torch.randn(6, WIDTH, requires_grad=True)
    mixed = gate(x)
    torch.autograd.backward(mixed.values.square().sum())
    at_gate, at_input = gate.project.weight.grad, x.grad
    gate.zero_grad()
    x = x.detach().clone().requires_grad_()
    scores = gate.project(x)[:, gate.columns].sum(dim=-1)
    weights = scores.gather(1, mixed.picked).softmax(dim=1)
    answers = torch.stack(
        [
            torch.stack([grid.layers[gate.names[one]].module(x[row]) for one in picked])
            for row, picked in enumerate(mixed.picked.tolist())
        ]
    )
    torch.autograd.backward((weights.unsqueeze(-1) * answers).sum(dim=1).square().sum())
    assert at_gate is not None
    assert at_input is not None
    assert gate.project.weight.grad is not None
    assert x.grad is not None
    assert torch.allclose(at_gate, gate.project.weight.grad, atol=1e-4)
    assert torch.allclose(at_input, x.grad, atol=1e-4)


def test_a_lost_expert_leaves_the_others_weights_that_sum_to_one(grid: InProcess) -> None:
    """With k_min 1 a row goes on with whoever answered, forward and backward, and the mask says so."""
    gate = mixture(grid)
    x = torch.randn(40, WIDTH, requires_grad=True)
    grid.dead.add(gate.names[int(gate(x).picked[0, 0])])
    mixed = gate(x)
    assert not mixed.answered.all()
    assert mixed.answered.any(dim=1).all()
    assert torch.isfinite(mixed.values).all()
    assert torch.allclose(mixed.weights.sum(dim=1), torch.ones(40))
    assert len(mixed.failures) == 1
    torch.autograd.backward(mixed.values.sum())
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert grid.enough[-1]


def test_rows_without_an_answer_are_named_or_marked_never_nan(grid: InProcess) -> None:
    """Strict: an error with the rows. Lenient: zeros, a mask, and finite gradients."""
    x = torch.randn(40, WIDTH, requires_grad=True)
    lost = mixture(grid)(x).picked[0]
    gate = mixture(grid)
    grid.dead |= {gate.names[int(one)] for one in lost}
    with pytest.raises(RowsUnanswered) as caught:
        gate(x)
    assert 0 in caught.value.rows
    mixed = mixture(grid, is_strict=False)(x)
    rows = (~mixed.answered.any(dim=1)).nonzero().flatten().tolist()
    assert tuple(rows) == caught.value.rows
    assert (mixed.values[rows] == 0).all()
    torch.autograd.backward(mixed.values.square().sum())
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(mixed.values).all()


def test_k_min_is_asked_of_every_row(grid: InProcess) -> None:
    """With k_min 2 one lost expert is too many for the rows that picked it."""
    gate = mixture(grid, k_min=2)
    x = torch.randn(40, WIDTH)
    picked = gate(x).picked
    grid.dead.add(gate.names[int(picked[0, 1])])
    with pytest.raises(RowsUnanswered) as caught:
        gate(x)
    assert set(caught.value.rows) == set((picked == picked[0, 1]).any(dim=1).nonzero().flatten().tolist())
    assert not grid.enough[-1]


def test_what_is_out_of_reach_is_routed_around(grid: InProcess) -> None:
    """The next best of those that are there; none at all is an error."""
    gate = mixture(grid)
    x = torch.randn(10, WIDTH)
    grid.hidden.add(gate.names[int(gate(x).picked[0, 0])])
    mixed = gate(x)
    assert mixed.answered.all()
    assert not {gate.names[int(one)] for one in mixed.picked.flatten()} & grid.hidden
    grid.hidden |= set(gate.names)
    with pytest.raises(RowsUnanswered):
        gate(x)


def test_an_answer_that_is_not_finite_is_no_answer(grid: InProcess) -> None:
    """An expert with ruined weights is left out of the mix."""
    gate = mixture(grid)
    x = torch.randn(10, WIDTH)
    name = gate.names[int(gate(x).picked[0, 0])]
    with torch.no_grad():
        for parameter in grid.layers[name].module.parameters():
            parameter.fill_(float("nan"))
    mixed = gate(x)
    assert torch.isfinite(mixed.values).all()
    assert not mixed.answered.all()
    assert mixed.failures[0].code == "invalid_answer"
