"""The verbs of `moed experiment` that play with models: they train for minutes, so they tell how far they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .errors import ConfigError
from .plain_errors import plain_errors

FILE = click.Path(dir_okay=False, path_type=Path)
MODEL_VERBS: list[click.Command] = []


def write_json(path: Path, value: Any) -> None:
    """Write one JSON object to a file. Raises `ConfigError` if that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", "give a path that can be written") from error


def _to_stderr(text: str) -> None:
    click.echo(text, err=True)


def _verb(name: str, help_text: str) -> Callable[[Callable[[int], dict[str, Any]]], click.Command]:
    """A verb with --seed and --json, which writes the numbers and a picture of them beside."""

    def register(play: Callable[[int], dict[str, Any]]) -> click.Command:
        @click.command(name, help=help_text)
        @click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Decides every draw.")
        @click.option("--json", "json_file", type=FILE, help="Write the numbers to this file, and a .png beside it.")
        @plain_errors
        def command(seed: int, json_file: Path | None) -> None:
            from . import model_plots, model_tables, tables
            from .experiment_plots import check_plots

            if json_file is not None:
                check_plots()
                if json_file.suffix == ".png":
                    raise ConfigError("the picture goes beside the numbers", "give --json a name that ends in .json")
            _one_thread()
            found = play(seed)
            tables.show(getattr(model_tables, f"{name}_tables")(found))
            if json_file is not None:
                write_json(json_file, found)
                getattr(model_plots, f"plot_{name}")(found, json_file.with_suffix(".png"))

        MODEL_VERBS.append(command)
        return command

    return register


def _one_thread() -> None:
    """The same sums in the same order on every machine, and one core is enough."""
    import torch

    torch.set_num_threads(1)


@_verb(
    "mixture",
    "Four specialists and eight overlapping miners: does the mixture beat its best member, and the oracle?"
    "\n\n\b\n    moed experiment mixture --json mixture.json",
)
def mixture(seed: int) -> dict[str, Any]:
    from moed.models.experiments.mixture import run_mixture

    return run_mixture(seed=seed, say=_to_stderr)


@_verb(
    "specialist",
    "A niche miner's pay, and whether copies and relays are found and honest twins are not."
    "\n\n\b\n    moed experiment specialist --json specialist.json",
)
def specialist(seed: int) -> dict[str, Any]:
    from moed.models.experiments.specialist import run_specialist

    return run_specialist(seed=seed, say=_to_stderr)


@_verb(
    "distillation",
    "A student with little text: alone, with the exchange, and as a newcomer that starts from the mixture."
    "\n\n\b\n    moed experiment distillation --json distillation.json",
)
def distillation(seed: int) -> dict[str, Any]:
    from moed.models.experiments.distillation import run_distillation

    return run_distillation(seed=seed, say=_to_stderr)
