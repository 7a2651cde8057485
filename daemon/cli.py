"""`moed`: make a home, run a node, check its chain, and run whole networks on this machine.

Only arguments are read here; what is heavy is imported by the verb that needs it.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moed import __version__

from .chain_verbs import chain
from .devnet_verbs import devnet
from .errors import EXIT_FAILED, EXIT_USAGE
from .experiment_verbs import MODEL_VERBS, write_json
from .key_verbs import keys
from .layer_verbs import LAYER_VERBS
from .plain_errors import plain_errors
from .plan_verb import plan
from .service_verbs import service
from .simulate_verb import simulate

if TYPE_CHECKING:
    from .tables import Table

HOME = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="moed")
def moed() -> None:
    """Run a node of a peer-to-peer mixture of experts.

    \b
    moed init --home ~/.moed            a network of one, yours
    moed run --home ~/.moed             in the foreground; Ctrl-C ends it in order
    moectl --home ~/.moed status        in another terminal
    moed devnet run                     a network of six on this machine
    """


@moed.command()
@click.option("--home", type=HOME, required=True, help="Folder of the node; made if it is not there.")
@click.option(
    "--role",
    type=click.Choice(["follower", "miner", "validator"]),
    default="follower",
    show_default=True,
    help="Keep the chain only, serve models too, or judge them.",
)
@click.option("--port", type=click.IntRange(1, 65535), help="One number for TCP and UDP.  [default: 4700]")
@click.option("--bootstrap", multiple=True, metavar="HOST:PORT", help="A node to join first; may be given again.")
@click.option("--genesis", type=FILE, help="The genesis of the network to join.")
@click.option("--workload", multiple=True, metavar="WORK", help="A new network does this alone; may be given again.")
@plain_errors
def init(
    home: Path,
    role: str,
    port: int | None,
    bootstrap: tuple[str, ...],
    genesis: Path | None,
    workload: tuple[str, ...],
) -> None:
    """Make a node's home: key, configuration, genesis.

    Without --genesis the node is a network of its own, with itself as the one validator. To join others, give
    their genesis file and one of their addresses:

    \b
    moed init --home ~/.moed --role miner --genesis genesis.json --bootstrap example.org:4700
    """
    from .home import initialise, workloads_of

    made = initialise(
        home, role=role, port=port, bootstrap=bootstrap, genesis_file=genesis, workloads=workloads_of(workload)
    )
    click.echo(f"node {made.node_id} of network {made.network_name} ({made.network_id[:12]}) in {home}")
    click.echo(f"start it with: moed run --home {home}")


@moed.command()
@click.option("--home", type=HOME, required=True, help="Folder that `moed init` made.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Overrides [log] level.")
@plain_errors
def run(home: Path, log_level: str | None) -> None:
    """Run the node in the foreground until SIGTERM or Ctrl-C.

    \b
    moed run --home ~/.moed
    """
    from .config import load_config

    overrides = {"log.level": log_level} if log_level else {}
    config = load_config(home, overrides)
    # a tenth of the start goes into collections that find nothing; the node turns them on once all is imported
    gc.disable()
    from .node import run_node

    run_node(config, overrides)


@moed.command()
@click.option("--home", type=HOME, required=True, help="Folder of the node.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@plain_errors
def doctor(home: Path, as_json: bool) -> None:
    """Look for what would keep the daemon of a home from starting; exits with 1 if there is something.

    `moectl doctor` asks a running daemon, and its peers.

    \b
    moed doctor --home ~/.moed
    """
    from . import answer_tables, tables
    from .client import Client
    from .errors import DaemonRefused, DaemonUnreachable
    from .findings import check_home
    from .places import socket_of_home

    try:
        Client(socket_of_home(home)).get("/v1/status")
        is_running = True
    except DaemonUnreachable:
        is_running = False
    except DaemonRefused:
        is_running = True
    found = [finding.plain() for finding in check_home(home, is_running=is_running)]
    if as_json:
        click.echo(json.dumps({"running": is_running, "findings": found}, indent=2))
    else:
        tables.show(answer_tables.findings_parts(found))
    if any(one["severity"] == "error" for one in found):
        sys.exit(EXIT_FAILED)


@moed.group()
def config() -> None:
    """Look at a node's configuration, whether it runs or not.

    \b
    moed config show --home ~/.moed
    """


@config.command("check")
@click.option("--home", type=HOME, required=True, help="Folder of the node.")
@plain_errors
def config_check(home: Path) -> None:
    """Say whether the configuration can be used; what is wrong is named with its line and the remedy.

    \b
    moed config check --home ~/.moed
    """
    from .config import load_config

    load_config(home)
    click.echo(f"{home / 'config.toml'} can be used")


@config.command("show")
@click.option("--home", type=HOME, required=True, help="Folder of the node.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@plain_errors
def config_show(home: Path, as_json: bool) -> None:
    """Show every value that a start would use, and where it is from: default, file and line, environment.

    \b
    MOED_NODE_PORT=4701 moed config show --home ~/.moed
    """
    from . import answer_tables, tables
    from .config import load_config, read_text
    from .config_sources import settings_answer
    from .settings import explain

    used = load_config(home)
    found = settings_answer(explain(used, read_text(used.home / "config.toml")))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        tables.show(answer_tables.config_parts(found))


moed.add_command(chain)
moed.add_command(service)
moed.add_command(keys)
moed.add_command(plan)


@moed.command("receipts")
@click.option("--home", type=HOME, required=True, help="Folder of the node.")
@click.option("--json", "as_json", is_flag=True, help="Print every call with its signatures, as one JSON object.")
@plain_errors
def show_receipts(home: Path, as_json: bool) -> None:
    """Show the receipts of the calls that this node served and made; it may be running.

    \b
    moed receipts --home ~/.moed --json > receipts.json
    """
    from . import tables
    from .errors import StoreFailed
    from .home import Home
    from .receipt_export import export_sheet, receipt_table, sums
    from .store import Store

    place = Home(home)
    genesis = place.load_genesis()
    if not place.database.exists():
        raise StoreFailed(f"{place.database} is not there yet", f"start the node first: moed run --home {home}")
    with Store(place.database, genesis) as store:
        sheets = [export_sheet(signed, genesis.network_id) for signed in store.receipts()]
    if as_json:
        click.echo(json.dumps({"network_id": genesis.network_id.hex(), "sheets": sheets, "sums": sums(sheets)}))
    else:
        tables.show([receipt_table(sums(sheets))])


@moed.command("epoch")
@click.option("--input", "file", type=FILE, required=True, help="An epoch_bits input or an epoch_sequence, in JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with every quantity.")
@plain_errors
def run_epoch(file: Path, as_json: bool) -> None:
    """Run Yuma consensus on the stakes, weights and bonds in a file.

    \b
    moed epoch --input case.json --json
    """
    from . import tables
    from .epoch_file import run_file

    outcome = run_file(file)
    if as_json:
        click.echo(json.dumps(outcome.plain()))
    else:
        tables.show(outcome.tables())


@moed.group()
def experiment() -> None:
    """Play with models, and attacks against consensus, and see what holds.

    \b
    moed experiment collusion
    """


def experiment_options(verb: Callable[..., None]) -> Callable[..., None]:
    """The options that every experiment has."""
    for option in (
        click.option("--seeds", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many draws."),
        click.option("--json", "json_file", type=FILE, help="Write the numbers as one JSON object to this file."),
        click.option("--png", "png_file", type=FILE, help="Draw them into this file; needs the extra `plots`."),
    ):
        verb = option(verb)
    return verb


@experiment.command()
@experiment_options
@click.option("--line-seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Draws for each line.")
@plain_errors
def collusion(seeds: int, line_seeds: int, json_file: Path | None, png_file: Path | None) -> None:
    """A cabal ranks its own miners: how much useful work keeps an honest majority its stake.

    \b
    moed experiment collusion --json collusion.json --png collusion.png
    """
    from . import experiment_plots, experiments

    if png_file is not None:
        experiment_plots.check_plots()
    found = experiments.collusion(seeds=seeds, line_seeds=line_seeds, say=_to_stderr)
    _show_experiment(found, experiments.collusion_tables(found), json_file)
    if png_file is not None:
        experiment_plots.plot_collusion(found, png_file)


@experiment.command("weight-copy")
@experiment_options
@plain_errors
def weight_copy(seeds: int, json_file: Path | None, png_file: Path | None) -> None:
    """A validator copies others' weights: what it earns where they are open, and where they are hidden first.

    \b
    moed experiment weight-copy --json weight-copy.json --png weight-copy.png
    """
    from . import experiment_plots, experiments

    if png_file is not None:
        experiment_plots.check_plots()
    found = experiments.weight_copy(seeds=seeds, say=_to_stderr)
    _show_experiment(found, experiments.weight_copy_tables(found), json_file)
    if png_file is not None:
        experiment_plots.plot_weight_copy(found, png_file)


for model_verb in [*MODEL_VERBS, *LAYER_VERBS]:
    experiment.add_command(model_verb)


def _to_stderr(text: str) -> None:
    click.echo(text, err=True)


def _show_experiment(found: dict[str, Any], shown: list[Table], json_file: Path | None) -> None:
    from . import tables

    tables.show(shown)
    if json_file is not None:
        write_json(json_file, found)


moed.add_command(simulate)


moed.add_command(devnet)


def main(arguments: list[str] | None = None) -> Any:
    """Entry point. Exit codes: 0 done, 1 failed, 3 wrong usage or configuration."""
    try:
        return moed.main(arguments, prog_name="moed", standalone_mode=False)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()
