"""Calls what the operator's own configuration names as "pkg.mod:make"; a name from the network never comes here."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import ModelRefused


def call_factory(factory: str, **options: Any) -> object:
    """What ``factory`` ("pkg.mod:make") makes of ``options``. Raises `ModelRefused` if it is not there or fails."""
    where, _, name = factory.partition(":")
    try:
        make = getattr(importlib.import_module(where), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ModelRefused(f"factory {factory!r} is not an importable 'pkg.mod:make': {error}") from error
    try:
        made: object = make(**options)
    except Exception as error:  # the operator's own code, of which we know nothing
        raise ModelRefused(f"factory {factory!r}: {type(error).__name__}: {error}") from error
    return made
