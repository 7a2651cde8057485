"""`moed service install|uninstall|status`: arguments to `service`, lines for people."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .plain_errors import plain_errors

PATH = click.Path(path_type=Path)


@click.group()
def service() -> None:
    """Run moed as a systemd service.

    \b
    sudo moed service install
    moed service status
    """


@service.command()
@click.option("--python", type=PATH, help="Interpreter of its environment; else this one, or the system's.")
@click.option("--package", help="What pip installs: a folder, a file or a name; else what runs now.")
@click.option("--borrow", type=PATH, help="Folder of installed packages to use as they are, for a machine offline.")
@click.option("--gpu/--no-gpu", default=None, help="Open the NVIDIA devices to it; else where there are some.")
@click.option("--start/--no-start", default=True, show_default=True, help="Enable it and start it.")
@plain_errors
def install(python: Path | None, package: str | None, borrow: Path | None, gpu: bool | None, start: bool) -> None:
    """Install or upgrade: user, environment under /opt/moed, home under /var/lib/moed, unit, commands, completion.

    \b
    sudo moed service install
    """
    from . import service as work

    source = work.default_source()
    source = work.Source(python or source.python, package or source.package, borrow)
    has_gpu = Path("/dev/nvidiactl").exists() if gpu is None else gpu
    for line in work.install(source, has_gpu=has_gpu, starts=start):
        click.echo(line)


@service.command()
@click.option("--purge", is_flag=True, help="Remove the home too, with the KEY in it, and the user.")
@plain_errors
def uninstall(purge: bool) -> None:
    """Stop it and remove what install made; the home and its key stay.

    \b
    sudo moed service uninstall
    """
    from . import service as work

    for line in work.uninstall(purges=purge):
        click.echo(line)


@service.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@plain_errors
def status(as_json: bool) -> None:
    """Whether it is installed, and how it runs.

    \b
    moed service status
    """
    from . import service as work
    from . import tables

    found = work.status()
    if as_json:
        click.echo(json.dumps(found))
        return
    tables.show([{name.replace("_", " "): tables.plain_word(value) for name, value in found.items()}])
