"""`moectl`: asks a running daemon over its socket, and shows the answer to people or, with --json, to programs.

It starts in a fraction of a second: neither trio nor torch is imported here, and the client only when it is used.
Exit codes: 0 done, 1 the daemon refused, 2 no daemon there, 3 wrong usage.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from moed import __version__

from .ctl_operator import OPERATOR_VERBS
from .ctl_target import MAX_LINES, SLOW_ANSWER_TIMEOUT_S, Target, emit, given_text, in_batches, output_options
from .errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, NodeError
from .fleet_verbs import fleet
from .ledger_verbs import add_ledger_verbs

__all__ = ["Target", "main", "moectl", "run"]

COMPLETION_VARIABLE = "_MOECTL_COMPLETE"
EXIT_INTERRUPTED = 130
_LEVEL_COLOURS = {"warning": "yellow", "error": "red", "critical": "red"}


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Without --home, --socket or $MOED_SOCKET the default places are tried: /run/moed/moed.sock, "
    "$XDG_RUNTIME_DIR/moed/moed.sock, ~/.moed/moed.sock. "
    "Exit codes: 0 done, 1 the daemon refused, 2 no daemon there, 3 wrong usage.",
)
@click.option("--home", type=click.Path(path_type=Path), help="The home folder of the daemon to ask.")
@click.option("--socket", type=click.Path(path_type=Path), help="Its socket. Also: $MOED_SOCKET.")
@click.version_option(__version__, prog_name="moectl")
@click.pass_context
def moectl(context: click.Context, home: Path | None, socket: Path | None) -> None:
    """Control and inspect a running moed daemon.

    \b
    moectl status
    moectl --home ~/.moed top
    """
    if home is not None and socket is not None:
        raise click.UsageError("--home and --socket name two daemons; give one of them")
    context.obj = Target(home, socket)


@moectl.command(epilog="Example: moectl status --json")
@output_options
@click.pass_obj
def status(target: Target, as_json: bool) -> None:
    """Who this node is, where its chain stands, whether it is ready."""
    emit(target.client().get("/v1/status"), as_json, "status")


@moectl.command(epilog="Example: moectl --home ~/.moed peers")
@output_options
@click.pass_obj
def peers(target: Target, as_json: bool) -> None:
    """Nodes that this one has a session with."""
    emit(target.client().get("/v1/peers"), as_json, "peers")


@moectl.command(epilog="Example: moectl experts")
@output_options
@click.pass_obj
def experts(target: Target, as_json: bool) -> None:
    """Experts that the network offers."""
    emit(target.client().get("/v1/experts"), as_json, "experts")


@moectl.command(epilog="Example: moectl capacity --json")
@click.option("--owner", metavar="KEY", help="Only the devices that this key has registered.")
@output_options
@click.pass_obj
def capacity(target: Target, owner: str | None, as_json: bool) -> None:
    """Hardware of the network, measured by its owners' nodes."""
    emit(target.client().get("/v1/capacity", {"owner": owner}), as_json, "capacity")


@moectl.command(epilog="Example: moectl rankings")
@output_options
@click.pass_obj
def rankings(target: Target, as_json: bool) -> None:
    """Miners and validators as consensus ranked them in the last epoch."""
    emit(target.client().get("/v1/rankings"), as_json, "rankings")


@moectl.group(epilog="Example: moectl why reward 3")
def why() -> None:
    """Take a result apart."""


@why.command(epilog="Example: moectl why reward 3 --epoch 12")
@click.argument("uid", type=click.IntRange(0, 65535))
@click.option("--epoch", type=click.IntRange(min=1), help="Which epoch; else the last one.")
@output_options
@click.pass_obj
def reward(target: Target, uid: int, epoch: int | None, as_json: bool) -> None:
    """Who rated UID, how that was clipped, ranked, bonded and paid, and what it would be without each validator."""
    answer = target.client(SLOW_ANSWER_TIMEOUT_S).get("/v1/why/reward", {"uid": uid, "epoch": epoch})
    emit(answer, as_json, "reward")


