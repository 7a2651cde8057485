"""What docs/experts.md shows works as it stands there."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from moed.daemon.config import layer_names, load_config
from moed.models.corpora import load_corpus
from moed.models.experts import ExpertSpec
from moed.models.hosting import open_hosted
from moed.models.training import TrainingConfig

PAGE = (Path(__file__).parents[2] / "docs" / "experts.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_model_is_built_trained_and_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ten lines as a module, named by the configuration beside them: it answers, learns, and is stored."""
    (tmp_path / "echo.py").write_text(blocks("python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    section = tomllib.loads(blocks("toml")[0])["experts"][0]
    spec = ExpertSpec(name=section["name"], model="", factory=section["model"], options=section["options"])
    hosted = open_hosted(spec, load_corpus(section["domain"]), TrainingConfig(rows=2, length=16), tmp_path, seed=1)
    tokens = np.frombuffer(b"aabbccdd", np.uint8).reshape(1, 8)
    answer = hosted.forward(tokens)
    assert answer.shape == (1, 8, 256)
    assert np.allclose(np.exp(answer).sum(axis=-1), 1, atol=1e-4)
    assert answer[0, 0].argmax() == ord("a")
    assert np.isfinite(hosted.train_step())
    assert len(hosted.save()) == 32
    sys.modules.pop("echo")


def test_the_layers_of_the_page_are_a_configuration(tmp_path: Path) -> None:
    """Both sections are read, and stand for what the page says."""
    (tmp_path / "config.toml").write_text('[node]\nrole = "miner"\n' + blocks("toml")[1])
    config = load_config(tmp_path)
    assert len(layer_names(config.layers[0].name)) == 32
    assert config.gradients.stranger_share == 0.1
