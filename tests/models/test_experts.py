"""Built-in experts keep the promise of the encoding, and a configuration that cannot be right is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moed.models.errors import ModelRefused, ShapeMismatch
from moed.models.experts import ExpertSpec, build_expert
from moed.models.ngrams import ngram_buckets

SMALL: dict[str, dict[str, Any]] = {
    "gru": {"embedding": 8, "width": 16, "ngram_buckets": 64},
    "transformer": {"width": 16, "layers": 2, "heads": 2, "context_bytes": 40},
    "ngram": {"order": 2, "buckets": 64},
}


def spec(model: str, **options: Any) -> ExpertSpec:
    return ExpertSpec(name="x", model=model, options={**SMALL[model], **options})


@pytest.mark.parametrize("model", SMALL)
def test_answers_are_distributions(model: str) -> None:
    """float32 [B, T, 256] whose exponentials sum to one."""
    expert = build_expert(spec(model), seed=1)
    log_probs = expert.module(torch.randint(256, (3, 20), dtype=torch.uint8))
    assert log_probs.shape == (3, 20, 256)
    assert log_probs.dtype == torch.float32
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(3, 20), atol=1e-5)
    assert expert.parameter_count == sum(p.numel() for p in expert.module.parameters())


@pytest.mark.parametrize("model", SMALL)
def test_no_position_sees_later_bytes(model: str) -> None:
    """Changing byte t changes answers from position t on, and none before."""
    module = build_expert(spec(model), seed=2).module.eval()
    tokens = torch.randint(256, (1, 24), dtype=torch.uint8)
    changed = tokens.clone()
    changed[0, 10] ^= 255
    with torch.no_grad():
        before, after = module(tokens), module(changed)
    assert torch.allclose(before[:, :10], after[:, :10], atol=1e-6)
    assert not torch.allclose(before[:, 10], after[:, 10], atol=1e-3)


def test_ngram_keys_are_causal_and_local() -> None:
    """The key of the n-gram at t depends on bytes t - n + 1 .. t and on nothing else."""
    tokens = torch.randint(256, (1, 30), dtype=torch.uint8)
    changed = tokens.clone()
    changed[0, 12] ^= 1
    for order, (one, other) in enumerate(
        zip(ngram_buckets(tokens, 4, 1 << 20), ngram_buckets(changed, 4, 1 << 20), strict=True), start=1
    ):
        different = (one != other)[0].nonzero().flatten().tolist()
        assert different == list(range(12, 12 + order))


def test_weights_come_from_the_seed_alone() -> None:
    """The same seed builds the same weights, and the global generator is not moved."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, two, other = (build_expert(spec("gru"), seed).module.state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (ExpertSpec(name="x", model="lstm"), "no model 'lstm'; use one of gru, transformer"),
        (ExpertSpec(name="x", kind="image.next"), "kind 'image.next'"),
        (ExpertSpec(name="x", options={"widht": 3}), "unknown field `widht`"),
        (ExpertSpec(name="x", options={"width": 0}), "width must be at least 1"),
        (ExpertSpec(name="x", model="transformer", options={"width": 10, "heads": 3}), "not a multiple"),
        (ExpertSpec(name="x", factory="no.such.module:make"), "not an importable"),
        (ExpertSpec(name="x", factory="torch.nn"), "not an importable"),
        (ExpertSpec(name="x", factory="builtins:dict"), "made a dict, not a torch Module"),
        (ExpertSpec(name="x", factory="support.locks:make_trouble"), "KeyError"),
    ],
)
def test_what_cannot_be_built_is_named(wrong: ExpertSpec, message: str) -> None:
    """One line that names the expert and the field."""
    with pytest.raises(ModelRefused, match=message):
        build_expert(wrong, seed=0)


@pytest.mark.parametrize("name", ["", "../up", "A", "a/b", "x" * 65])
def test_a_name_is_safe_as_a_file_name(name: str) -> None:
    """Whatever could leave the folder of the checkpoints is no name."""
    with pytest.raises(ValueError, match="name"):
        ExpertSpec(name=name)


def test_a_model_of_ones_own_is_made_by_its_factory() -> None:
    """The factory is called with the options as keywords."""
    own = ExpertSpec(name="own", factory="torch.nn:Linear", options={"in_features": 3, "out_features": 5})
    assert build_expert(own, seed=0).parameter_count == 20


def test_transformer_refuses_rows_beyond_its_context() -> None:
    """It has no positions for them."""
    module = build_expert(spec("transformer"), seed=0).module
    with pytest.raises(ShapeMismatch, match="41 bytes exceed"):
        module(torch.zeros(1, 41, dtype=torch.uint8))


def test_options_that_a_factory_does_not_take_are_refused() -> None:
    """As those of a built-in model are, by the expert's name and the factory's own words."""
    own = ExpertSpec(name="own", factory="torch.nn:Linear", options={"wide": 3})
    with pytest.raises(ModelRefused, match=r"'own': factory 'torch.nn:Linear': .*'wide'"):
        build_expert(own, seed=1)
