"""`moectl account|tx|stake|register` against a daemon's socket: what is sent, what is refused, what people read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from moed.consensus.state import read_account
from moed.daemon.client import Client
from moed.daemon.ctl import moectl
from moed.daemon.errors import ChainFileError, DaemonRefused
from moed.daemon.fleet_verbs import read_fleet
from moed.daemon.transaction_files import read_file, sign_file, write_file
from support.chains import key
from support.control_plane import SmallNode, daemon_thread

CREDIT = 10**9


@pytest.fixture
def node(tmp_path: Path) -> Iterator[SmallNode]:
    """A daemon whose work key is ``key(3)``; a transaction is final in a block of its own."""
    with daemon_thread(tmp_path / "moed.sock") as running:
        yield running


def ask(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(moectl, ["--home", str(tmp_path), *arguments])


def say(tmp_path: Path, *arguments: str) -> str:
    """What a verb prints that must succeed."""
    result = ask(tmp_path, *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def own_account(tmp_path: Path) -> dict[str, object]:
    answer: dict[str, object] = json.loads(say(tmp_path, "account", "--json"))
    return answer


def test_an_account_is_shown_to_people_and_programs(node: SmallNode, tmp_path: Path) -> None:
    """The same numbers, in units and in credits."""
    held = read_account(node.head.state, key(3).public_key)
    found = own_account(tmp_path)
    assert (found["balance"], found["next_nonce"], found["uid"]) == (held.balance, 5, None)
    told = say(tmp_path, "account")
    assert f"{held.balance / CREDIT:.9f}".rstrip("0") in told
    whole = say(tmp_path, "account", key(1).public_key.hex(), "-o", "wide")
    assert key(1).public_key.hex() in whole.partition("LEAVING")[2]
    other = json.loads(say(tmp_path, "account", key(1).public_key.hex(), "--json"))
    assert (other["uid"], other["stake_behind"], other["positions"][0]["stake"]) == (0, 60, 60)
    with pytest.raises(DaemonRefused):
        Client(tmp_path / "moed.sock").get("/v1/account", {"key": "77"})


def test_stake_goes_in_and_out_and_a_uid_is_taken(node: SmallNode, tmp_path: Path) -> None:
    """Each verb is one transaction of the node's own key, and waits until it is final."""
    say(tmp_path, "stake", "add", "0.1", "--to", key(1).public_key.hex(), "--wait")
    assert node.head.validators.members[0].power in (60, 40)  # seats change with the epoch
    say(tmp_path, "stake", "add", "0.05", "--wait")
    say(tmp_path, "stake", "remove", "0.02", "--wait")
    sent = json.loads(say(tmp_path, "register", "--wait", "--json"))
    assert sent["final"] is True
    found = json.loads(say(tmp_path, "account", "--json"))
    stakes = {row["uid"]: row["stake"] for row in found["positions"]}
    assert stakes == {0: CREDIT // 10, 2: CREDIT // 20 - CREDIT // 50}
    leaving = [part for row in found["positions"] for part in row["leaving"]]
    assert [part["units"] for part in leaving] == [CREDIT // 50]
    assert "from block" in say(tmp_path, "account")


def test_a_refusal_is_told_with_both_values(node: SmallNode, tmp_path: Path) -> None:
    """The ledger's own words reach whoever asked, and nothing is sent."""
    height = node.head.height
    for arguments in (
        ("tx", "send", "transfer", f"to={key(9).public_key.hex()}", "amount=5"),
        ("stake", "withdraw"),
        ("tx", "send", "set_take", "uid=0", "take_ppm=1"),
    ):
        with pytest.raises(DaemonRefused) as refused:
            CliRunner().invoke(moectl, ["--home", str(tmp_path), *arguments], catch_exceptions=False)
        assert "expected" in refused.value.message
    assert node.head.height == height


def test_a_transaction_is_built_signed_elsewhere_and_submitted(node: SmallNode, tmp_path: Path) -> None:
    """The node needs no secret of the sender's."""
    path = tmp_path / "tx.json"
    to = key(9).public_key.hex()
    build = ("tx", "build", "transfer", f"to={to}", "amount=0.25", "memo=rent", "--out", str(path))
    say(tmp_path, *build, "--sender", key(3).public_key.hex())
    before = read_account(node.head.state, key(9).public_key).balance
    with pytest.raises(Exception, match="not signed"):
        CliRunner().invoke(moectl, ["--home", str(tmp_path), "tx", "submit", str(path)], catch_exceptions=False)
    write_file(path, sign_file(read_file(path), key(3)))
    assert "is final" in say(tmp_path, "tx", "submit", str(path), "--wait")
    assert read_account(node.head.state, key(9).public_key).balance == before + CREDIT // 4
    with pytest.raises(DaemonRefused) as again:  # it applies once
        CliRunner().invoke(moectl, ["--home", str(tmp_path), "tx", "submit", str(path)], catch_exceptions=False)
    assert again.value.code == "wrong_nonce"


@pytest.mark.parametrize(
    "arguments", [("stake", "add", "5", "--to", "zz"), ("tx", "send", "transfer", "to=zz", "amount=1")]
)
def test_a_key_that_is_none_is_named(node: SmallNode, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """With its field, and not in Python's words."""
    with pytest.raises(DaemonRefused, match="to=zz is not in hexadecimal digits"):
        CliRunner().invoke(moectl, ["--home", str(tmp_path), *arguments], catch_exceptions=False)


def test_a_fleets_file_that_is_missing_is_named_once(tmp_path: Path) -> None:
    """The complaint is the system's reason, not the name again."""
    with pytest.raises(ChainFileError) as caught:
        read_fleet(tmp_path / "none.txt")
    assert caught.value.message == f"cannot read {tmp_path}/none.txt: No such file or directory"


@pytest.mark.parametrize("amount", ["0", "-1", "1e-10", "nan", "inf", "1e30", "much"])
def test_amounts_that_are_none_are_wrong_usage(amount: str, tmp_path: Path) -> None:
    """They are refused before any daemon is asked."""
    result = ask(tmp_path, "stake", "add", "--", amount)
    assert result.exit_code == 2  # click's own; `moectl` turns it into 3
    assert "amount" in result.output or "number" in result.output
