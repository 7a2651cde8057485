"""Remote experts in autograd, over a transport that calls real layers in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moed.models.errors import RowsUnanswered
from moed.models.remote import RemoteExpert
from support.asked_layers import InProcess
from support.layers import WIDTH, make_layer


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
