"""The transport on its own thread: torch modules that ask real nodes, and go on when one dies."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from moed.daemon.expert_transport import ThreadTransport
from moed.models.errors import NoAnswer, RowsUnanswered
from moed.models.remote import Ask, Patience, RemoteExpert
from moed.models.remote_mixture import RemoteMixture
from moed.protocol.addresses import Address
from support.layer_threads import ServerThread
from support.layers import WIDTH, make_layer
from support.peering import NETWORK_ID, identity_of

NAMES = ("g.0.0", "g.0.1", "g.1.0", "g.1.1")


@contextmanager
def servers(folder: Path) -> Iterator[tuple[ServerThread, ServerThread]]:
    """Two nodes, two experts of the grid each."""
    layers = [make_layer(folder, name) for name in NAMES]
    one, two = ServerThread(1, *layers[:2]), ServerThread(2, *layers[2:])
    try:
        yield one, two
    finally:
        one.stop()
        two.stop()


def test_modules_ask_real_nodes_and_learn(tmp_path: Path) -> None:
    """Steps through a mixture over two nodes make the loss fall: gate, input layer and experts learn together."""
    with (
        servers(tmp_path) as (one, two),
        ThreadTransport(identity_of(9), NETWORK_ID, [one.place, two.place]) as transport,
    ):
        assert set(transport.reachable()) == set(NAMES)
        torch.manual_seed(1)
        mixture = RemoteMixture(WIDTH, (2, 2), transport=transport, prefix="g.", k_best=2, k_min=2)
        inputs, target = torch.randn(32, WIDTH), torch.randn(32, WIDTH)
        losses = []
        for _ in range(25):
            x = inputs.clone().requires_grad_()
            loss = (mixture(x) - target).square().mean()
            losses.append(loss.item())
            torch.autograd.backward(loss)
            with torch.no_grad():
                for parameter in mixture.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad, alpha=0.1)
                        parameter.grad = None
        assert losses[-1] < 0.8 * losses[0]


def test_a_dead_node_is_routed_around_without_nan(tmp_path: Path) -> None:
    """The first call after it either names its rows or goes elsewhere, the next ones are whole."""
    with (
        servers(tmp_path) as (one, two),
        ThreadTransport(identity_of(9), NETWORK_ID, [one.place, two.place]) as transport,
    ):
        mixture = RemoteMixture(WIDTH, (2, 2), transport=transport, prefix="g.", k_best=2, k_min=2)
        x = torch.randn(32, WIDTH)
        assert mixture.mix(x).answered.all()
        two.stop()
        with pytest.raises(RowsUnanswered) if "g.1.0" in transport.reachable() else nullcontext():
            mixture(x)
        mixed = mixture.mix(x)
        assert mixed.answered.all()
        assert torch.isfinite(mixed.values).all()
        assert set(transport.reachable()) == set(NAMES[:2])


def test_a_closed_transport_answers_with_the_reason(tmp_path: Path) -> None:
    """And so does an expert that nobody serves, while the others answer."""
    server = ServerThread(1, make_layer(tmp_path, "x"))
    try:
        transport = ThreadTransport(identity_of(9), NETWORK_ID, [server.place])
        rows = torch.zeros(2, WIDTH).numpy()
        found, missing = transport.ask([Ask("x", rows), Ask("y", rows)], Patience(), lambda _answered: False)
        assert not isinstance(found, NoAnswer)
        assert isinstance(missing, NoAnswer)
        transport.close()
        with pytest.raises(RowsUnanswered, match="closed"):
            RemoteExpert(transport, "x")(torch.zeros(2, WIDTH))
    finally:
        server.stop()


def test_a_question_that_crosses_the_end_is_answered_with_the_reason() -> None:
    """Its thread saw an open transport, which is gone when the question gets there."""
    transport = ThreadTransport(identity_of(9), NETWORK_ID, bootstrap=[Address("127.0.0.1", 1)])
    seen = transport._running
    transport.close()
    transport._running = seen
    (answer,) = transport.ask([Ask("x", torch.zeros(2, WIDTH).numpy())], Patience(), lambda _answered: False)
    assert isinstance(answer, NoAnswer)
    assert answer.code == "stopping"
    assert transport.live(["g."]) == {"g.": frozenset()}


def test_a_transport_that_cannot_begin_says_why() -> None:
    """A system that gives it no file is an error at once, and not a wait without an end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            ThreadTransport(identity_of(9), NETWORK_ID)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_features_and_classes_are_learned_over_the_network(tmp_path: Path) -> None:
    """One owner's features, another's classes: both learn from one loss until every row is told apart; a wrong idea of
    the answer's width is an answer that nobody gave."""
    encoder = make_layer(tmp_path, "pixels", kind="encoder")
    classifier = make_layer(tmp_path, "digits", kind="classifier", classes=3)
    nodes = [ServerThread(1, encoder), ServerThread(2, classifier)]
    try:
        with ThreadTransport(identity_of(9), NETWORK_ID, [node.place for node in nodes]) as transport:
            model = nn.Sequential(RemoteExpert(transport, "pixels"), RemoteExpert(transport, "digits", out_features=3))
            torch.manual_seed(4)
            x, target = torch.randn(12, WIDTH, requires_grad=True), torch.arange(12) % 3
            before = nn.functional.nll_loss(model(x), target).item()
            for _ in range(40):
                torch.autograd.backward(nn.functional.nll_loss(model(x), target))
            assert nn.functional.nll_loss(model(x), target).item() < before / 2
            assert torch.equal(model(x).argmax(dim=1), target)
            with pytest.raises(RowsUnanswered, match="strange_answer"):
                RemoteExpert(transport, "digits")(x)
    finally:
        for node in nodes:
            node.stop()
    assert encoder.training_steps == classifier.training_steps == 40
