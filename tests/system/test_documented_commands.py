"""Every command that the pages for operators and developers show is run against a real daemon."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from moed.daemon.cli import moed
from moed.daemon.ctl import moectl
from moed.daemon.man_page import main, man_page
from support.daemons import ENVIRONMENT, ROOT, Daemon, make_network, running

PAGES = ("operator.md", "application.md")
PAGES_OF_A_NETWORK = ("validator.md", "miner.md")
"""What these show needs miners, validators and credit: the tests of the network run it; here it is only read."""
NEEDS_A_MODEL = ("/v1/completions",)
NEEDS_AN_EPOCH = ("why reward",)


def commands(pages: tuple[str, ...]) -> list[str]:
    """Each line of each shell block."""
    return [
        line
        for page in pages
        for block in re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]


def curls_of_the_readme() -> list[str]:
    """What README.md shows of plain HTTP."""
    return re.findall(r"^curl .*$", (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A node of a network of one, with a few blocks."""
    (daemon,) = make_network(tmp_path_factory.mktemp("pages"), (1,))
    with running(daemon):
        daemon.wait_height(2)
        yield daemon


@pytest.mark.parametrize("command", [*commands(PAGES), *curls_of_the_readme()])
def test_a_documented_command_works(daemon: Daemon, command: str, tmp_path: Path) -> None:
    """It exits with 0, or with 1 and words where a lone follower cannot have what is asked for."""
    if command.startswith("curl") and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, module in (("moed", "moed.daemon.cli"), ("moectl", "moed.daemon.ctl")):
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (tools / name).chmod(0o755)
    environment = {
        **ENVIRONMENT, "PATH": f"{tools}:{ENVIRONMENT['PATH']}", "MOED_SOCKET": str(daemon.home.folder / "moed.sock"),
    }  # fmt: skip
    line = command.replace("~/.moed", str(daemon.home.folder))
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    if any(word in command for word in NEEDS_AN_EPOCH):
        assert done.returncode in (0, 1), done.stderr
        assert done.stdout + done.stderr
    elif any(word in command for word in NEEDS_A_MODEL):
        assert '"code":"no_validator"' in done.stdout
    else:
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", commands(PAGES_OF_A_NETWORK))
def test_a_documented_command_is_one(command: str) -> None:
    """Its verb, options and arguments are known to the command line."""
    name, *given = shlex.split(command.replace("HOST:PORT", "example.org:4700"))
    group: click.Command = {"moed": moed, "moectl": moectl}[name]
    context = group.make_context(name, given)
    while isinstance(group, click.Group):
        _, found, given = group.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        group = found
        context = group.make_context(str(group.name), given, parent=context)


@pytest.mark.parametrize(("group", "name"), [(moed, "moed"), (moectl, "moectl")])
def test_the_manual_has_every_verb(group: click.Group, name: str) -> None:
    """With its options; no line of text is taken for a command of roff."""
    page = man_page(group, name)
    for verb in group.commands:
        assert f".SS {name} {verb}".replace("-", "\\-") in page
    assert ".B \\-h, \\-\\-help" in page
    macros = {line.split()[0] for line in page.splitlines() if line.startswith((".", "'"))}
    assert page.isascii()
    assert macros <= {".TH", ".SH", ".SS", ".PP", ".TP", ".B", ".nf", ".fi"}


@pytest.mark.parametrize("arguments", [[], ["mode"], ["moed", "moectl"]])
def test_a_manual_of_nothing_is_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It says what it takes."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 3
    assert "man_page moed|moectl" in capsys.readouterr().err
