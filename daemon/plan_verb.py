"""`moed plan`: predicts the memory of every configured model, proves it, and names the setting that does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import EXIT_FAILED, ConfigError, NodeError
from .plain_errors import plain_errors

if TYPE_CHECKING:
    from .config import Config
    from .memory_plan import Planned
    from .tables import Table

HOME = click.Path(file_okay=False, path_type=Path)
PROOF_TIMEOUT_S = 600.0


@click.command()
@click.option("--home", type=HOME, required=True, help="Folder of the miner.")
@click.option("--no-proof", is_flag=True, help="Predict alone; build and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@plain_errors
def plan(home: Path, no_proof: bool, as_json: bool) -> None:
    """Whether the configured models fit this machine's memory, before the daemon runs.

    The memory of each is predicted from its configuration alone and then measured: it is built, trained, asked and
    stored in a process of its own. Exits with 1, and the one setting to change, where it does not fit.

    \b
    moed plan --home ~/.moed
    """
    from .config import load_config

    config = load_config(home)
    if not config.experts and not config.layers:
        raise ConfigError(f"{home} has no experts and no layers", "there is nothing to plan for this role")
    found = make_plan(config, is_proven=not no_proof)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        from . import tables

        tables.show(plan_tables(found))
    if not found["fits"]:
        click.echo(f"moed: {_refusal(found)}", err=True)
        sys.exit(EXIT_FAILED)


def make_plan(config: Config, *, is_proven: bool) -> dict[str, Any]:
    """The whole answer as JSON has it. Nothing is built that is predicted not to fit. Raises `NodeError`."""
    from .memory_plan import MemoryPlan
    from .roles import corpus_of, prepare_torch

    device = prepare_torch(config)
    # the texts are read here: one that is missing is named before anything is measured
    texts = {(one.domain, one.files): corpus_of(one, config) for one in config.experts}
    text_bytes = sum(len(side.data) for text in texts.values() for side in text.sides.values())
    framework = _measured(config, None)["framework_bytes"]
    planned = MemoryPlan(config, device, framework_bytes=framework + text_bytes)
    need, change = planned.need(), planned.change()
    is_proven = is_proven and need.fits
    return {
        "device": need.device,
        "framework_bytes": framework,
        "text_bytes": text_bytes,
        "models": [_model_row(config, one, is_proven=is_proven) for one in planned.models],
        "need_bytes": need.bytes,
        "limit_bytes": need.limit_bytes,
        "limit_by": need.limit_by,
        "fits": need.fits,
        "change": None if change is None else {"key": change.key, "now": change.now, "then": change.then},
    }


def _model_row(config: Config, planned: Planned, *, is_proven: bool) -> dict[str, Any]:
    footprint = planned.footprint
    measured = _measured(config, planned.place) if is_proven else {}
    peak = measured.get("peak_bytes")
    return {
        "place": planned.place,
        "name": planned.section.name,
        "count": planned.count,
        "parameters_bytes": footprint.parameters,
        "optimizer_bytes": footprint.optimizer,
        "held_bytes": footprint.held,
        "training_bytes": footprint.training,
        "serving_bytes": footprint.serving,
        "predicted_bytes": footprint.peak,
        "measured_bytes": peak,
        "ratio": None if not peak else round(footprint.peak / peak, 3),
        "error": measured.get("error"),
    }


def _measured(config: Config, place: str | None) -> dict[str, Any]:
    """What one fresh process says. Raises `NodeError` where it ends without an answer."""
    command = [sys.executable, "-m", "moed.daemon.rehearsal_process", str(config.home)]
    try:
        ended = subprocess.run(  # noqa: S603 - our own interpreter and our own module
            command if place is None else [*command, place],
            capture_output=True,
            text=True,
            timeout=PROOF_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {PROOF_TIMEOUT_S:.0f} s"}
    if ended.returncode < 0 and place is not None:
        return {"error": f"ended by signal {-ended.returncode}; out of memory, most likely"}
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["without a word"])[-1]
        raise NodeError(f"the rehearsal of {place or 'torch alone'} failed: {last}", "see if `moed run` starts")
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return answer


def plan_tables(found: dict[str, Any]) -> list[Table | dict[str, str]]:
    """The answer for people."""
    from .tables import Table, size

    rows = [
        [
            row["name"],
            str(row["count"]),
            *(size(row[f"{part}_bytes"]) for part in ("parameters", "optimizer", "held", "training", "serving")),
            size(row["predicted_bytes"]),
            row["error"] or ("-" if row["measured_bytes"] is None else size(row["measured_bytes"])),
            "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
        ]
        for row in found["models"]
    ]
    heads = (
        "model",
        ">count",
        ">weights",
        ">Adam",
        ">held",
        ">a step",
        ">a batch",
        ">predicted",
        ">measured",
        ">ratio",
    )
    facts = {
        "device": found["device"],
        "framework": size(found["framework_bytes"]),
        "text": size(found["text_bytes"]),
        "needed": size(found["need_bytes"]),
        "limit": f"{size(found['limit_bytes'])} ({found['limit_by']})",
        "fits": "yes" if found["fits"] else "no",
    }
    return [Table("Peak memory of each model", heads, rows), facts]


def _refusal(found: dict[str, Any]) -> str:
    from .tables import size

    change = found["change"]
    missing = f"{size(found['need_bytes'])} do not fit {size(found['limit_bytes'])} on {found['device']}"
    if change is None:
        largest = max(found["models"], key=lambda row: row["count"] * row["predicted_bytes"])
        return f"{missing}, and no single setting mends it (leave out {largest['name']!r}, the largest)"
    return f"{missing} ({change['key']}: {_value(change['now'])} → {_value(change['then'])} fits)"


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
