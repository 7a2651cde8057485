"""Builds one expert as a daemon would, has it do all that it may be asked, and measures the memory that this takes.

Run it in a process of its own, for the memory's sake: what is measured is the process's.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from moed.protocol.codec import Record

from .corpora import Corpus, Split, Tokens
from .device import Device, PeakMemory, Rows, give_back_at_once, resident_bytes
from .experts import BYTE_VALUES, MODELS, ExpertSpec
from .hosted_layer import KEPT_ROWS_BYTES, LayerSpec, open_layer
from .hosting import HostedExpert, open_hosted
from .study import Study, StudyConfig
from .training import TrainingConfig

_STEPS = 2  # the moments of Adam come with the first
_WARM = 64
_SMALL: Mapping[str, dict[str, int | float | str | bool]] = {
    "gru": {"embedding": _WARM, "width": _WARM, "ngram_buckets": _WARM},
    "transformer": {"width": _WARM, "layers": 1},
    "ngram": {"buckets": _WARM},
}


class Measured(Record, frozen=True):
    """``framework_bytes`` of the process before anything was built, and the most that the expert added to it."""

    framework_bytes: int
    peak_bytes: int


class Noise:
    """Random bytes for text: memory does not depend on what they say."""

    def sample(self, split: Split, rng: np.random.Generator, rows: int, length: int) -> Tokens:
        return rng.integers(256, size=(rows, length), dtype=np.uint8)


def measure_framework(device: Device) -> int:
    """The bytes of this process with torch and its mathematics in use, and no model. From here on each freed block goes
    back to the system."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        give_back_at_once(libc.mallopt)
    _warm_up(device)
    gc.collect()
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    return resident_bytes()


def rehearse_expert(
    spec: ExpertSpec,
    training: TrainingConfig,
    device: Device,
    *,
    is_trained: bool = True,
    exchange: StudyConfig | None = None,
) -> Measured:
    """A text expert that serves full batches and trains, learns from a teacher through whole trials where there is an
    ``exchange``, and is stored."""
    act = partial(_play_expert, spec, training, device, is_trained=is_trained, exchange=exchange)
    return _measured(device, act)


def rehearse_layer(spec: LayerSpec, device: Device) -> Measured:
    """A layer that answers full batches and learns from them, while the graph of another batch waits, and is stored."""
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((spec.max_rows, spec.width), dtype=np.float32)
    gradients = rng.standard_normal((spec.max_rows, spec.out_width), dtype=np.float32)
    waiting = inputs[: KEPT_ROWS_BYTES // inputs[0].nbytes][::-1].copy()
    for array in (inputs, gradients, waiting):
        array.flags.writeable = False  # as what was received is
    return _measured(device, partial(_play_layer, spec, device, inputs, gradients, waiting))


def _play_expert(
    spec: ExpertSpec,
    training: TrainingConfig,
    device: Device,
    folder: Path,
    *,
    is_trained: bool = True,
    exchange: StudyConfig | None = None,
) -> None:
    text = cast("Corpus", Noise())  # a whole text is needed only to keep a part of it from training
    hosted = open_hosted(spec, text, training, folder, seed=1, device=device, trains_itself=is_trained)
    batch = np.zeros((spec.max_rows, spec.max_length), np.uint8)
    hosted.forward(batch)
    if is_trained:
        for _ in range(_STEPS):
            hosted.train_step()
        if exchange is not None:
            _learn_from_a_teacher(hosted, exchange, batch)
        hosted.forward(batch)
    hosted.save()


def _play_layer(spec: LayerSpec, device: Device, inputs: Rows, gradients: Rows, waiting: Rows, folder: Path) -> None:
    layer = open_layer(spec, folder, seed=1, device=device)
    for rows in (inputs, waiting, waiting):
        layer.forward(rows)
        layer.backward(inputs, gradients)
    layer.save()


def _learn_from_a_teacher(hosted: HostedExpert, config: StudyConfig, batch: Tokens) -> None:
    """Fill the bank with the answers of one who knows, and go through one more trial then; requests come all along."""
    config = msgspec.structs.replace(config, trial_every_steps=config.bank_lessons + 2)
    study = Study(hosted.trainer, Noise(), config, seed=1)
    study.set_teachers(["teacher"])
    for step in range(2 * (config.bank_lessons + 2 + 2 * config.trial_steps) + config.trial_steps):
        question = study.question()
        if question is not None:
            study.take(question, _told(question.rows))
        study.step()
        if step % config.trial_steps == 0:
            hosted.forward(batch)


def _told(rows: Tokens) -> npt.NDArray[np.float32]:
    """The answer of a teacher who has read on: log-probabilities float32 [R, T, 256]."""
    right = functional.one_hot(torch.from_numpy(rows[:, 1:]).long(), BYTE_VALUES).float() * 8
    told: npt.NDArray[np.float32] = right.log_softmax(dim=-1).numpy()
    return told


def _measured(device: Device, act: Callable[[Path], None]) -> Measured:
    framework = measure_framework(device)
    with TemporaryDirectory() as folder:
        peak = PeakMemory(device)
        act(Path(folder))
        device.settle()
        return Measured(framework_bytes=framework, peak_bytes=peak.bytes())


@cache
def _warm_up(device: Device) -> None:
    """Once through it all with small models, so that what the libraries keep for themselves counts as theirs."""
    training = TrainingConfig(rows=_WARM, length=_WARM)
    rows = np.ones((_WARM, _WARM), np.float32)
    with TemporaryDirectory() as folder:
        for model in MODELS:
            spec = ExpertSpec(name=model, model=model, options=_SMALL[model], max_rows=_WARM, max_length=_WARM)
            _play_expert(spec, training, device, Path(folder))
        for layer in ("ffn", "block"):
            _play_layer(LayerSpec(name=layer, layer=layer, width=_WARM), device, rows, rows, rows, Path(folder))
    device.settle()
