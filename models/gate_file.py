"""What a validator has learned, to one file and back: its gate and scores, and whose they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .checkpoint import load_checkpoint, save_checkpoint, set_aside
from .corpora import Corpus
from .errors import CheckpointCorrupt
from .locks import Lock
from .plans import ValidatorConfig
from .validation import ValidatorBrain

GATE_KIND = "validator-gate"
_LOCKS = "locks"


@dataclass(frozen=True, slots=True)
class OpenedBrain:
    """A brain, and the keys of the miners that it remembers, by uid: a place may have changed hands meanwhile."""

    brain: ValidatorBrain
    keys: Mapping[int, bytes]
    is_set_aside: bool = False
    """Whether there was a file that it could not go on from, which is beside its place now."""


def save_brain(path: Path, brain: ValidatorBrain, keys: Mapping[int, bytes]) -> bytes:
    """Store what ``brain`` learned of the miners with these ``keys``; returns the content hash."""
    notes = {str(uid): key.hex() for uid, key in keys.items()}
    return save_checkpoint(path, GATE_KIND, brain.state(), {**notes, _LOCKS: _names(brain)})


def open_brain(path: Path, locks: Sequence[Lock | Corpus], config: ValidatorConfig, seed: int) -> OpenedBrain:
    """A brain that goes on from the file at ``path`` where there is one.

    A corrupt file, and one of other locks or of a gate of another shape, is set aside and the brain starts anew.
    Raises `ModelRefused` and `CorpusUnavailable` for locks that cannot be asked about.
    """
    brain = ValidatorBrain(locks, config, seed)
    try:
        keys = _restore(path, brain)
    except FileNotFoundError:
        return OpenedBrain(brain, {})
    except CheckpointCorrupt:
        set_aside(path)
        # made again: a restore that failed half-way may have left something in
        return OpenedBrain(ValidatorBrain(locks, config, seed), {}, is_set_aside=True)
    return OpenedBrain(brain, keys)


def _restore(path: Path, brain: ValidatorBrain) -> dict[int, bytes]:
    stored = load_checkpoint(path, GATE_KIND)
    if stored.notes.get(_LOCKS) != _names(brain):
        raise CheckpointCorrupt(f"{path} is of other locks: {stored.notes.get(_LOCKS)}")
    brain.restore(stored.tensors)
    try:
        return {int(uid): bytes.fromhex(str(key)) for uid, key in stored.notes.items() if uid != _LOCKS}
    except ValueError as error:
        raise CheckpointCorrupt(f"{path} names no keys: {error}") from error


def _names(brain: ValidatorBrain) -> str:
    """The locks in their order: scores on other text say nothing about this one."""
    return " ".join(lock.name for lock in brain.locks)
