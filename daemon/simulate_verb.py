"""`moed simulate`: live through seeds, or look for the seed that finds a planted bug."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext

import click

from .errors import SimulationFailed
from .plain_errors import plain_errors

BUGS = ("vote-twice", "no-journal", "late-journal", "no-lock", "lock-forgotten", "old-validators")
PROFILES = ("weather", "power", "schedule", "treason", "stake")


@click.command()
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Decides everything that happens.")
@click.option(
    "--seeds", type=click.IntRange(1), default=1, show_default=True, help="Live so many lives, from --seed on."
)
@click.option("--hours", type=click.FloatRange(0.1, 24 * 30), default=1.0, show_default=True, help="Of virtual time.")
@click.option("--nodes", type=click.IntRange(1, 16), default=4, show_default=True, help="Validators in each life.")
@click.option("--interval-ms", type=click.IntRange(100), default=12_000, show_default=True, help="Between blocks.")
@click.option("--profile", type=click.Choice(PROFILES), help="The kind of trouble; without it each seed chooses one.")
@click.option(
    "--mutant", type=click.Choice(BUGS), help="Plant this bug in every node, and stop at the seed that shows."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each life.")
@plain_errors
def simulate(
    seed: int,
    seeds: int,
    hours: float,
    nodes: int,
    interval_ms: int,
    profile: str | None,
    mutant: str | None,
    as_json: bool,
) -> None:
    """Run networks of real nodes on virtual time under faults that the seed alone decides.

    Loss, copies, partitions also one-way, power cuts inside writes, slow disks, wrong clocks, chosen messages held
    back, liars under a third of the stake. At every step: no two final blocks at one height, equal roots, units
    conserved, nothing final lost, nobody honest signs twice or against its lock; after the faults end, progress. A life
    that breaks one of these ends with one line that shows it again.

    \b
    moed simulate --seed 7 --hours 1 --nodes 4
    moed simulate --seeds 200 --hours 0.2 --mutant no-lock
    """
    from .logs import configure_logging
    from .simulation.faults import Profile
    from .simulation.mutants import planted
    from .simulation.witness import InvariantBroken
    from .simulation.world import simulate as live

    configure_logging("critical")
    kind = Profile[profile.upper()] if profile else None
    began = time.monotonic()
    for one in range(seed, seed + seeds):
        try:
            with planted(mutant) if mutant else nullcontext():
                report = live(one, nodes=nodes, hours=hours, block_interval_ms=interval_ms, profile=kind)
        except InvariantBroken as broken:
            if mutant:
                click.echo(f"{mutant} is found: {broken}")
                return
            again = f"moed simulate --seed {one} --hours {hours:g} --nodes {nodes} --interval-ms {interval_ms}"
            again += f" --profile {profile}" if profile else ""
            raise SimulationFailed(str(broken), f"see it again with: {again}") from broken
        if not mutant:
            click.echo(json.dumps(report.as_dict()) if as_json else report.line())
    if mutant:
        raise SimulationFailed(f"{mutant} is not found in {seeds} lives", "live more of them, or longer ones")
    minutes = (time.monotonic() - began) / 60
    if seeds > 1 and not as_json:
        click.echo(f"{seeds} lives, {seeds * hours:g} simulated hours at {seeds * hours / minutes:.1f} a real minute")