@moectl.command(epilog="Example: moectl chain --limit 5")
@click.option("--start", type=click.IntRange(min=0), help="List blocks from this height on; else the newest.")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="How many blocks.")
@output_options
@click.pass_obj
def chain(target: Target, start: int | None, limit: int, as_json: bool) -> None:
    """The head of the state chain and its blocks."""
    emit(target.client().get("/v1/chain", {"start": start, "limit": limit}), as_json, "chain")


@moectl.group(epilog="Example: moectl dht table")
def dht() -> None:
    """Discovery: what the network keeps, whom this node knows, and how a look-up goes."""


@dht.command(epilog="Example: moectl dht get topic:here")
@click.argument("key")
@output_options
@click.pass_obj
def get(target: Target, key: str, as_json: bool) -> None:
    """Records under KEY, asked of the network now: peer:NODE_ID, topic:NAME, all:NAME or 40 hexadecimal digits."""
    emit(target.client(SLOW_ANSWER_TIMEOUT_S).get("/v1/dht/get", {"key": key}), as_json, "dht_get")


@dht.command(epilog="Example: moectl dht table --json")
@output_options
@click.pass_obj
def table(target: Target, as_json: bool) -> None:
    """The routing table, bucket by bucket."""
    emit(target.client().get("/v1/dht/table"), as_json, "dht_table")


@dht.command(epilog="Example: moectl dht lookup 0123456789abcdef0123456789abcdef01234567")
@click.argument("node_id", metavar="ID")
@output_options
@click.pass_obj
def lookup(target: Target, node_id: str, as_json: bool) -> None:
    """Look for the nodes nearest to ID, and show the path, hop by hop, with times."""
    emit(target.client(SLOW_ANSWER_TIMEOUT_S).get("/v1/dht/lookup", {"id": node_id}), as_json, "dht_lookup")


@moectl.command(epilog="Example: moectl doctor")
@output_options
@click.pass_obj
def doctor(target: Target, as_json: bool) -> None:
    """Ask peers where they see this node and whether they can dial it back, over UDP and TCP.

    Exits with 1 where a finding is an error: no bootstrap answers, peers cannot dial this node, and the like.
    """
    answer = target.client(SLOW_ANSWER_TIMEOUT_S).post("/v1/doctor")
    emit(answer, as_json, "doctor")
    if any(one["severity"] == "error" for one in answer["findings"]):
        raise click.exceptions.Exit(EXIT_FAILED)


@moectl.command(epilog='Example: moectl complete "The import statement " --max-bytes 64')
@click.argument("text")
@click.option("--max-bytes", type=click.IntRange(1, 4096), default=128, show_default=True, help="Longest continuation.")
@click.option(
    "--temperature", type=click.FloatRange(0, 10), default=0.0, show_default=True, help="0 takes the likeliest byte."
)
@click.option("--seed", type=click.IntRange(0, (1 << 63) - 1), help="Makes a draw at a temperature repeatable.")
@output_options
@click.pass_obj
def complete(target: Target, text: str, max_bytes: int, temperature: float, seed: int | None, as_json: bool) -> None:
    """Continue TEXT through the mixture of experts; "-" reads it from standard input."""
    body = {"prompt": given_text(text), "max_bytes": max_bytes, "temperature": temperature, "seed": seed}
    client = target.client(SLOW_ANSWER_TIMEOUT_S)
    if as_json:
        emit(client.post("/v1/complete", body), as_json, "complete")
        return
    shares: dict[str, float] = {}
    for event in client.stream("POST", "/v1/complete", body=body):
        if event.name == "piece":
            print(_printable_text(event.data["text"]), end="", flush=True)
        elif event.name == "done":
            shares = event.data["experts"]
    print()
    if sys.stderr.isatty() and shares:
        by_share = sorted(shares.items(), key=lambda item: -item[1])
        click.secho("by " + ", ".join(f"uid {uid} {share:.0%}" for uid, share in by_share), dim=True, err=True)


def _printable_text(text: str) -> str:
    """A miner's words as they are, but for what would drive the terminal."""
    from .tables import clean

    return "".join(c if c in "\n\t" else clean(c) for c in text)


@moectl.command(epilog="Example: moectl losses --json")
@output_options
@click.pass_obj
def losses(target: Target, as_json: bool) -> None:
    """Measure the mixture on held-out text, beside its best expert and their plain average."""
    emit(target.client(SLOW_ANSWER_TIMEOUT_S).post("/v1/losses"), as_json, "losses")


