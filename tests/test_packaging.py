"""What ships, what tools see and what the folders hold are the same thing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_folder_is_in_the_table() -> None:
    """A new folder with an ``__init__.py`` that nobody listed would be missing from the wheel."""
    found = {"moed"}
    for top in ("daemon", "protocol", "models", "consensus", "systemd"):
        for init in (ROOT / top).rglob("__init__.py"):
            found.add(".".join(("moed", *init.parent.relative_to(ROOT).parts)))
    assert found == set(SETUPTOOLS["packages"])


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
