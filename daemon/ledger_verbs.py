"""`moectl account|tx|stake|register`: what an account holds, and transactions, signed here or elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .ctl_target import emit, output_options
from .errors import DaemonRefused

if TYPE_CHECKING:
    from .ctl import Target

    ParamType = click.ParamType[int]
else:
    ParamType = click.ParamType  # older versions of click have no type argument

FILE = click.Path(dir_okay=False, path_type=Path)
CREDIT_DIGITS = 9
WAIT_S = 120.0
POLL_S = 0.2


class CreditAmount(ParamType):
    """Credits as people write them, exactly: 1.5 is 1500000000 units."""

    name = "credits"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Units of the ledger."""
        try:
            units = Decimal(str(value)).scaleb(CREDIT_DIGITS)
        except InvalidOperation:
            self.fail(f"{value!r} is no number of credits", param, ctx)
        if not units.is_finite() or units != units.to_integral_value() or not 0 < units < 1 << 63:
            self.fail(f"{value!r} is no amount: more than 0, and at most nine decimals", param, ctx)
        return int(units)


CREDITS = CreditAmount()


def add_ledger_verbs(group: click.Group) -> None:
    """Give `moectl` the verbs of this file."""
    for verb in (account, tx, stake, register):
        group.add_command(verb)


def _json_option(verb: Callable[..., None]) -> Callable[..., None]:
    return click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer as JSON.")(verb)


def _wait_option(verb: Callable[..., None]) -> Callable[..., None]:
    return click.option("--wait", is_flag=True, help="Return when it is final.")(verb)


@click.command(epilog="Example: moectl account")
@click.argument("key", required=False)
@output_options
@click.pass_obj
def account(target: Target, key: str | None, as_json: bool) -> None:
    """What KEY holds, by default this node's key: balance, stake, and what leaves."""
    emit(target.client().get("/v1/account", {"key": key}), as_json, "account")


@click.group(epilog="Example: moectl tx send transfer to=8a88… amount=1.5 --wait")
def tx() -> None:
    """Transactions: built here, signed by this node or elsewhere, sent.

    Fields are NAME=VALUE, keys in hexadecimal, amounts in credits. Kinds: transfer (to amount memo), add_stake (amount)
    delegate (to amount), undelegate (pool amount), withdraw (pool), set_take (uid take_ppm), register (owner),
    sponsor (key consent expires), rotate_key (uid key consent expires), set_owner (uid owner).
    """


