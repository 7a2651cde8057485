"""What every verb of `moectl` shares: which daemon is meant, the options for output, and how an answer is shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from pathlib import Path

    from .client import Client

MAX_LINES = 1000
"""Log lines or events in one answer, as the daemon has it."""
SLOW_ANSWER_TIMEOUT_S = 300.0  # a measurement or completion asks many miners


class Target(NamedTuple):
    """Which daemon is meant."""

    home: Path | None
    socket: Path | None

    def client(self, timeout_s: float | None = None) -> Client:
        """A client of that daemon's socket."""
        from .client import ANSWER_TIMEOUT_S, Client  # --help needs no HTTP
        from .places import find_socket

        path = find_socket(self.home, self.socket)
        timeout_s = ANSWER_TIMEOUT_S if timeout_s is None else timeout_s
        return Client(path, timeout_s=timeout_s, start_remedy=self._start_remedy(path))

    def _start_remedy(self, path: Path) -> str:
        """What to do where nobody answers on ``path``: in the words of who named the daemon, or named none."""
        from .client import START_REMEDY
        from .places import default_sockets

        if self.home is not None:
            return f"start it with: moed run --home {self.home}"
        places = default_sockets()
        if self.socket is not None or path not in places:
            return START_REMEDY
        return f"{START_REMEDY}; looked in {', '.join(map(str, places))}"


def in_batches(client: Client, path: str, query: Mapping[str, Any], field: str) -> Iterator[dict[str, Any]]:
    """Answers to ``query``, each of which begins where the one before it was full; without ``since`` only one."""
    while True:
        answer = client.get(path, query)
        yield answer
        # Not until there is none: new ones may come as fast as they are read.
        if query.get("since") is None or len(answer[field]) < MAX_LINES:
            return
        query = {**query, "since": answer["last"]}


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """``--json`` and ``-o table|wide|json``; the command gets ``as_json``."""

    @wraps(command)
    def run(*arguments: Any, output: str, as_json: bool, **options: Any) -> None:
        if output == "wide":
            from . import tables

            tables.show_whole_ids()
        command(*arguments, as_json=as_json or output == "json", **options)

    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer as JSON."),
        click.option(
            "-o",
            "--output",
            type=click.Choice(["table", "wide", "json"]),
            default="table",
            show_default=True,
            help="How to show it; wide gives whole ids.",
        ),
    ):
        run = option(run)
    return run


def given_text(argument: str) -> str:
    """The text that a verb is given: standard input for "-". Raises `click.UsageError` for what is not UTF-8."""
    try:
        text = sys.stdin.buffer.read().decode() if argument == "-" else argument
        text.encode()  # bytes of the command line that are no text stand in it as surrogates
    except UnicodeError as error:
        raise click.UsageError("the text is not UTF-8") from error
    return text


def print_json(answer: Any) -> None:
    """``answer`` as people and programs read it."""
    import json

    print(json.dumps(answer, indent=2, ensure_ascii=False))


def emit(answer: Any, as_json: bool, view: str) -> None:
    """Print ``answer`` as JSON, or as the tables that ``answer_tables.<view>_parts`` makes of it."""
    if as_json:
        print_json(answer)
        return
    from . import answer_tables, tables  # --json needs none

    tables.show(getattr(answer_tables, f"{view}_parts")(answer))
