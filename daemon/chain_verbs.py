"""`moed chain`: check the chain database of a home, move it, make it shorter, and prove what it holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from .errors import ChainFileError, ConfigError, StoreFailed
from .plain_errors import plain_errors

if TYPE_CHECKING:
    from .store import Store

HOME = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


def home_option(verb: Callable[..., None]) -> Callable[..., None]:
    """The home whose chain is meant."""
    return click.option("--home", type=HOME, required=True, help="Folder of the node.")(verb)


def json_option(verb: Callable[..., None]) -> Callable[..., None]:
    """JSON for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(verb)


@click.group()
def chain() -> None:
    """Look after the chain database of a node.

    \b
    moed chain verify --home ~/.moed
    """


@contextmanager
def _opened(home: Path, *, must_exist: bool = True) -> Iterator[Store]:
    from .home import Home
    from .store import Store

    place = Home(home)
    genesis = place.load_genesis()
    if must_exist and not place.database.exists():
        raise StoreFailed(f"there is no chain in {place.database} yet", f"start the node first: moed run --home {home}")
    with Store(place.database, genesis) as store:
        yield store


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the home as a daemon does, so that none runs while its chain is changed."""
    from .home import Home
    from .keystore import hold_identity

    with hold_identity(Home(home).key):
        yield


def _say(found: dict[str, Any], words: str, *, as_json: bool) -> None:
    click.echo(json.dumps(found) if as_json else words)


@chain.command()
@home_option
@json_option
@plain_errors
def verify(home: Path, as_json: bool) -> None:
    """Execute every block again and compare with what is stored; it may be running.

    \b
    moed chain verify --home ~/.moed
    """
    from .store import verify_chain

    with _opened(home) as store:
        first = store.first_height
        head = verify_chain(store)
        headers = sum(1 for _ in store.headers())
    found = {"height": head.height, "state_root": head.state_root.hex(), "first_height": first, "valid": True}
    pruned = f"{headers} headers follow each other, " if headers > 1 else "the chain begins at a header, " * headers
    words = (
        f"{pruned}{head.height - first + 1} blocks executed again, every commit and root holds; "
        f"state root {head.state_root.hex()}"
    )
    _say(found, words, as_json=as_json)


@chain.command("export")
@click.argument("file", type=FILE)
@home_option
@json_option
@plain_errors
def export_(file: Path, home: Path, as_json: bool) -> None:
    """Write every block with its commit to FILE; the node may be running.

    \b
    moed chain export blocks.moed --home ~/.moed
    """
    from .chain_upkeep import export_chain

    with _opened(home) as store:
        moved = export_chain(store, file)
        first = store.first_height
    what = (
        f"{moved.blocks} blocks up to height {moved.height}"
        if moved.blocks
        else f"no block, as none from {first} on is here,"
    )
    _say(asdict(moved), f"{what} written to {file}", as_json=as_json)


@chain.command()
@click.argument("file", type=FILE)
@home_option
@json_option
@plain_errors
def snapshot(file: Path, home: Path, as_json: bool) -> None:
    """Write the state after the last block to FILE, for a home that begins there; the node may be running.

    \b
    moed chain snapshot state.moed --home ~/.moed
    """
    from .snapshot_files import write_snapshot

    with _opened(home) as store:
        height = write_snapshot(store, file)
    _say({"height": height}, f"the state after block {height} written to {file}", as_json=as_json)


@chain.command("import")
@click.argument("file", type=FILE)
@click.option("--validators", "trusted", type=FILE, help="FILE is a snapshot, believed if these signed it.")
@home_option
@json_option
@plain_errors
def import_(file: Path, trusted: Path | None, home: Path, as_json: bool) -> None:
    """Execute the blocks of FILE that come after the last one here, and keep them; the node must be stopped.

    With --validators a new home begins at the snapshot in FILE.

    \b
    moed chain import blocks.moed --home ~/.moed
    moed chain import state.moed --validators validators.json --home ~/.moed
    """
    from .chain_upkeep import import_chain
    from .proof_files import read_validators_file
    from .snapshot_files import begin_at_snapshot

    with _alone(home), _opened(home, must_exist=False) as store:
        if trusted is not None:
            height = begin_at_snapshot(store, file, read_validators_file(trusted).members).height
            _say({"height": height}, f"the chain here begins after block {height}", as_json=as_json)
            return
        moved = import_chain(store, file)
    _say(asdict(moved), f"{moved.blocks} blocks imported, the chain ends at height {moved.height}", as_json=as_json)


@chain.command()
@click.option("--keep", type=click.IntRange(1), required=True, help="How many of the last blocks stay whole.")
@home_option
@json_option
@plain_errors
def prune(keep: int, home: Path, as_json: bool) -> None:
    """Let go of the contents of old blocks; their headers and commits stay. The node must be stopped.

    What goes is executed once more first. A pruned node serves and explains the blocks that it kept.

    \b
    moed chain prune --keep 10000 --home ~/.moed
    """
    from .chain_upkeep import prune_chain

    with _alone(home), _opened(home) as store:
        pruned = prune_chain(store, keep)
    words = (
        f"{pruned.blocks} blocks let go, whole from height {pruned.first_height} on; "
        f"{pruned.bytes_before:,} bytes became {pruned.bytes_after:,}"
    )
    _say(asdict(pruned), words, as_json=as_json)


@chain.command()
@home_option
@plain_errors
def validators(home: Path) -> None:
    """Print who decided the last block, as the JSON that `check-proof` takes.

    Get it from a node that you trust, and again within the network's unbonding time.

    \b
    moed chain validators --home ~/.moed > validators.json
    """
    from .proof_files import validators_file

    with _opened(home) as store:
        click.echo(_as_json(validators_file(store.load_head())))


@chain.command()
@home_option
@plain_errors
def checkpoint(home: Path) -> None:
    """Print the last block of the last epoch, as [chain] checkpoint of another node's configuration takes it.

    Whoever gives it to you is believed. Take it from a node that you trust, within the network's unbonding time.

    \b
    moed chain checkpoint --home ~/.moed
    """
    from moed.consensus.proofs import MAX_PROOF_BYTES, StateProof
    from moed.protocol.codec import decode_record

    with _opened(home) as store:
        step = store.last_step()
        if step is None:
            raise ChainFileError("no end of an epoch is noted here yet", "wait for the next one, with the node running")
    header = decode_record(step, StateProof, max_bytes=MAX_PROOF_BYTES).header
    click.echo(f"{header.height}:{header.hash.hex()}")


@chain.command()
@click.argument("account")
@click.option(
    "--what",
    type=click.Choice(["account", "stake"]),
    default="account",
    show_default=True,
    help="What of ACCOUNT to prove.",
)
@home_option
@plain_errors
def prove(account: str, what: str, home: Path) -> None:
    """Print a proof of what ACCOUNT, a public key in hexadecimal, holds after the last block; or that it holds nothing.

    \b
    moed chain prove 8a88… --home ~/.moed > proof.json
    """
    from moed.consensus.state import account_key, pool_key, pool_of

    from .proof_files import proof_file

    key = public_key(account)
    with _opened(home) as store:
        head = store.load_head()
        name = account_key(key) if what == "account" else pool_key(pool_of(head.state, key))
        click.echo(_as_json(proof_file(head, name)))


@chain.command("check-proof")
@click.argument("file", type=FILE)
@click.option("--validators", "trusted", type=FILE, required=True, help="Who is trusted: `moed chain validators`.")
@json_option
@plain_errors
def check_proof(file: Path, trusted: Path, as_json: bool) -> None:
    """Check a proof with the validator set alone: no home, no chain, no network.

    \b
    moed chain check-proof proof.json --validators validators.json
    """
    from .proof_files import check_files

    found = check_files(file, trusted)
    record = found["record"]
    held = "nothing is there" if record is None else ", ".join(f"{name} {value}" for name, value in record.items())
    words = f"proven by block {found['height']} ({found['block'][:12]}): {held}"
    _say(found, words, as_json=as_json)


def public_key(text: str) -> bytes:
    """The public key that 64 hexadecimal digits name. Raises `ConfigError`."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError(f"{text!r} is no public key", "give 64 hexadecimal digits, as `moed keys show` prints them")
    return key


def _as_json(value: msgspec.Struct) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
