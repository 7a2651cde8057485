"""What people read in a terminal: tables, units, short ids and log lines, plain where no terminal is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNITS_PER_CREDIT = 10**9
SHORT_ID_CHARS = 10
WHOLE_ID_CHARS = 128
_id_chars = [SHORT_ID_CHARS]
_GAP = "  "


@dataclass(frozen=True, slots=True)
class Table:
    """A title, column heads (one that starts with ">" is right-aligned), and rows of cells."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def show(parts: Sequence[Table | Mapping[str, str]]) -> None:
    """Print tables and lists of facts to standard output: with rich on a terminal, else as aligned text."""
    for number, part in enumerate(parts):
        if number:
            print()
        if isinstance(part, Table):
            _show_table(part)
        else:
            width = max(map(len, part), default=0)
            for name, value in part.items():
                print(f"{name:<{width}}{_GAP}{clean(value)}".rstrip())


def _show_table(table: Table) -> None:
    rows = [[clean(cell) for cell in row] for row in table.rows]
    if sys.stdout.isatty():
        _show_rich(table, rows)
        return
    heads = [head.lstrip(">").upper() for head in table.heads]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    print(table.title)
    for row in (heads, *rows):
        cells = [
            cell.rjust(width) if head.startswith(">") else cell.ljust(width)
            for head, cell, width in zip(table.heads, row, widths, strict=True)
        ]
        print(_GAP.join(cells).rstrip())


def _show_rich(table: Table, rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD  # only a terminal needs it, and it takes a while to load
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=SIMPLE_HEAD, title=table.title, title_justify="left", title_style="bold", pad_edge=False)
    for head in table.heads:
        shown.add_column(head.lstrip(">"), justify="right" if head.startswith(">") else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*map(Text, row))  # Text, so that a name in brackets is no markup
    Console().print(shown)


def clean(text: str) -> str:
    """``text`` with what could move the cursor or recolour the terminal made visible: names come from strangers."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


# numbers and names for people


def short(identifier: str | None) -> str:
    """The start of an id or hash."""
    return "-" if not identifier else identifier[: _id_chars[0]]


def show_whole_ids() -> None:
    """Let `short` leave ids whole from now on: ``-o wide`` of this process."""
    _id_chars[0] = WHOLE_ID_CHARS


def percent(share: float | None) -> str:
    """A share from 0 to 1 in per cent."""
    return "-" if share is None else f"{share * 100:.1f} %"


def credits_of(units: int | None) -> str:
    """An amount of 10⁻⁹ credits in credits."""
    return "-" if units is None else f"{units / UNITS_PER_CREDIT:,.3f}"


def exact_credits(units: int) -> str:
    """An amount of 10⁻⁹ credits in credits with every digit, as commands take it."""
    whole, part = divmod(units, UNITS_PER_CREDIT)
    return f"{whole}.{part:09}".rstrip("0").rstrip(".")


def size(count: float | None) -> str:
    """Bytes with a binary unit."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def rate(count: float | None, unit: str) -> str:
    """A rate with a decimal prefix."""
    if count is None:
        return "-"
    for prefix in ("", "k", "M", "G"):
        if abs(count) < 1000:
            return f"{count:.1f} {prefix}{unit}"
        count /= 1000
    return f"{count:.1f} T{unit}"


def duration(seconds: float) -> str:
    """A time span in its two largest units."""
    whole = int(seconds)
    for name, length, smaller, smaller_length in (
        ("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1),
    ):  # fmt: skip
        if whole >= length:
            return f"{whole // length} {name} {whole % length // smaller_length} {smaller}"
    return f"{whole} s"


def plain_word(value: Any) -> str:
    """A fact for people: yes and no for truth, a dash for nothing."""
    return {True: "yes", False: "no", "": "-"}.get(value, str(value)) if isinstance(value, bool | str) else str(value)


def log_text(line: Mapping[str, Any]) -> str:
    """One log line for people: time, level, event, fields; a traceback below."""
    known = ("timestamp", "level", "event", "sequence", "exception")
    fields = " ".join(f"{name}={_field(value)}" for name, value in line.items() if name not in known)
    text = f"{line['timestamp'][11:23]} {line['level'].upper():<8} {line['event']} {fields}".rstrip()
    traceback = "".join(f"\n    {clean(row)}" for row in str(line.get("exception", "")).splitlines())
    return clean(text) + traceback


def _field(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return repr(text) if not text or any(c.isspace() for c in text) else text
