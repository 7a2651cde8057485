"""One expert as a miner hosts it: its model, its training and its checkpoint behind three blocking calls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from moed.protocol.experts import BatchSchema, ExpertInfo

from .checkpoint import load_checkpoint, save_checkpoint, set_aside
from .corpora import Corpus, Tokens, set_apart
from .device import CPU, Device
from .errors import CheckpointCorrupt, ExpertError, ExpertFailed, ShapeMismatch
from .experts import BYTE_VALUES, Expert, ExpertSpec, build_expert
from .study import Study, StudyConfig
from .training import Trainer, TrainingConfig

CHECKPOINT_KIND = "expert text.next"
KEPT_SHARE = 0.1

Origin = Literal["new", "restored", "set_aside"]


@dataclass(frozen=True, slots=True)
class HostedExpert:
    """An expert with its trainer and the place of its checkpoint. Not thread-safe: one device worker calls it.

    ``origin`` tells whether the weights are new, came from the checkpoint, or are new because the checkpoint was
    corrupt and lies beside its place now. With a ``study`` it learns from other miners beside its own text. Unless it
    ``trains_itself`` whenever nothing waits, it keeps the weights that it has.
    """

    expert: Expert
    trainer: Trainer
    path: Path
    origin: Origin
    study: Study | None = None
    device: Device = CPU
    trains_itself: bool = True

    @property
    def name(self) -> str:
        """The name that it is served under."""
        return self.expert.spec.name

    @property
    def info(self) -> ExpertInfo:
        """What it takes and gives; its rate is for whoever runs it to measure."""
        spec = self.expert.spec
        return ExpertInfo(
            name=spec.name,
            kind=spec.kind,
            takes=BatchSchema(dtype="u8", max_rows=spec.max_rows, max_length=spec.max_length),
            output_dtype="f32",
            output_shape=(0, BYTE_VALUES),
            forwards_per_s=0.0,
            has_backward=False,
        )

    @property
    def bytes_to_come(self) -> int:
        """The least memory that it takes beside its weights: moments and gradients, and a full batch's answer."""
        spec, weights = self.expert.spec, self.trainer.module.parameters()
        learned = 3 * sum(one.numel() * one.element_size() for one in weights) if self.trains_itself else 0
        return learned + spec.max_rows * spec.max_length * BYTE_VALUES * 4

    @property
    def training_loss_bits(self) -> float:
        """The moving average of its training loss, in bits per byte."""
        return self.trainer.loss_bits

    @property
    def training_steps(self) -> int:
        """The training steps behind its weights, those before a restart among them."""
        return self.trainer.steps

    def forward(self, tokens: Tokens) -> npt.NDArray[np.float32]:
        """Bytes [B, T] to log-probabilities float32 [B, T, 256], by the averaged weights.

        Raises `ExpertFailed` where torch or one's own model gave up, `OutOfMemory` if for that reason, and
        `ShapeMismatch` where one's own model answers in another shape.
        """
        try:
            with torch.inference_mode(), self.device.computing():
                answer = self.trainer.averaged(self.device.put(tokens))
            log_probs: npt.NDArray[np.float32] = self.device.fetch(answer.float())
        except (RuntimeError, MemoryError) as error:  # torch's own failures, which a GPU may tell of only at the fetch
            raise self.device.failure(self.name, error) from error
        except ExpertError:
            raise
        except Exception as error:  # one's own model may raise anything at a stranger's rows, and the node must stay up
            raise ExpertFailed(f"expert {self.name!r}: {type(error).__name__}: {error}") from error
        if tuple(answer.shape) != (*tokens.shape, BYTE_VALUES):
            raise ShapeMismatch(
                f"expert {self.name!r} answered {list(answer.shape)} to {list(tokens.shape)}, which asks for "
                f"{[*tokens.shape, BYTE_VALUES]}"
            )
        return log_probs

    def train_step(self) -> float:
        """One training step; returns its loss in bits per byte. Raises `TrainingDiverged`, and as `forward` does."""
        try:
            return self.trainer.step() if self.study is None else self.study.step()
        except (RuntimeError, MemoryError) as error:
            raise self.device.failure(self.name, error) from error
        except ExpertError:
            raise
        except Exception as error:  # one's own model again: it may still serve what it cannot learn
            raise ExpertFailed(f"expert {self.name!r}: {type(error).__name__}: {error}") from error

    def save(self) -> bytes:
        """Store everything needed to go on; returns the content hash."""
        return save_checkpoint(
            self.path,
            CHECKPOINT_KIND,
            self.trainer.state(),
            {"name": self.name, "model": self.expert.spec.factory or self.expert.spec.model},
        )


def open_hosted(
    spec: ExpertSpec,
    corpus: Corpus,
    training: TrainingConfig,
    folder: Path,
    seed: int,
    *,
    exchange: StudyConfig | None = None,
    device: Device = CPU,
    trains_itself: bool = True,
) -> HostedExpert:
    """Build ``spec`` on ``device`` and go on from its checkpoint in ``folder`` where there is one.

    With ``exchange`` it learns from others too, and keeps a tenth of its text from its training to measure what they
    are worth.

    A corrupt checkpoint, or one of another model, is set aside and the expert starts anew. Raises `ModelRefused`
    and `CorpusUnavailable` for what the configuration must correct.
    """
    check = None
    if exchange is not None:
        corpus, check = set_apart(corpus, KEPT_SHARE)
    expert = build_expert(spec, seed, device)
    trainer = Trainer(expert.module, corpus, training, seed)
    path = folder / f"{spec.name}.ckpt"
    origin: Origin = "new"
    try:
        trainer.restore(load_checkpoint(path, CHECKPOINT_KIND).tensors)
        origin = "restored"
    except FileNotFoundError:
        pass
    except CheckpointCorrupt:
        set_aside(path)
        # Built again: a restore that failed half-way may have left some weights in.
        expert = build_expert(spec, seed, device)
        trainer = Trainer(expert.module, corpus, training, seed)
        origin = "set_aside"
    study = None if exchange is None or check is None else Study(trainer, check, exchange, seed)
    return HostedExpert(expert, trainer, path, origin, study, device, trains_itself)