@moectl.command(epilog='Example: moectl route "def main(arguments):"')
@click.argument("text")
@output_options
@click.pass_obj
def route(target: Target, text: str, as_json: bool) -> None:
    """Whom the gate asks about TEXT, and what each answer is worth; "-" reads it from standard input."""
    question = {"text": given_text(text)}
    emit(target.client(SLOW_ANSWER_TIMEOUT_S).post("/v1/route", question), as_json, "route")


@moectl.command(epilog="Example: moectl logs -f --level warning")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines as they come.")
@click.option(
    "-n", "--lines", type=click.IntRange(0, MAX_LINES), default=100, show_default=True, help="How many old ones."
)
@click.option("--since", type=click.IntRange(min=0), default=None, help="Lines after this number, in place of -n.")
@click.option(
    "--level",
    type=click.Choice(["debug", "info", "warning", "error", "critical"]),
    default="debug",
    show_default=True,
    help="The least severe lines to show.",
)
@output_options
@click.pass_obj
def logs(target: Target, follow: bool, lines: int, since: int | None, level: str, as_json: bool) -> None:
    """The daemon's last log lines; with --json one object a line."""
    query = {"level": level, "since": since, "tail": lines if since is None else None}
    client = target.client()
    if not follow:
        for answer in in_batches(client, "/v1/logs", query, "lines"):
            _say_dropped(answer["dropped"])
            for line in answer["lines"]:
                _print_log(line, as_json)
        return
    for event in client.stream("GET", "/v1/logs", query={**query, "follow": True}):
        if event.name == "log":
            _print_log(event.data, as_json)
        elif event.name == "dropped":
            _say_dropped(event.data["dropped"])


def _print_log(line: dict[str, Any], as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps(line, ensure_ascii=False), flush=True)
        return
    from .tables import log_text

    click.secho(log_text(line), fg=_LEVEL_COLOURS.get(line["level"]))


def _say_dropped(count: int) -> None:
    if count:
        click.echo(f"moectl: {count} older lines are gone from the daemon's memory; the journal has them", err=True)


@moectl.command(epilog="Example: sudo moectl stop")
@output_options
@click.pass_obj
def stop(target: Target, as_json: bool) -> None:
    """Stop the daemon in order: running requests end first."""
    answer = target.client().post("/v1/stop")
    if as_json:
        emit(answer, as_json, "stop")
    else:
        print("the daemon is stopping")


add_ledger_verbs(moectl)
moectl.add_command(fleet)
for verb in OPERATOR_VERBS:
    moectl.add_command(verb)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, with one line on standard error for what went wrong."""
    try:
        # Not `moectl.main`: it ends a broken pipe with 1, which here means that the daemon refused.
        given = list(sys.argv[1:] if arguments is None else arguments)
        if COMPLETION_VARIABLE in os.environ:
            from click.shell_completion import shell_complete

            return shell_complete(moectl, {}, "moectl", COMPLETION_VARIABLE, os.environ[COMPLETION_VARIABLE])
        with moectl.make_context("moectl", given) as context:
            moectl.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.UsageError as error:
        _with_place(error).show()
        return EXIT_USAGE
    except NodeError as error:
        click.echo(f"moectl: {error}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _give_up_output()  # `moectl logs | head`: whoever read has enough
        return EXIT_DONE
    except OSError as error:
        _give_up_output()  # `moectl logs > FILE` on a full disk
        click.echo(f"moectl: {error.strerror or error}", err=True)
        return EXIT_FAILED
    return EXIT_DONE


def _give_up_output() -> None:
    """Let what is still to be written go nowhere: Python would complain again while it closes the stream."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_place(error: click.UsageError) -> click.UsageError:
    """``error``; where an option of `moectl` itself stands behind the verb, with the place where it belongs."""
    if not isinstance(error, click.NoSuchOption) or error.option_name not in {"--home", "--socket"}:
        return error
    verb = error.ctx.command_path.partition(" ")[2] if error.ctx is not None else "VERB"
    name = error.option_name
    return click.UsageError(f"{name} stands before the verb: moectl {name} PATH {verb} …", error.ctx)


if __name__ == "__main__":
    main()
