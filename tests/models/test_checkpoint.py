"""A checkpoint is whole or refused, whatever happened to the file or to the process that wrote it."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moed.models.checkpoint import MAGIC, load_checkpoint, save_checkpoint, set_aside
from moed.models.errors import CheckpointCorrupt

TENSORS = {
    "float": torch.randn(3, 4),
    "bfloat16": torch.randn(5).to(torch.bfloat16),
    "long": torch.arange(6).reshape(2, 3),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    "bool": torch.tensor([True, False]),
    "complex": torch.randn(3, dtype=torch.complex64),
    "short": torch.arange(3, dtype=torch.int16),
    "float8": torch.randn(4).to(torch.float8_e4m3fn),
    "transposed": torch.randn(4, 6).T,
}


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    """Every dtype, scalars, empty and transposed tensors, and the notes; no temporary file is left."""
    path = tmp_path / "x.ckpt"
    content_hash = save_checkpoint(path, "test", TENSORS, {"steps": 3, "name": "x"})
    loaded = load_checkpoint(path, "test")
    assert loaded.content_hash == content_hash
    assert loaded.notes == {"steps": 3, "name": "x"}
    assert loaded.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(loaded.tensors[name], tensor)
        assert loaded.tensors[name].dtype == tensor.dtype
    assert [item.name for item in tmp_path.iterdir()] == ["x.ckpt"]


def test_many_tensors_come_back(tmp_path: Path) -> None:
    """A gate over thousands of miners has four for each: what says how they are called takes more than a megabyte."""
    many = {f"{number}{'-' * 4000}": torch.tensor(float(number)) for number in range(300)}
    save_checkpoint(tmp_path / "x.ckpt", "test", many)
    assert load_checkpoint(tmp_path / "x.ckpt", "test").tensors == many


def test_the_hash_follows_the_content_alone(tmp_path: Path) -> None:
    """The same tensors in another order hash alike; one changed number does not."""
    one = save_checkpoint(tmp_path / "a", "test", TENSORS)
    two = save_checkpoint(tmp_path / "b", "test", dict(reversed(TENSORS.items())))
    other = save_checkpoint(tmp_path / "c", "test", {**TENSORS, "long": TENSORS["long"] + 1})
    assert one == two != other


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_found(tmp_path: Path, data: st.DataObject) -> None:
    """A flipped bit, a cut or added bytes anywhere give `CheckpointCorrupt` and nothing else."""
    path = tmp_path / "x.ckpt"
    save_checkpoint(path, "test", {"w": torch.arange(8.0), "steps": torch.tensor(1)}, {"name": "x"})
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = data.draw(
        st.sampled_from(
            [
                whole[:at],
                whole[:at] + bytes([whole[at] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[at + 1 :],
                whole + whole[at:],
            ]
        )
    )
    path.write_bytes(damaged)
    with pytest.raises(CheckpointCorrupt):
        load_checkpoint(path, "test")


@pytest.mark.parametrize(
    "content",
    [b"", b"MOED", MAGIC + b"\xff" * 8, pickle.dumps({"w": 1}), MAGIC + (1).to_bytes(8, "little") + b"\xa0"],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    """A pickle among them: it is never looked into."""
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointCorrupt):
        load_checkpoint(path, "test")


def test_another_kind_is_refused_and_can_be_set_aside(tmp_path: Path) -> None:
    """The file is kept for a person to look at, out of the way of the next save."""
    path = tmp_path / "x.ckpt"
    save_checkpoint(path, "gate", TENSORS)
    with pytest.raises(CheckpointCorrupt, match="holds 'gate', not 'expert'"):
        load_checkpoint(path, "expert")
    aside = set_aside(path)
    assert not path.exists()
    assert load_checkpoint(aside, "gate").kind == "gate"


_SAVE_FOR_EVER = """
import itertools, sys, torch
from pathlib import Path
from moed.models.checkpoint import save_checkpoint
for number in itertools.count():
    save_checkpoint(Path(sys.argv[1]), "test", {"w": torch.full((200_000,), float(number))}, {"number": number})
    print(number, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    """A process that saves without pause is killed mid-way; what is there is one whole checkpoint, the last that was
    acknowledged or the one after it."""
    path = tmp_path / "x.ckpt"
    with subprocess.Popen(
        [sys.executable, "-c", _SAVE_FOR_EVER, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        acknowledged = [4, *(int(line) for line in process.stdout)][-1]
    loaded = load_checkpoint(path, "test")
    number = loaded.notes["number"]
    assert number in (acknowledged, acknowledged + 1)
    assert torch.equal(loaded.tensors["w"], torch.full((200_000,), float(number)))
