"""Man pages made from the commands themselves: ``python -m moed.daemon.man_page moectl`` prints moectl(1)."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from moed import __version__

from .errors import EXIT_USAGE

_SECTION_HEADS = {
    "EXIT STATUS": "0 done, 1 it failed or the daemon refused, 2 no daemon there, 3 wrong usage or configuration.",
    "FILES": "DIR/config.toml the configuration, DIR/work.key the key, DIR/genesis.json the network, DIR/chain.db the "
    "chain, DIR/moed.sock the control socket; DIR is the home, as a service /var/lib/moed with /run/moed/moed.sock.",
}


def man_page(group: click.Group, name: str) -> str:
    """The page of one command with all its verbs, in roff."""
    context = click.Context(group, info_name=name, **group.context_settings)
    lines = [f'.TH {name.upper()} 1 "" "moed {__version__}"', ".SH NAME", f"{name} \\- {_first_sentence(group)}"]
    lines += [".SH SYNOPSIS", f".B {name}", _plain(" ".join(group.collect_usage_pieces(context)))]
    lines += [".SH DESCRIPTION", *_paragraphs(group.help or ""), ".SH OPTIONS", *_options(group, context)]
    lines.append(".SH COMMANDS")
    for path, command, inner in _verbs(group, context):
        pieces = " ".join(command.collect_usage_pieces(inner))
        lines += [f".SS {_plain(f'{path} {pieces}')}", *_paragraphs(command.help or ""), *_options(command, inner)]
        if command.epilog:
            lines += [".PP", _plain(command.epilog)]
    for head, text in _SECTION_HEADS.items():
        lines += [f".SH {head}", _plain(text)]
    return "\n".join(lines) + "\n"


def _verbs(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every verb below ``group`` with its path, in the order of help."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context, **command.context_settings)
        yield inner.command_path, command, inner
        if isinstance(command, click.Group):
            yield from _verbs(command, inner)


def _first_sentence(command: click.Command) -> str:
    return _plain(command.get_short_help_str(limit=200)).rstrip(".")


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs as roff; what click shows as it is (after a line with \\b) stays as it is."""
    for paragraph in text.replace("\f", "").split("\n\n"):
        lines = [line.strip() for line in paragraph.strip().splitlines()]
        is_verbatim = bool(lines) and lines[0] == "\b"
        body = [_plain(line) for line in lines if line != "\b"]
        yield from (".PP", ".nf", *body, ".fi") if is_verbatim else (".PP", *body)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield from (".TP", f".B {_plain(record[0])}", _plain(record[1]))


def _plain(text: str) -> str:
    """Text that roff takes for no command."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    escaped = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in escaped)
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main(arguments: list[str] | None = None) -> None:
    """Print the page of the command that is named."""
    from .cli import moed
    from .ctl import moectl

    pages = {"moed": moed, "moectl": moectl}
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1 or given[0] not in pages:
        print(f"usage: python -m moed.daemon.man_page {'|'.join(pages)}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    print(man_page(pages[given[0]], given[0]), end="")


if __name__ == "__main__":
    main()
