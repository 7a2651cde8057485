"""Errors of a command as its one line and its exit code: the operator gets no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import click

from .errors import NodeError

P = ParamSpec("P")


def plain_errors(verb: Callable[P, None]) -> Callable[P, None]:
    """Print a `NodeError` as its one line and exit with its code."""

    @wraps(verb)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            verb(*arguments, **options)
        except NodeError as error:
            click.echo(f"moed: {error}", err=True)
            sys.exit(error.exit_code)

    return run
