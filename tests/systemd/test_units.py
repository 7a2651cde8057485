"""The unit files: systemd itself finds nothing wrong with them, and every choice is explained."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

UNITS = Path(str(files("moed.systemd")))
EXPOSURE_LIMIT = 2.0

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def rendered(tmp_path: Path) -> Path:
    """The unit with a program that exists on this machine, since the installed one does not."""
    unit = tmp_path / "moed.service"
    text = (UNITS / "moed.service").read_text()
    assert "ExecStart=/opt/moed/bin/moed run --home /var/lib/moed" in text
    unit.write_text(text.replace("/opt/moed/bin/moed", sys.executable))
    return unit


def analyze(*arguments: str) -> str:
    """What `systemd-analyze` says; fails if it finds fault."""
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_analyze
@pytest.mark.parametrize("with_gpu", [False, True])
def test_systemd_finds_nothing_wrong(rendered: Path, with_gpu: bool) -> None:
    """`verify` passes without a word, with and without the GPU drop-in."""
    if with_gpu:
        folder = rendered.with_name("moed.service.d")
        folder.mkdir()
        shutil.copy(UNITS / "gpu.conf", folder)
    assert analyze("verify", str(rendered)) == ""


@needs_analyze
def test_the_exposure_stays_low(rendered: Path) -> None:
    """systemd's own rating of what the service could reach, from 0 to 10."""
    try:
        told = analyze("security", "--offline=yes", str(rendered))
    except AssertionError as error:
        if "unrecognized option" in str(error):
            pytest.skip("this systemd-analyze cannot rate a file (before 250)")
        raise
    found = re.search(r"Overall exposure level for moed\.service: ([\d.]+)", told)
    assert found is not None, told
    assert float(found[1]) <= EXPOSURE_LIMIT


@pytest.mark.parametrize("option", ["PrivateUsers", "ProcSubset", "MemoryDenyWriteExecute", "DynamicUser"])
def test_what_would_break_the_daemon_is_left_out(option: str) -> None:
    """Each is named with its reason in the page beside the unit, and in no unit."""
    for name in ("moed.service", "gpu.conf"):
        assert not re.search(rf"^{option}=", (UNITS / name).read_text(), re.MULTILINE)
    assert f"`{option}=" in (UNITS / "README.md").read_text()


@pytest.mark.parametrize("name", ["moed.service", "gpu.conf"])
def test_every_choice_has_its_reason(name: str) -> None:
    """In [Service] a comment stands above every setting, or above the run of settings that it explains."""
    explained, bare = False, []
    section = ""
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith("["):
            section, explained = line, False
        elif line.startswith("#"):
            explained = True
        elif not line:
            explained = False
        elif section == "[Service]" and not explained:
            bare.append(line)
    assert bare == []


def test_the_service_tells_when_it_is_ready_and_alive() -> None:
    """Type, watchdog, restarts and folders are the documented ones."""
    text = (UNITS / "moed.service").read_text()
    for setting in (
        "Type=notify", "WatchdogSec=30", "Restart=on-failure", "RestartPreventExitStatus=3", "User=moed", "Group=moed",
        "StateDirectory=moed", "RuntimeDirectory=moed", "ConfigurationDirectory=moed",
    ):  # fmt: skip
        assert re.search(rf"^{setting}$", text, re.MULTILINE), setting


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_the_user_and_its_group_are_made(tmp_path: Path) -> None:
    """systemd-sysusers makes both in an empty root, the user without a shell."""
    (tmp_path / "etc").mkdir()
    done = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", "-"],
        input=(UNITS / "moed.sysusers").read_text(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^moed:.*:/var/lib/moed:/usr/sbin/nologin$", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)
    assert re.search(r"^moed:", (tmp_path / "etc/group").read_text(), re.MULTILINE)
