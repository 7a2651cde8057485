"""What the pages on architecture and threats name is there: files, tests, and the layers as they are checked."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/architecture.md", "docs/threat-model.md", "SECURITY.md", "CONTRIBUTING.md")
NAMED = re.compile(
    r"`?\b((?:daemon|protocol|models|consensus|systemd|tests|benchmarks|docs)/[\w./-]+\.\w+)(?:::(\w+))?"
)


def functions_of(path: Path) -> set[str]:
    """The names of the functions at the top of a file."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, functions)}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_test_that_a_page_names_is_there(page: str) -> None:
    """Whoever follows the page finds what it speaks of; a file that moved takes its line along."""
    named = NAMED.findall((ROOT / page).read_text())
    missing = {path for path, _ in named if not (ROOT / path).is_file()}
    assert missing == set()
    assert {(path, test) for path, test in named if test and test not in functions_of(ROOT / path)} == set()
    if page == "docs/threat-model.md":
        assert len({test for _, test in named if test}) > 80


def test_the_page_shows_the_layers_that_are_checked() -> None:
    """The picture of the layers is that of the import contract."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    shown = re.search(r"^layers = (\[.*\])$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    assert shown is not None
    assert ast.literal_eval(shown[1]) == contract["layers"]
