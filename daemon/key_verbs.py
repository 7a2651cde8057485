"""`moed keys`: work keys and owner keys: make, show, replace, copy; and sign what was built elsewhere."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path

import click

from .errors import KeyFileError
from .plain_errors import plain_errors

HOME = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
MAX_PASSPHRASE_BYTES = 4096


@click.group()
def keys() -> None:
    """Look after keys.

    The work key lies in the home, signs for the node and is replaceable. An owner key lies sealed in a file that need
    not be on any machine of the network: it holds the money, and replaces work keys.

    \b
    moed keys new owner.key
    moed keys show --home ~/.moed
    """


def home_option(verb: Callable[..., None]) -> Callable[..., None]:
    """The home whose work key is meant."""
    return click.option("--home", type=HOME, required=True, help="Folder of the node.")(verb)


def passphrase_option(verb: Callable[..., None]) -> Callable[..., None]:
    """Where the passphrase comes from."""
    return click.option(
        "--passphrase-file", type=FILE, help="Read the passphrase from the first line of a file; else it is asked for."
    )(verb)


def _passphrase(file: Path | None, *, is_new: bool) -> str:
    if file is None:
        asked: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=is_new, err=True)
        return asked
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_PASSPHRASE_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(
            f"cannot read {file}: {getattr(error, 'strerror', error)}", "name a text file with the passphrase"
        ) from error
    return text.splitlines()[0] if text else ""


@keys.command()
@click.argument("file", type=FILE)
@passphrase_option
@plain_errors
def new(file: Path, passphrase_file: Path | None) -> None:
    """Draw an owner key and seal it in FILE. Keep a copy of the file; without it nobody can bring the key back.

    \b
    moed keys new owner.key
    """
    from .sealed_keys import create_sealed

    sealed = create_sealed(file, _passphrase(passphrase_file, is_new=True))
    click.echo(f"owner key {sealed.public_key} in {file}")


@keys.command()
@click.argument("file", type=FILE, required=False)
@click.option("--home", type=HOME, help="Folder of a node, in place of FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@plain_errors
def show(file: Path | None, home: Path | None, as_json: bool) -> None:
    """Show the public key of a sealed FILE, or of a home; no passphrase is needed.

    \b
    moed keys show --home ~/.moed
    """
    from moed.protocol.identity import node_id_of

    from .home import Home
    from .keystore import load_identity
    from .sealed_keys import read_sealed

    if (file is None) == (home is None):
        raise click.UsageError("give a FILE or a --home")
    public = bytes.fromhex(read_sealed(file).public_key) if file else b""
    if home is not None:
        public = load_identity(Home(home).key).public_key
    found = {"public_key": public.hex(), "node_id": node_id_of(public).hex()}
    click.echo(json.dumps(found) if as_json else f"public key {found['public_key']}\nnode id    {found['node_id']}")


@keys.command()
@click.argument("file", type=FILE)
@home_option
@passphrase_option
@plain_errors
def backup(file: Path, home: Path, passphrase_file: Path | None) -> None:
    """Seal a copy of a home's work key in FILE.

    \b
    moed keys backup work-copy.key --home ~/.moed
    """
    from .home import Home
    from .keystore import load_seed
    from .sealed_keys import seal, write_sealed

    sealed = seal(load_seed(Home(home).key), _passphrase(passphrase_file, is_new=True))
    write_sealed(file, sealed)
    click.echo(f"a copy of work key {sealed.public_key[:12]} is sealed in {file}")


@keys.command()
@click.argument("file", type=FILE)
@home_option
@passphrase_option
@plain_errors
def restore(file: Path, home: Path, passphrase_file: Path | None) -> None:
    """Write the work key of a backup into a home that has none.

    Never run two nodes with one key. And if this node signed blocks after the backup of its home was made, wait a few
    blocks before you start it: what it signed then is not in the copy, and signing twice is slashed.

    \b
    moed keys restore work-copy.key --home ~/.moed
    """
    from .home import Home
    from .keystore import write_key_file
    from .sealed_keys import read_sealed, unseal

    sealed = read_sealed(file)
    write_key_file(Home(home).key, unseal(sealed, _passphrase(passphrase_file, is_new=False)))
    click.echo(f"work key {sealed.public_key[:12]} restored to {Home(home).key}")


@keys.command()
@click.argument("file", type=FILE)
@click.option("--key", "key_file", type=FILE, required=True, help="The sealed key of the sender.")
@click.option("--yes", is_flag=True, help="Do not ask before signing.")
@passphrase_option
@plain_errors
def sign(file: Path, key_file: Path, yes: bool, passphrase_file: Path | None) -> None:
    """Show what the transaction in FILE says, and sign it there. Needs no chain and no network.

    \b
    moed keys sign transfer.json --key owner.key
    """
    from moed.protocol.identity import Identity

    from .sealed_keys import read_sealed, unseal
    from .transaction_files import body_of, describe, read_file, sign_file, write_file

    given, sealed = read_file(file), read_sealed(key_file)
    for name, value in describe(body_of(given)).items():
        click.echo(f"{name:>16}  {value}")
    click.echo(f"{'network':>16}  {given.network_id[:12]}\n{'nonce':>16}  {given.nonce}")
    if not yes:
        click.confirm("Sign this?", abort=True, err=True)
    seed = unseal(sealed, _passphrase(passphrase_file, is_new=False))
    write_file(file, sign_file(given, Identity(seed)))
    click.echo(f"signed; send it with: moectl tx submit {file}")


@keys.command()
@home_option
@click.option("--owner", required=True, metavar="KEY", help="The public key of who may put this node to work.")
@click.option("--line", is_flag=True, help="Print key, consent and this machine's name, for `moectl fleet register`.")
@plain_errors
def consent(home: Path, owner: str, line: bool) -> None:
    """Print the consent of a home's work key to work for OWNER, for `moectl tx build sponsor`.

    \b
    moed keys consent --home ~/.moed --owner 8a88…
    moed keys consent --home ~/.moed --owner 8a88… --line >> fleet.txt
    """
    from moed.consensus.transactions import sign_consent

    from .chain_verbs import public_key
    from .home import Home
    from .keystore import load_identity

    place = Home(home)
    identity = load_identity(place.key)
    signed = sign_consent(identity, place.load_genesis().network_id, public_key(owner)).hex()
    click.echo(f"{identity.public_key.hex()} {signed} {platform.node()}".strip() if line else signed)


@keys.command()
@home_option
@click.option("--out", type=FILE, default=Path("rotate.json"), show_default=True, help="Where the transaction goes.")
@click.option("--expires", type=click.IntRange(0), default=0, help="Block from which on the new key may not act.")
@click.option("--finish", is_flag=True, help="Put the new key in its place, once the chain has the transaction.")
@plain_errors
def rotate(home: Path, out: Path, expires: int, finish: bool) -> None:
    """Replace a home's work key; uid, rank, bonds and stake stay.

    Draws the new key and writes the transaction that its owner has to sign and send. When that is final, and for a
    validator the epoch has ended, a running node goes on with the new key by itself. For a stopped one run this again
    with --finish.

    \b
    moed keys rotate --home ~/.moed --out rotate.json
    moed keys sign rotate.json --key owner.key
    moectl tx submit rotate.json --wait
    moed keys rotate --home ~/.moed --finish
    """
    from .key_rotation import begin_rotation, finish_rotation

    if finish:
        click.echo(f"{home} now works with key {finish_rotation(home).hex()}; the old one is kept beside it")
        return
    begun = begin_rotation(home, out, expires=expires)
    click.echo(f"new work key {begun.key.hex()} for uid {begun.uid}; the transaction is in {out}")
    if begun.is_signed:
        click.echo(f"it is signed by the present work key, which owns the uid; send it: moectl tx submit {out} --wait")
    else:
        click.echo(f"owner {begun.owner.hex()} signs it: moed keys sign {out} --key OWNER.key")
