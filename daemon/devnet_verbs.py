"""`moed devnet`: whole networks of real daemons on this machine, run once or left running."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import click

from .errors import ConfigError
from .plain_errors import plain_errors

HOME = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
DEVNET_FOLDER = Path(".devnet")


@click.group()
def devnet() -> None:
    """Run a whole network of real daemons on this machine.

    \b
    moed devnet up
    moed devnet down
    """


def network_options(verb: Callable[..., None]) -> Callable[..., None]:
    """The options that `devnet run` and `devnet up` share."""
    for option in (
        click.option("--folder", type=HOME, default=DEVNET_FOLDER, show_default=True, help="Where the homes go."),
        click.option("--miners", type=click.IntRange(0, 64), default=4, show_default=True, help="How many."),
        click.option("--validators", type=click.IntRange(1, 64), default=2, show_default=True, help="How many."),
    ):
        verb = option(verb)
    return verb


@devnet.command("run")
@network_options
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True, help="Stop when so many are final.")
@click.option("--json", "json_file", type=FILE, help="Write the result as one JSON object to this file.")
@plain_errors
def devnet_run(folder: Path, validators: int, miners: int, epochs: int, json_file: Path | None) -> None:
    """Start a network, watch it learn until some epochs are final, ask it something, and stop it.

    \b
    moed devnet run --validators 2 --miners 4 --epochs 3 --json result.json
    """
    from . import devnet as network
    from .devnet_view import Screen, show_summary

    # SIGTERM ends it as Ctrl-C does: the daemons are stopped on the way out
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if json_file is not None:
        _require_writable(json_file)
    with Screen(epochs) as screen:
        summary = network.run(
            folder, validators=validators, miners=miners, epochs=epochs, show=screen.show, say=screen.say
        )
    show_summary(summary)
    if json_file is not None:
        json_file.write_text(json.dumps(summary, indent=2) + "\n")


def _require_writable(file: Path) -> None:
    """Complain about a result file before the run that makes the result, not after."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}", "name another file with --json") from error


@devnet.command("up")
@network_options
@plain_errors
def devnet_up(folder: Path, validators: int, miners: int) -> None:
    """Start a network and leave it running.

    \b
    moed devnet up && moectl --home .devnet/validator-0 rankings
    """
    from .devnet import Devnet
    from .devnet_view import Screen

    network = Devnet(folder)
    network.create(validators=validators, miners=miners)
    network.start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Screen(0) as screen:
            for progress in network.watch_ready():
                screen.show(progress)
    except BaseException:  # Ctrl-C among them: no process may outlive the command that failed
        network.stop()
        raise
    click.echo(f"{len(network.nodes)} nodes run under {folder}; for example: moectl --home {folder}/validator-0 status")
    click.echo(f"stop them with: moed devnet down --folder {folder}")


@devnet.command("down")
@click.option("--folder", type=HOME, default=DEVNET_FOLDER, show_default=True, help="Where the homes are.")
@plain_errors
def devnet_down(folder: Path) -> None:
    """Stop a network that `moed devnet up` started.

    \b
    moed devnet down
    """
    from .devnet import Devnet, DevnetFailed

    network = Devnet(folder)
    if not network.load():
        click.echo(f"no network was made in {folder}")
        return
    running = sum(node.is_running() for node in network.nodes)
    complaints = network.stop()
    if complaints:
        raise DevnetFailed("; ".join(complaints), f"read the logs under {folder}")
    click.echo(f"{running} nodes stopped" if running else f"no network runs in {folder}")
