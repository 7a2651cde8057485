"""How a network on this machine looks while it works: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from .devnet import Progress


class Screen:
    """Shows progress; a context manager, because a live table must give the terminal back."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._last_line = ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def show(self, progress: Progress) -> None:
        """Show one look at the network."""
        if self._live is not None:
            self._live.update(self._table(progress), refresh=True)
            return
        goal = f" of {self._epochs}" if self._epochs else ""
        earning = "  ".join(
            f"{row['domain'] or row['uid']} {row['incentive']:.2f}" for row in progress.miners if row["incentive"]
        )
        height = progress.height // 5 * 5  # a line for every fifth block is enough to see that it lives
        line = f"{progress.ready} of {progress.nodes} ready, epoch {progress.epoch}{goal}, height {height}"
        if line != self._last_line:
            self._last_line = line
            sys.stdout.write(f"{progress.seconds:6.1f} s  {line}  {earning}".rstrip() + "\n")
            sys.stdout.flush()

    def say(self, sentence: str) -> None:
        """One line that stays."""
        if self._live is not None:
            self._live.console.print(sentence)
        else:
            sys.stdout.write(sentence + "\n")
            sys.stdout.flush()

    def _table(self, progress: Progress) -> Table:
        goal = f"/{self._epochs}" if self._epochs else ""
        table = Table(
            title=f"{progress.ready}/{progress.nodes} nodes ready · epoch {progress.epoch}{goal} · "
            f"height {progress.height} · {progress.seconds:.0f} s"
        )
        for heading in ("uid", "miner of", "incentive", "earned in the last epoch"):
            table.add_column(heading, justify="right")
        for row in progress.miners:
            table.add_row(
                str(row["uid"]), row["domain"] or "?", f"{row['incentive']:.3f}", f"{row['emission'] / 1e9:.3f}"
            )
        return table


def show_summary(summary: dict[str, Any]) -> None:
    """Print the final ranking, the held-out losses and the completion."""
    click.echo("\nfinal ranking (incentive; share of each validator's weight)")
    for miner in sorted(summary["miners"], key=lambda row: -row["incentive"]):
        shares = ", ".join(
            f"validator {uid} {share:.2f}" for uid, share in sorted(miner["weight_by_validator"].items())
        )
        click.echo(f"  uid {miner['uid']:>2}  {miner['domain'] or '?':<8} {miner['incentive']:.3f}   {shares}")
    losses = summary["losses"]
    click.echo("\nheld-out text, bits per byte (less is better)")
    for name in ("mixture", "best_single", "uniform_average"):
        click.echo(f"  {name.replace('_', ' '):<16} {losses[name]:.3f}")
    domains = {str(miner["uid"]): miner["domain"] or str(miner["uid"]) for miner in summary["miners"]}
    click.echo("\nwhere the gate sends each kind of text (share of the answer)")
    for text, shares in summary["share"].items():
        named = sorted(((share, domains.get(uid, uid)) for uid, share in shares.items()), reverse=True)
        click.echo(f"  {text:<8} " + "  ".join(f"{domain} {share:.2f}" for share, domain in named if share >= 0.005))
    roots = {node["state_root"] for node in summary["nodes"]}
    click.echo(f"\n{len(summary['nodes'])} nodes, {len(roots)} state root at height {summary['nodes'][0]['height']}")
    completion = summary["completion"]
    click.echo(f"completion: {completion['prompt']!r} -> {completion['text']!r}")
    click.echo(f"done in {summary['seconds']:.0f} s")
