"""`moectl` verbs for operators: events, sql, wait, config, top, bugreport, schema, completion."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .ctl_target import (
    MAX_LINES,
    SLOW_ANSWER_TIMEOUT_S,
    Target,
    emit,
    given_text,
    in_batches,
    output_options,
    print_json,
)
from .errors import EXIT_FAILED, EXIT_NO_DAEMON, EXIT_USAGE, ConfigError

WAIT_PAUSE_S = 0.1
_LEVELS = click.Choice(["debug", "info", "warning", "error", "critical"])


@click.command(epilog="Example: moectl events -f --filter 'chain.*,node.*'")
@click.option("-f", "--follow", is_flag=True, help="Go on with new events as they come.")
@click.option(
    "-n", "--lines", type=click.IntRange(0, MAX_LINES), default=100, show_default=True, help="How many old ones."
)
@click.option("--since", type=click.IntRange(min=0), help="Events after this number, in place of -n.")
@click.option("--filter", "names", default="*", show_default=True, help="Names, as patterns with commas between them.")
@click.option("--level", type=_LEVELS, default="debug", show_default=True, help="The least severe events to show.")
@output_options
@click.pass_obj
def events(target: Target, follow: bool, lines: int, since: int | None, names: str, level: str, as_json: bool) -> None:
    """What happened, whatever the log's level: blocks, peers, epochs, training, trouble.

    One event a line, with --json one object a line.
    """
    query = {"names": names, "level": level, "since": since, "tail": lines if since is None else None}
    client = target.client()
    if not follow:
        for answer in in_batches(client, "/v1/events", query, "events"):
            _say_dropped(answer["dropped"])
            for event in answer["events"]:
                _print_event(event, as_json)
        return
    for told in client.stream("GET", "/v1/events", query={**query, "follow": True}):
        if told.name == "dropped":
            _say_dropped(told.data["dropped"])
        else:
            _print_event(told.data, as_json)


def _say_dropped(count: int) -> None:
    if count:
        click.echo(f"moectl: {count} events are gone from the daemon's memory", err=True)


def _print_event(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps(event, ensure_ascii=False), flush=True)
        return
    from .tables import log_text

    print(f"{event['sequence']} {log_text(event)}", flush=True)


@click.command(epilog='Example: moectl sql "select height, transactions from blocks order by height desc limit 5"')
@click.argument("query", required=False)
@click.option("--tables", "list_tables", is_flag=True, help="List the tables and their columns.")
@output_options
@click.pass_obj
def sql(target: Target, query: str | None, list_tables: bool, as_json: bool) -> None:
    """Answer one SELECT over blocks, state, receipts, peers and metrics; nothing can be changed. "-" reads QUERY."""
    if list_tables:
        query = "select name, columns from tables"
    if query is None:
        raise click.UsageError("give a QUERY, or --tables")
    emit(target.client(SLOW_ANSWER_TIMEOUT_S).post("/v1/sql", {"query": given_text(query)}), as_json, "sql")


@click.command(epilog="Example: moectl wait --for synced --timeout 60 && moectl rankings")
@click.option(
    "--for", "state", type=click.Choice(["ready", "synced"]), default="ready", show_default=True, help="Which of both."
)
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds.")
@output_options
@click.pass_obj
def wait(target: Target, state: str, timeout_s: float, as_json: bool) -> None:
    """Wait until the daemon is there and ready, or has all the blocks that its peers know of.

    Synced needs a peer that has told its height, for which it waits as long as --timeout says; who signs alone, or has
    no bootstrap, has nobody to wait for. Exits with 0 once it is, with 1 where it is not in time, with 2 where no
    daemon came.
    """
    import time

    from .errors import DaemonUnreachable

    deadline = time.monotonic() + timeout_s
    missing = ""
    while True:
        status: dict[str, Any] | None = None
        try:
            status = target.client().get("/v1/status")
            if status is not None and status[state]:
                emit(status, as_json, "status")
                return
        except DaemonUnreachable as error:
            status, missing = None, str(error)
        if time.monotonic() >= deadline:
            break
        time.sleep(min(WAIT_PAUSE_S, max(deadline - time.monotonic(), 0)))
    if status is None:
        click.echo(f"moectl: no daemon came within {timeout_s:g} s: {missing}", err=True)
        raise click.exceptions.Exit(EXIT_NO_DAEMON)
    click.echo(f"moectl: not {state} within {timeout_s:g} s ({_stand(status)})", err=True)
    raise click.exceptions.Exit(EXIT_FAILED)


def _stand(status: dict[str, Any]) -> str:
    """How far it is, and what is missing."""
    if not status["heights_heard"]:
        return f"height {status['height']}, and none of {status['peers']} peers has told its own; see moectl doctor"
    return f"height {status['height']} of {status['best_known_height']}, {status['peers']} peers"


@click.group(epilog="Example: moectl config show", invoke_without_command=True)
@click.pass_context
def config(context: click.Context) -> None:
    """The daemon's settings: show them with their sources, change live ones, reload the file."""
    if context.invoked_subcommand is None:
        context.invoke(show)


