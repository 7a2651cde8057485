"""The key file: made whole or not at all, read only where it is safe, held by one process."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from moed.daemon.errors import AlreadyRunning, KeyFileError
from moed.daemon.keystore import create_identity, hold_identity, load_identity


def test_a_made_key_is_read_back(tmp_path: Path) -> None:
    """The same identity, in a file that only its owner can read, with nothing else left in the folder."""
    identity = create_identity(tmp_path / "work.key")
    assert load_identity(tmp_path / "work.key").node_id == identity.node_id
    assert stat.S_IMODE((tmp_path / "work.key").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["work.key"]


def test_two_keys_differ(tmp_path: Path) -> None:
    """Keys are drawn, not derived from where they lie."""
    assert create_identity(tmp_path / "a").node_id != create_identity(tmp_path / "b").node_id


def test_an_existing_key_is_never_replaced(tmp_path: Path) -> None:
    """A second make refuses and leaves the first key, and no scraps."""
    create_identity(tmp_path / "work.key")
    before = (tmp_path / "work.key").read_bytes()
    with pytest.raises(KeyFileError, match="exists already"):
        create_identity(tmp_path / "work.key")
    assert (tmp_path / "work.key").read_bytes() == before
    assert os.listdir(tmp_path) == ["work.key"]


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    """No key can be made where there is no folder."""
    with pytest.raises(KeyFileError, match=r"cannot write .*/no/work\.key: No such file"):
        create_identity(tmp_path / "no" / "work.key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    """Any bit for group or others; the remedy is the command that mends it."""
    path = tmp_path / "work.key"
    create_identity(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"mode 0{mode:o}") as caught:
        load_identity(path)
    assert f"chmod 600 {path}" in caught.value.remedy


def test_a_missing_key_says_how_to_make_one(tmp_path: Path) -> None:
    """The remedy names this home."""
    with pytest.raises(KeyFileError) as caught:
        load_identity(tmp_path / "work.key")
    assert caught.value.remedy == f"make one with: moed init --home {tmp_path}"


def test_a_key_that_a_home_has_lost_is_not_made_anew(tmp_path: Path) -> None:
    """`moed init` refuses a home with a configuration, so the remedy is the key's copy."""
    (tmp_path / "config.toml").touch()
    with pytest.raises(KeyFileError) as caught:
        load_identity(tmp_path / "work.key")
    assert f"moed keys restore COPY --home {tmp_path}" in caught.value.remedy


@pytest.mark.parametrize("size", [0, 31, 33, 5000])
def test_a_file_of_another_size_is_no_key(tmp_path: Path, size: int) -> None:
    """A cut or foreign file is never used as a seed."""
    path = tmp_path / "work.key"
    path.write_bytes(bytes(size))
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=f"holds {size} bytes"):
        load_identity(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """A folder, and a named pipe that nobody writes."""
    (tmp_path / "folder").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("folder", "pipe"):
        with pytest.raises(KeyFileError, match="is not a file"):
            load_identity(tmp_path / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away takes root")
def test_somebody_elses_key_is_refused(tmp_path: Path) -> None:
    """Root would be allowed to read it, and would then leave files that its owner cannot write."""
    path = tmp_path / "work.key"
    create_identity(path)
    os.chown(path, 65534, 65534)
    with pytest.raises(KeyFileError, match="belongs to uid 65534"):
        load_identity(path)


def test_one_home_runs_one_daemon(tmp_path: Path) -> None:
    """A held key refuses a second process, and is free when the first is gone, however it went."""
    path = tmp_path / "work.key"
    create_identity(path)
    script = (
        "import sys; from pathlib import Path; from moed.daemon.keystore import hold_identity\n"
        "with hold_identity(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunning, match="another daemon is running here"), hold_identity(path):
            pass
        other.kill()
    with hold_identity(path) as identity:
        assert identity.node_id == load_identity(path).node_id
