"""The verbs of `moed experiment` that play with models: they train for minutes, so they tell how far they are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from .errors import ConfigError
from .plain_errors import plain_errors
from .tables import Table, show

FILE = click.Path(dir_okay=False, path_type=Path)
MODEL_VERBS: list[click.Command] = []


def write_json(path: Path, value: Any) -> None:
    """Write one JSON object to a file. Raises `ConfigError` if that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", "give a path that can be written") from error


def check_outputs(json_file: Path | None) -> None:
    """Raise `ConfigError` now rather than after minutes of play if what stands beside ``json_file`` cannot be made."""
    from .experiment_plots import check_plots

    if json_file is None:
        return
    check_plots()
    if json_file.suffix != ".json":
        raise ConfigError("a picture and a page go beside the numbers", "give --json a name that ends in .json")


def finish(
    found: dict[str, Any], tables: Sequence[Table], json_file: Path | None, plot: Callable[[dict[str, Any], Path], None]
) -> None:
    """Show what was found; with a file write it there, and a picture and a page beside."""
    from .experiment_page import write_page

    show(tables)
    if json_file is not None:
        write_json(json_file, found)
        plot(found, json_file.with_suffix(".png"))
        write_page(json_file.with_suffix(".md"), found["experiment"], tables)


def _verb(
    name: str, help_text: str
) -> Callable[[Callable[[int, Callable[[str], None]], dict[str, Any]]], click.Command]:
    """A verb with --seed, --seeds and --json, which writes the numbers, and a picture and a page of them beside."""

    def register(play: Callable[[int, Callable[[str], None]], dict[str, Any]]) -> click.Command:
        _PLAYS[name] = play

        @click.command(name, help=help_text)
        @click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="The first seed.")
        @click.option("--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="So many seeds.")
        @click.option(
            "--json", "json_file", type=FILE, help="Write the numbers to this file, and a .png and .md beside it."
        )
        @plain_errors
        def command(seed: int, seeds: int, json_file: Path | None) -> None:
            from . import model_plots, model_tables

            check_outputs(json_file)
            found = _play_seeds(name, range(seed, seed + seeds))
            tables = getattr(model_tables, f"{name}_tables")(found)
            finish(found, tables, json_file, getattr(model_plots, f"plot_{name}"))

        MODEL_VERBS.append(command)
        return command

    return register


_PLAYS: dict[str, Callable[[int, Callable[[str], None]], dict[str, Any]]] = {}


def _play_seeds(name: str, seeds: Sequence[int]) -> dict[str, Any]:
    from moed.models.experiments import numbers
    from moed.models.experiments.seeds import over_seeds

    from .parallel_plays import play_all

    click.echo(f"seeds {', '.join(map(str, seeds))}", err=True)
    runs = play_all([partial(_play_seed, name, seed) for seed in seeds])
    return over_seeds(runs, [getattr(numbers, f"{name}_numbers")(run) for run in runs])


def _play_seed(name: str, seed: int) -> dict[str, Any]:
    began_s = time.monotonic()

    def say(text: str) -> None:
        click.echo(f"seed {seed}, {time.monotonic() - began_s:4.0f} s: {text}", err=True)

    found = _PLAYS[name](seed, say)
    say("done")
    return found


@_verb(
    "mixture",
    "Four specialists and eight overlapping miners: does the mixture beat its best member, and the oracle?"
    "\n\n\b\n    moed experiment mixture --json mixture.json",
)
def mixture(seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    from moed.models.experiments.mixture import run_mixture

    return run_mixture(seed=seed, say=say)


@_verb(
    "specialist",
    "A niche miner's pay, and whether copies and relays are found and honest twins are not."
    "\n\n\b\n    moed experiment specialist --json specialist.json",
)
def specialist(seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    from moed.models.experiments.specialist import run_specialist

    return run_specialist(seed=seed, say=say)


@_verb(
    "distillation",
    "A student with little text: alone, with the exchange, and as a newcomer that starts from the mixture."
    "\n\n\b\n    moed experiment distillation --json distillation.json",
)
def distillation(seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    from moed.models.experiments.distillation import run_distillation

    return run_distillation(seed=seed, say=say)