@tx.command(epilog="Example: moectl tx build transfer to=8a88… amount=1.5 --sender 77ab… --out transfer.json")
@click.argument("kind")
@click.argument("fields", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--sender", required=True, metavar="KEY", help="Whose transaction it is, and who will sign it.")
@click.option("--out", type=FILE, required=True, help="Where it goes.")
@click.pass_obj
def build(target: Target, kind: str, fields: tuple[str, ...], sender: str, out: Path) -> None:
    """Write an unsigned transaction to a file, for `moed keys sign`."""
    from .transaction_files import body_from_fields, unsigned, write_file

    body = body_from_fields(kind, _fields(fields))
    answer = target.client().get("/v1/account", {"key": sender})
    file = unsigned(bytes.fromhex(answer["network"]), bytes.fromhex(sender), answer["next_nonce"], body)
    write_file(out, file)
    click.echo(f"{kind} number {file.nonce} of {sender[:12]} is in {out}; sign it with: moed keys sign {out}")


@tx.command(epilog="Example: moectl tx submit transfer.json --wait")
@click.argument("file", type=FILE)
@_wait_option
@_json_option
@click.pass_obj
def submit(target: Target, file: Path, wait: bool, as_json: bool) -> None:
    """Send a signed transaction."""
    from moed.protocol.codec import encode_record

    from .transaction_files import read_file, signed_transaction

    transaction = signed_transaction(read_file(file))
    sent = target.client().post("/v1/tx/submit", {"transaction": encode_record(transaction).hex()})
    _say_sent(target, sent, wait=wait, as_json=as_json)


@tx.command(epilog="Example: moectl tx send transfer to=8a88… amount=1.5 --wait")
@click.argument("kind")
@click.argument("fields", nargs=-1, metavar="[NAME=VALUE]...")
@_wait_option
@_json_option
@click.pass_obj
def send(target: Target, kind: str, fields: tuple[str, ...], wait: bool, as_json: bool) -> None:
    """Sign a transaction with the node's own work key and send it."""
    _send(target, kind, _fields(fields), wait=wait, as_json=as_json)


@click.command(epilog="Example: moectl register --wait")
@click.option("--owner", metavar="KEY", help="The key that is paid and may replace this node's; else the node's own.")
@_wait_option
@_json_option
@click.pass_obj
def register(target: Target, owner: str | None, wait: bool, as_json: bool) -> None:
    """Take a uid for this node."""
    _send(target, "register", {} if owner is None else {"owner": owner}, wait=wait, as_json=as_json)


@click.group(epilog="Example: moectl stake add 10 --to 8a88… --wait")
def stake() -> None:
    """Put this node's credit behind a key, let it leave, and take it back."""


@stake.command(epilog="Example: moectl stake add 10 --wait")
@click.argument("amount", type=CREDITS)
@click.option("--to", metavar="KEY", help="Behind whose key; else this node's own.")
@_wait_option
@_json_option
@click.pass_obj
def add(target: Target, amount: int, to: str | None, wait: bool, as_json: bool) -> None:
    """Bond AMOUNT credits; they stay this node's, and earn a share of the dividends of that key."""
    fields: dict[str, Any] = {"amount": amount} if to is None else {"amount": amount, "to": to}
    _send(target, "add_stake" if to is None else "delegate", fields, wait=wait, as_json=as_json)


@stake.command(epilog="Example: moectl stake remove 10 --pool 8a88… --wait")
@click.argument("amount", type=CREDITS, required=False)
@click.option("--pool", metavar="KEY", help="From which pool, as `moectl account` names it; else this node's own.")
@_wait_option
@_json_option
@click.pass_obj
def remove(target: Target, amount: int | None, pool: str | None, wait: bool, as_json: bool) -> None:
    """Let AMOUNT credits, or all, leave a pool. They can be withdrawn after the unbonding time."""
    named = pool or target.client().get("/v1/account")["pool"]
    fields: dict[str, Any] = {"pool": named} if amount is None else {"pool": named, "amount": amount}
    _send(target, "undelegate", fields, wait=wait, as_json=as_json)


@stake.command(epilog="Example: moectl stake withdraw --wait")
@click.option("--pool", metavar="KEY", help="From which pool; else this node's own.")
@_wait_option
@_json_option
@click.pass_obj
def withdraw(target: Target, pool: str | None, wait: bool, as_json: bool) -> None:
    """Take what has left a pool for long enough into the balance."""
    named = pool or target.client().get("/v1/account")["pool"]
    _send(target, "withdraw", {"pool": named}, wait=wait, as_json=as_json)


def _send(target: Target, kind: str, fields: dict[str, Any], *, wait: bool, as_json: bool) -> None:
    sent = target.client().post("/v1/tx/send", {"kind": kind, "fields": fields})
    _say_sent(target, sent, wait=wait, as_json=as_json)


def _say_sent(target: Target, sent: dict[str, Any], *, wait: bool, as_json: bool) -> None:
    """Print what was sent; with ``wait`` when it is final. Raises `DaemonRefused` if that takes too long."""
    if wait:
        deadline = time.monotonic() + WAIT_S
        while target.client().get("/v1/account", {"key": sent["sender"]})["nonce"] <= sent["nonce"]:
            if time.monotonic() > deadline:
                raise DaemonRefused(
                    f"transaction {sent['id'][:12]} is not final after {WAIT_S:.0f} s",
                    "see `moectl chain` and the log; it may still come",
                    code="not_final",
                    status=504,
                )
            time.sleep(POLL_S)
    if as_json:
        click.echo(json.dumps(sent | {"final": wait}))
    else:
        click.echo(f"transaction {sent['id']} is {'final' if wait else 'sent'}")


def _fields(given: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE words as fields: amounts in units, numbers as numbers, the rest as it is."""
    fields: dict[str, Any] = {}
    for word in given:
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise click.UsageError(f"{word!r} is not NAME=VALUE")
        if name == "amount":
            fields[name] = CREDITS.convert(value, None, None)
        elif name == "memo":
            fields[name] = value.encode().hex()
        else:
            fields[name] = int(value) if name in ("uid", "take_ppm", "expires") and value.isdecimal() else value
    return fields
