"""The order of trio's tasks, decided by a seed like everything else in a simulated life."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def same_schedule(seed: int) -> Iterator[None]:
    """Make trio's choice among tasks that are ready the same in every run; trio shuffles them on purpose."""
    run: Any = importlib.import_module("trio._core._run")  # the switch that hypothesis uses; there is no public one
    before = run._r, run._ALLOW_DETERMINISTIC_SCHEDULING  # noqa: SLF001
    run._r, run._ALLOW_DETERMINISTIC_SCHEDULING = random.Random(seed), True  # noqa: S311, SLF001  # repeatable, not secret
    try:
        yield
    finally:
        run._r, run._ALLOW_DETERMINISTIC_SCHEDULING = before  # noqa: SLF001
