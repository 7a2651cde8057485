"""What ships, what tools see and what the folders hold are the same thing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

from moed import __version__

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]


def test_every_package_folder_is_in_the_table() -> None:
    """A new folder with an ``__init__.py`` that nobody listed would be missing from the wheel."""
    found = {"moed"}
    for top in ("daemon", "protocol", "models", "consensus", "systemd"):
        for init in (ROOT / top).rglob("__init__.py"):
            found.add(".".join(("moed", *init.parent.relative_to(ROOT).parts)))
    assert found == set(SETUPTOOLS["packages"])


def test_there_is_one_version() -> None:
    """What is installed, what the daemon says of itself and the latest entry of the changelog are the same."""
    assert PYPROJECT["project"]["version"] == __version__
    released = re.findall(r"^## (\d\S*) - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == __version__


def test_every_link_points_where_the_table_says() -> None:
    """Tools follow ``src/moed/*``; installs follow the table: both reach the same folder."""
    links = {path.name: path for path in (ROOT / "src" / "moed").iterdir() if path.is_symlink()}
    if not links:
        pytest.skip("an unpacked source distribution has no links")
    table = {name.removeprefix("moed."): target for name, target in SETUPTOOLS["package-dir"].items()}
    table.pop("moed")
    assert {name: path.resolve() for name, path in links.items()} == {
        name: ROOT / target for name, target in table.items()
    }


def test_no_folder_is_imported_by_its_bare_name() -> None:
    """``import daemon`` would work in a checkout and pick up somebody else's package once installed."""
    bare = re.compile(r"^\s*(?:from|import) (?:daemon|protocol|models|consensus)\b", re.MULTILINE)
    sources = (
        path for top in ("daemon", "protocol", "models", "consensus", "tests") for path in (ROOT / top).rglob("*.py")
    )
    assert [str(path) for path in sources if bare.search(path.read_text())] == []


def test_imports_point_down_and_the_core_does_no_io() -> None:
    """The contracts of ``[tool.importlinter]`` hold, and one that does not would be noticed."""
    lint = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    held = subprocess.run(lint, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert held.returncode == 0, held.stdout
    upside_down = (
        ROOT.joinpath("pyproject.toml")
        .read_text()
        .replace(
            'layers = ["moed.daemon", "moed.models | moed.consensus", "moed.protocol"]',
            'layers = ["moed.protocol", "moed.models | moed.consensus", "moed.daemon"]',
        )
    )
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(upside_down)
        file.flush()
        broken = subprocess.run(
            [*lint, "--config", file.name], cwd=ROOT, capture_output=True, text=True, env=environment
        )
    assert broken.returncode == 1
    assert "BROKEN" in broken.stdout