@config.command(epilog="Example: moectl config show --json")
@output_options
@click.pass_obj
def show(target: Target, as_json: bool) -> None:
    """Every key with its value, where that is from, and whether it can change while the daemon runs."""
    emit(target.client().get("/v1/config"), as_json, "config")


@config.command("set", epilog="Example: moectl config set log.level debug")
@click.argument("key")
@click.argument("value")
@output_options
@click.pass_obj
def set_value(target: Target, key: str, value: str, as_json: bool) -> None:
    """Let KEY be VALUE until the next reload or start; the file stays as it is. "none" lifts a limit.

    Shows what it is now; --json has every setting.
    """
    answer = target.client().post("/v1/config/set", {"key": key, "value": _parsed(value)})
    changed = [one for one in answer["settings"] if one["key"] == key]
    emit(answer if as_json else {**answer, "settings": changed}, as_json, "config")


def _parsed(text: str) -> Any:
    """A number or truth where it is one; everything else is text."""
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return {"true": True, "false": False}.get(text, text)
    # What is not finite is no JSON; as text it is refused with what is allowed.
    return number if abs(number) < float("inf") else text


@config.command("reload", epilog="Example: sudo moectl config reload")
@output_options
@click.pass_obj
def reload_file(target: Target, as_json: bool) -> None:
    """Read the configuration file again, as SIGHUP does."""
    emit(target.client().post("/v1/config/reload"), as_json, "reload")


@click.command(epilog="Example: moectl resources")
@output_options
@click.pass_obj
def resources(target: Target, as_json: bool) -> None:
    """What the daemon takes of its machine, each beside its limit."""
    emit(target.client().get("/v1/resources"), as_json, "resources")


@click.command(epilog="Example: moectl top --interval 1")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.2),
    default=2.0,
    show_default=True,
    help="Seconds from one look to the next.",
)
@click.option("--once", is_flag=True, help="Show it once and end.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Draw it once into this file.")
@click.option("--json", "as_json", is_flag=True, help="Print once what it shows, as JSON.")
@click.pass_obj
def top(target: Target, interval_s: float, once: bool, svg: Path | None, as_json: bool) -> None:
    """The node at a glance, live on the whole screen: health, resources, peers, experts, ranking, events."""
    from . import top_view

    client = target.client(SLOW_ANSWER_TIMEOUT_S)
    if as_json:
        from dataclasses import asdict

        print_json(asdict(top_view.look(client)))
    elif svg is not None:
        import time

        before = top_view.look(client)
        time.sleep(interval_s)  # rates are between two looks
        picture = top_view.draw_svg(top_view.look(client), before)
        try:
            svg.write_text(picture, "utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {svg}: {error.strerror}", "name another file with --svg") from error
    elif once or not sys.stdout.isatty():
        top_view.print_once(top_view.look(client))
    else:
        top_view.run(client, interval_s)


@click.command(epilog="Example: moectl bugreport --file moed-bug.tar.gz")
@click.option("--file", type=click.Path(dir_okay=False, path_type=Path), help="Where to; else a name with the time.")
@click.option("--json", "as_json", is_flag=True, help="List the contents as JSON.")
@click.pass_obj
def bugreport(target: Target, file: Path | None, as_json: bool) -> None:
    """Pack what a developer needs into one file, with addresses and names of users left out, and list what is in it."""
    from .bug_report import make_report

    made = make_report(target.client(SLOW_ANSWER_TIMEOUT_S), file)
    if as_json:
        print_json(made)
        return
    print(f"{made['file']}  (look into it before you send it: tar tzf {made['file']})")
    for entry in made["contents"]:
        print(f"  {entry['name']:<16} {entry['bytes']:>8} bytes  {entry['what']}")
    print(made["left_out"])


@click.command(epilog="Example: moectl schema > openapi.json")
@click.pass_obj
def schema(target: Target) -> None:
    """The OpenAPI document: the shape of every answer that --json prints."""
    print_json(target.client().get("/v1/openapi.json"))


@click.command(epilog='Example: eval "$(moectl completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """The script that makes SHELL complete the words of moectl."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.exceptions.Exit(EXIT_USAGE)
    print(kind(context.find_root().command, {}, "moectl", "_MOECTL_COMPLETE").source())


OPERATOR_VERBS = (events, sql, wait, config, resources, top, bugreport, schema, completion)
