"""docs/events.md names every event that the daemon logs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
EVENT = re.compile(r"[a-z_]+\.[a-z_]+")


def logged() -> set[str]:
    """The first argument of every call of a logger in the daemon."""
    found = set()
    for file in (ROOT / "daemon").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            name = node.args[0]
            is_logging = node.func.attr in LEVELS or ast.unparse(node.func).startswith(("logger.", "_log."))
            if is_logging and isinstance(name, ast.Constant) and isinstance(name.value, str):
                found |= {name.value} if EVENT.fullmatch(name.value) else set()
    return found | {"library.logged"}  # its level is the library's, so it is called by another name


def test_the_page_names_every_event() -> None:
    """A new event gets its line in docs/events.md: what happened, in words for the operator."""
    page = (ROOT / "docs" / "events.md").read_text()
    named = re.findall(r"^\| `([a-z_.]+)` \| \w+ \| [^|]+ \| [^|]* \|$", page, re.MULTILINE)
    assert logged() - set(named) == set()
    assert named == sorted(set(named)), "one line for each event, in the order of names"
