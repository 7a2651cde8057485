"""The page of an experiment: prose that people write around the numbers that its command writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import ConfigError
from .tables import Table

BEGIN = "<!-- the numbers, written by the command above -->"
END = "<!-- end of the numbers -->"


def as_markdown(tables: Sequence[Table]) -> str:
    """Tables as Markdown, each with its title in bold above."""
    return "\n\n".join(f"**{table.title}**\n\n{_rows(table)}" for table in tables)


def _rows(table: Table) -> str:
    lines = [table_row([head.lstrip(">") for head in table.heads])]
    lines.append(table_row(["--:" if head.startswith(">") else "---" for head in table.heads]))
    lines += [table_row(row) for row in table.rows]
    return "\n".join(lines)


def table_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def write_page(path: Path, name: str, tables: Sequence[Table]) -> None:
    """Put the numbers between the marks of the page at ``path``, or begin a page there.

    Raises `ConfigError` where a page has no marks or cannot be written.
    """
    try:
        text = path.read_text() if path.exists() else _new_page(name)
        before, begun, rest = text.partition(BEGIN)
        _, ended, after = rest.partition(END)
        if not (begun and ended):
            raise ConfigError(
                f"{path} has no place for the numbers", f"put {BEGIN!r} and {END!r} on lines of their own"
            )
        path.write_text(f"{before}{BEGIN}\n\n{as_markdown(tables)}\n\n{END}{after}")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", "give a path that can be written") from error


def _new_page(name: str) -> str:
    return f"# {name}\n\n    moed experiment {name} --json {name}.json\n\n![{name}]({name}.png)\n\n{BEGIN}\n\n{END}\n"
