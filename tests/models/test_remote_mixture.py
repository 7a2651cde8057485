"""A mixture of remote experts inside a torch model, over a transport that calls real layers in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from moed.models.errors import NoAnswer, RowsUnanswered
from moed.models.remote import Rows
from moed.models.remote_mixture import RemoteMixture
from support.asked_layers import InProcess
from support.layers import WIDTH, make_layer


@pytest.fixture
def grid(tmp_path: Path) -> InProcess:
    return InProcess(*(make_layer(tmp_path, f"g.{row}.{column}", rate=0.0) for row in range(3) for column in range(3)))


def mixture(transport: InProcess, **settings: object) -> RemoteMixture:
    torch.manual_seed(4)
    return RemoteMixture(WIDTH, (3, 3), transport=transport, prefix="g.", k_best=2, **settings)  # type: ignore[arg-type]  # keywords of each test


def test_rows_are_grouped_one_call_for_each_expert(grid: InProcess) -> None:
    """However many rows; each row's mix is the weighted sum of its best two experts' answers."""
    gate = mixture(grid)
    x = torch.randn(40, WIDTH)
    mixed = gate.mix(x)
    assert len({one.expert for one in grid.asked}) == len(grid.asked) <= 9
    assert sum(len(one.inputs) for one in grid.asked) == 80
    scores = gate.project(x).tolist()
    for row in range(40):
        best = max(range(9), key=lambda one: scores[row][one // 3] + scores[row][3 + one % 3])
        assert mixed.picked[row, 0] == best
        answers = [
            grid.layers[gate.grid.name(int(one))].forward(x[row : row + 1].numpy())[0] for one in mixed.picked[row]
        ]
        expected = np.einsum("k,kd->d", mixed.weights[row].detach().numpy(), np.stack(answers))
        assert np.allclose(mixed.values[row].detach().numpy(), expected, atol=1e-5)
    assert mixed.answered.all()


def test_the_gate_learns_through_the_mixture(grid: InProcess) -> None:
    """Gradients reach the gate and the input, as through the same layers in one graph."""
    gate = mixture(grid)
    x = torch.randn(6, WIDTH, requires_grad=True)
    mixed = gate.mix(x)
    torch.autograd.backward(mixed.values.square().sum())
    at_gate, at_input = gate.project.weight.grad, x.grad
    gate.zero_grad()
    x = x.detach().clone().requires_grad_()
    by_row, by_column = gate.project(x).split((3, 3), dim=1)
    scores = (by_row.unsqueeze(2) + by_column.unsqueeze(1)).flatten(1)
    weights = scores.gather(1, mixed.picked).softmax(dim=1)
    answers = torch.stack(
        [
            torch.stack([grid.layers[gate.grid.name(int(one))].module(x[row]) for one in picked])
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
    grid.dead.add(gate.grid.name(int(gate.mix(x).picked[0, 0])))
    mixed = gate.mix(x)
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
    lost = mixture(grid).mix(x).picked[0]
    gate = mixture(grid)
    grid.dead |= {gate.grid.name(int(one)) for one in lost}
    with pytest.raises(RowsUnanswered) as caught:
        gate.mix(x)
    assert 0 in caught.value.rows
    mixed = mixture(grid, is_strict=False).mix(x)
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
    picked = gate.mix(x).picked
    grid.dead.add(gate.grid.name(int(picked[0, 1])))
    with pytest.raises(RowsUnanswered) as caught:
        gate.mix(x)
    assert set(caught.value.rows) == set((picked == picked[0, 1]).any(dim=1).nonzero().flatten().tolist())
    assert not grid.enough[-1]


def test_what_is_out_of_reach_is_routed_around(grid: InProcess) -> None:
    """The next best of those that are there; none at all is an error."""
    gate = mixture(grid)
    x = torch.randn(10, WIDTH)
    grid.hidden.add(gate.grid.name(int(gate.mix(x).picked[0, 0])))
    mixed = gate.mix(x)
    assert mixed.answered.all()
    assert not {gate.grid.name(int(one)) for one in mixed.picked.flatten()} & grid.hidden
    grid.hidden |= grid.layers.keys()
    with pytest.raises(RowsUnanswered):
        gate.mix(x)


def test_a_gradient_of_another_dtype_is_no_answer(grid: InProcess) -> None:
    """What a node answers is its own affair, and never an error inside the caller's backward pass."""

    class Doubled(InProcess):
        def ask(self, *args: Any) -> list[Rows | NoAnswer]:
            return [one if isinstance(one, NoAnswer) else one.astype(np.float64) for one in super().ask(*args)]

    gate = mixture(grid, is_strict=False)
    x = torch.randn(10, WIDTH, requires_grad=True)
    mixed = gate.mix(x)
    gate.transport = Doubled(*grid.layers.values())
    torch.autograd.backward(mixed.values.sum())
    assert gate.gradients_lost == 20
    assert not gate.mix(x).answered.any()


def test_an_answer_that_is_not_finite_is_no_answer(grid: InProcess) -> None:
    """An expert with ruined weights is left out of the mix."""
    gate = mixture(grid)
    x = torch.randn(10, WIDTH)
    name = gate.grid.name(int(gate.mix(x).picked[0, 0]))
    with torch.no_grad():
        for parameter in grid.layers[name].module.parameters():
            parameter.fill_(float("nan"))
    mixed = gate.mix(x)
    assert torch.isfinite(mixed.values).all()
    assert not mixed.answered.all()
    assert mixed.failures[0].code == "invalid_answer"


def test_it_stands_in_a_users_model_and_balances_the_load(grid: InProcess) -> None:
    """A layer of an `nn.Sequential` over any leading dimensions; its balance loss alone evens out the experts' load."""
    gate = mixture(grid, is_strict=False)
    model = nn.Sequential(nn.Linear(4, WIDTH), gate, nn.Linear(WIDTH, 2))
    assert model(torch.randn(2, 3, 4)).shape == (2, 3, 2)
    x = torch.randn(200, WIDTH)

    def loads(steps: int) -> torch.Tensor:
        """The rows of each expert over so many steps against the balance loss."""
        counts = torch.zeros(9)
        for _ in range(steps):
            counts += torch.bincount(gate.mix(x).picked.flatten(), minlength=9)
            torch.autograd.backward(gate.balance_loss)
            with torch.no_grad():
                for parameter in gate.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(parameter.grad, alpha=0.1)
                    parameter.grad = None
        return counts / counts.mean()

    with torch.no_grad():
        gate.project.bias[0] += 4  # a gate that has fallen for one row of the grid
    assert loads(1).max() > 2
    loads(100)
    evened = loads(60)
    assert evened.max() < 1.6
    assert evened.min() > 0.4


def test_a_gradient_that_is_lost_counts_as_zero_where_that_is_allowed(grid: InProcess) -> None:
    """The experts die between forward and backward: strict says which rows, lenient counts them."""
    strict, lenient = mixture(grid), mixture(grid, is_strict=False)
    x = torch.randn(4, WIDTH, requires_grad=True)
    refused, taken = strict(x.detach().requires_grad_()), lenient(x)
    grid.dead |= grid.layers.keys()
    with pytest.raises(RowsUnanswered) as caught:
        torch.autograd.backward(refused.sum())
    assert caught.value.rows == (0, 1, 2, 3)
    torch.autograd.backward(taken.sum())
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert lenient.gradients_lost == 8
