"""The memory that is predicted from a configuration is what building and running it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from moed.models.device import CPU, Device
from moed.models.errors import ModelRefused
from moed.models.experts import ExpertSpec
from moed.models.footprint import Footprint, predict_expert, predict_layer
from moed.models.hosted_layer import LayerSpec
from moed.models.study import StudyConfig
from moed.models.training import TrainingConfig

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 0.1
TRAINING = TrainingConfig(length=32)
TEACHING = StudyConfig(bank_lessons=4, trial_lessons=1, trial_steps=2)

Case = tuple[ExpertSpec | LayerSpec, StudyConfig | None]
CASES: list[Case] = [
    (ExpertSpec(name="gru", max_rows=64, max_length=32), None),
    (ExpertSpec(name="wide-gru", options={"width": 256, "embedding": 128}, max_rows=256, max_length=16), None),
    (ExpertSpec(name="transformer", model="transformer", max_rows=64, max_length=96), None),
    (ExpertSpec(name="ngram", model="ngram", max_rows=64, max_length=128), None),
    (ExpertSpec(name="taught", model="ngram", max_rows=8, max_length=64), TEACHING),
    (LayerSpec(name="ffn", layer="ffn", width=768), None),
    (LayerSpec(name="block", layer="block", width=512), None),
    (LayerSpec(name="encoder", layer="encoder", width=512, max_rows=2048), None),
    (LayerSpec(name="classifier", layer="classifier", width=1024, classes=1000), None),
    (LayerSpec(name="fixed", layer="ffn", width=1024, learning_rate=0.0), None),
]
REHEARSE = """
import json, sys
import msgspec, torch
from moed.models.device import choose_device
from moed.models.experts import ExpertSpec
from moed.models.hosted_layer import LayerSpec
from moed.models.rehearsal import rehearse_expert, rehearse_layer
from moed.models.study import StudyConfig
from moed.models.training import TrainingConfig

torch.set_num_threads(1)
device = choose_device(sys.argv[1])
for line in sys.stdin:
    spec, study = json.loads(line)
    if "layer" in spec:
        measured = rehearse_layer(msgspec.convert(spec, LayerSpec), device)
    else:
        exchange = msgspec.convert(study, StudyConfig) if study else None
        expert = msgspec.convert(spec, ExpertSpec)
        measured = rehearse_expert(expert, TrainingConfig(length=32), device, exchange=exchange)
    print(measured.peak_bytes)
"""


def measured(cases: list[Case], device: str) -> list[int]:
    """What each took, one after the other in a process that does nothing else."""
    lines = [json.dumps(msgspec.to_builtins(case)) for case in cases]
    ended = subprocess.run(
        [sys.executable, "-c", REHEARSE, device],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert ended.returncode == 0, ended.stderr
    return [int(line) for line in ended.stdout.split()]


def predict(case: Case, device: Device) -> Footprint:
    spec, study = case
    if isinstance(spec, LayerSpec):
        return predict_layer(spec, device)
    return predict_expert(spec, TRAINING, device, exchange=study)


def deviations(cases: list[Case], device: Device) -> dict[str, float]:
    """Predicted over measured, less one."""
    found = zip(cases, measured(cases, device.name), strict=True)
    return {case[0].name: predict(case, device).peak / peak - 1 for case, peak in found}


def test_predicted_memory_is_measured_memory() -> None:
    """Every built-in model, at several sizes, trained, taught, asked and stored: within a tenth, nothing left out."""
    found = deviations(CASES, CPU)
    assert all(abs(one) <= TOLERANCE for one in found.values()), found


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_predicted_memory_is_measured_memory_on_a_gpu() -> None:
    """The same, by torch's own count."""
    found = deviations(CASES, Device(torch.device("cuda", 0)))
    assert all(abs(one) <= TOLERANCE for one in found.values()), found


def test_the_parts_of_a_footprint_are_sums_that_one_can_do_by_hand() -> None:
    """Weights, their averaged copy and two moments; two states and the answers of a teacher; gradients in a step."""
    spec = ExpertSpec(name="x", model="ngram", options={"order": 2, "buckets": 1024}, max_rows=8, max_length=16)
    weights = 2 * 1024 * 256 * 4
    alone = predict_expert(spec, TrainingConfig(), CPU)
    assert (alone.parameters, alone.optimizer, alone.held) == (2 * weights, 2 * weights, 0)
    assert weights < alone.training < 3 * weights + 32 * 64 * 256 * 4 * 8
    answer = 8 * 16 * 256 * 4
    # the stacked scores, their sum and its normalised copy are alive together, or two of them
    assert 3 * answer <= alone.serving <= 6 * answer
    taught = predict_expert(spec, TrainingConfig(), CPU, exchange=TEACHING)
    lesson = TEACHING.rows * 64 * 256 * 4
    assert taught.held == 2 * 4 * weights + (4 + 1 + 4) * lesson
    fixed = predict_expert(spec, TrainingConfig(), CPU, is_trained=False, exchange=TEACHING)
    assert (fixed.optimizer, fixed.held, fixed.training) == (0, 0, 0)


def test_nothing_of_the_models_size_is_allocated() -> None:
    """A model of terabytes is predicted on any machine."""
    huge = ExpertSpec(name="x", model="ngram", options={"order": 2, "buckets": 1 << 30}, max_rows=1, max_length=2)
    assert predict_expert(huge, TrainingConfig(rows=1, length=2), CPU).peak > 4 << 40


def test_a_model_that_looks_at_values_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One's own module that branches on what it reads has no footprint before it runs."""
    (tmp_path / "picky.py").write_text(
        "import torch\n"
        "class Picky(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.scale = torch.nn.Parameter(torch.ones(256))\n"
        "    def forward(self, tokens):\n"
        "        if float(tokens.sum()) > 3:\n"
        "            return self.scale.log_softmax(-1).expand(*tokens.shape, 256)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelRefused, match=r"'own': its memory cannot be predicted"):
        predict_expert(ExpertSpec(name="own", factory="picky:Picky"), TrainingConfig(), CPU)
    sys.modules.pop("picky")
    short = ExpertSpec(name="short", model="transformer", options={"width": 8, "heads": 2, "context_bytes": 80})
    with pytest.raises(ModelRefused, match=r"'short': rows of 256 bytes exceed this model's 80"):
        predict_expert(short, TrainingConfig(), CPU)
