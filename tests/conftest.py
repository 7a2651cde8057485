"""Fixtures that every test may use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# One thread of torch, in the daemons that tests start as well: on a busy machine several wait for each other longer
# than they compute (one file of tests: 54 s of processor time, 6 s with one thread). Read once, when torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, so that a change is what turns a test red. MOED_EXPLORE=1 draws new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("explore" if os.environ.get("MOED_EXPLORE") else "same")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def published_vectors() -> Callable[[str], Any]:
    """Reads one file of numbers published elsewhere, in place; skips with the reason where they are absent.

    The folder is ``../shared/vectors`` beside the project, or ``$MOED_VECTORS``.
    """
    folder = Path(os.environ.get("MOED_VECTORS", ROOT.parent / "shared" / "vectors"))

    def read(name: str) -> Any:
        path = folder / name
        if not path.is_file():
            pytest.skip(f"published vectors are not here: {path} (set MOED_VECTORS)")
        return json.loads(path.read_text())

    return read


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks at the promises' network comes last, and alone: its six daemons train until the end of the session."""
    for item in items:
        if "network" in getattr(item, "fixturenames", ()) and "promises" in item.path.parts:
            item.add_marker(pytest.mark.alone)
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)
