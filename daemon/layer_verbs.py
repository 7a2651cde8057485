"""The verbs of `moed experiment` that play with layers of remote experts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from .experiment_verbs import check_outputs, finish
from .plain_errors import plain_errors

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Seeds 0 to this, less one.")
@click.option(
    "--nodes", type=click.IntRange(10, 10_000), multiple=True, default=(100, 1000), show_default=True,
    help="Nodes of a network in which experts are searched; may be given again.",
)  # fmt: skip
@click.option("--json", "json_file", type=FILE, help="Write the numbers to this file, and a .png and .md beside it.")
@plain_errors
def dmoe(seeds: int, nodes: tuple[int, ...], json_file: Path | None) -> None:
    """A layer of 64 remote experts on virtual time: late links, failing calls, dying servers, cold searches.

    \b
    moed experiment dmoe --json dmoe.json
    """
    from .dmoe import experiment
    from .dmoe.plot import plot_dmoe
    from .logs import configure_logging

    configure_logging("error")
    check_outputs(json_file)
    found = experiment.dmoe(seeds=seeds, nodes=nodes, say=partial(click.echo, err=True))
    finish(found, experiment.dmoe_tables(found), json_file, plot_dmoe)


@click.command()
@click.option("--seed", type=click.IntRange(0, 1 << 32), default=0, show_default=True, help="Decides model and victim.")
@click.option("--before", "before_s", type=click.FloatRange(1, 3600), default=10.0, show_default=True, help="Seconds.")
@click.option("--after", "after_s", type=click.FloatRange(3, 3600), default=20.0, show_default=True, help="Seconds.")
@click.option("--json", "json_file", type=FILE, help="Write the numbers to this file, and a .png and .md beside it.")
@plain_errors
def failure(seed: int, before_s: float, after_s: float, json_file: Path | None) -> None:
    """Four real servers of experts, one of them killed while a model learns through them.

    \b
    moed experiment failure --json failure.json
    """
    from .dmoe.plot import plot_failure
    from .failure_experiment import failure as play
    from .failure_experiment import failure_tables
    from .logs import configure_logging

    configure_logging("error")
    check_outputs(json_file)
    found = play(seed=seed, before_s=before_s, after_s=after_s, say=partial(click.echo, err=True))
    finish(found, failure_tables(found), json_file, plot_failure)


LAYER_VERBS: list[click.Command] = [dmoe, failure]
