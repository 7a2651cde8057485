"""`moectl fleet`: many devices of one owner, put to work by one command and looked at together."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import EXIT_FAILED, ChainFileError, DaemonRefused

if TYPE_CHECKING:
    from .client import Client
    from .ctl import Target

FILE = click.Path(dir_okay=False, path_type=Path)
MAX_DEVICES = 4096
IN_FLIGHT = 16
"""Registrations that wait for a block at one time: a pool keeps only so many of one sender, and a block takes few."""
STALLED_S = 120.0
POLL_S = 0.2


@click.group(epilog="Example: moectl fleet register fleet.txt")
def fleet() -> None:
    """A whole fleet of devices under one owner, which is this node's key."""


@fleet.command(epilog="Example: moectl fleet register fleet.txt --json")
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def register(target: Target, file: Path, as_json: bool) -> None:
    """Take a uid for every device in FILE; this node pays, and owns them.

    Each line is the work key of a device and its consent, as `moed keys consent --line --owner KEY` prints it on that
    device; what follows is its name. What is registered already is left as it is, so a command that was broken off is
    simply given again. Returns when all that could be sent is final; exits with 1 if any device was refused.
    """
    devices = read_fleet(file)
    rows = list(_register_all(target.client(), devices))
    counts = {name: sum(row["result"] == name for row in rows) for name in ("registered", "already", "refused")}
    if as_json:
        click.echo(json.dumps({"devices": rows, **counts}, indent=2))
    else:
        from . import tables

        cells = [
            [row["name"], row["public_key"][:12], "-" if row["uid"] is None else str(row["uid"]), row["result"],
             row["reason"] or ""] for row in rows
        ]  # fmt: skip
        tables.show([tables.Table("Devices", ("name", "key", ">uid", "result", "why"), cells)])
        click.echo(", ".join(f"{count} {name}" for name, count in counts.items()))
    if counts["refused"]:
        raise click.exceptions.Exit(EXIT_FAILED)


def read_fleet(file: Path) -> list[dict[str, str]]:
    """The devices of a file: public key, consent, name; each key once. Raises `ChainFileError` naming the line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ChainFileError(
            f"cannot read {file}: {getattr(error, 'strerror', error)}", "name a text file with a device on each line"
        ) from error
    devices: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split(maxsplit=2)
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2 or not _is_hex(words[0], 32) or not _is_hex(words[1], 64):
            raise ChainFileError(
                f"{file}, line {number} is no device",
                "write a public key, a consent and a name, as `moed keys consent --line` prints them",
            )
        name = words[2].strip() if len(words) == 3 else words[0][:12]
        devices.setdefault(words[0], {"public_key": words[0], "consent": words[1], "name": name})
    if not 1 <= len(devices) <= MAX_DEVICES:
        raise ChainFileError(f"{file} names {len(devices)} devices", f"name 1 to {MAX_DEVICES}")
    return list(devices.values())


def _is_hex(word: str, length_bytes: int) -> bool:
    return len(word) == 2 * length_bytes and all(digit in "0123456789abcdef" for digit in word)


def _register_all(client: Client, devices: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """One result for each device in order. A refusal of one is its own affair."""
    owner = client.get("/v1/account")["public_key"]
    results: dict[str, dict[str, Any]] = {}
    waiting: dict[str, dict[str, Any]] = {}  # by public key, what was sent for it
    for device in devices:
        key = device["public_key"]
        held = client.get("/v1/account", {"key": key})
        if held["uid"] is not None:
            results[key] = _already(held, owner)
            continue
        try:
            fields = {"key": key, "consent": device["consent"]}
            waiting[key] = client.post("/v1/tx/send", {"kind": "sponsor", "fields": fields})
        except DaemonRefused as error:
            results[key] = {"uid": None, "result": "refused", "reason": error.message}
        if len(waiting) >= IN_FLIGHT:
            results |= _settled(client, waiting, room=IN_FLIGHT // 2)
    results |= _settled(client, waiting, room=0)
    for device in devices:
        yield {"name": device["name"], "public_key": device["public_key"], **results[device["public_key"]]}


def _already(held: dict[str, Any], owner: str) -> dict[str, Any]:
    if held["owner"] == owner:
        return {"uid": held["uid"], "result": "already", "reason": None}
    return {"uid": held["uid"], "result": "refused", "reason": f"it works for {held['owner'][:12]}"}


def _settled(client: Client, waiting: dict[str, dict[str, Any]], *, room: int) -> dict[str, dict[str, Any]]:
    """Wait until at most ``room`` are left ``waiting``; results of those that are not any more."""
    found: dict[str, dict[str, Any]] = {}
    give_up_s = time.monotonic() + STALLED_S
    while len(waiting) > room:
        nonce = client.get("/v1/account")["nonce"]
        for key, sent in list(waiting.items()):
            if sent["nonce"] >= nonce:
                continue
            uid = client.get("/v1/account", {"key": key})["uid"]
            refused = {"uid": None, "result": "refused", "reason": "another transaction took its place"}
            found[key] = refused if uid is None else {"uid": uid, "result": "registered", "reason": None}
            del waiting[key]
            give_up_s = time.monotonic() + STALLED_S
        if len(waiting) > room and time.monotonic() > give_up_s:
            for key in list(waiting):
                reason = f"not final after {STALLED_S:.0f} s; it may still come: give the command again"
                found[key] = {"uid": None, "result": "refused", "reason": reason}
                del waiting[key]
        if len(waiting) > room:
            time.sleep(POLL_S)
    return found
