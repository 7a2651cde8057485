"""Promises about money and membership: a stranger joins the six, uses them, is paid or not, and steers by stake."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from moed.consensus.transactions import Delegate
from moed.daemon.ctl import moectl
from moed.daemon.errors import DaemonUnreachable
from moed.daemon.home import Home
from moed.daemon.ports import free_ports
from support.chains import key
from support.daemons import Daemon, run_moed, running, wait_until
from support.epoch_life import CREDIT as LIFE_CREDIT
from support.epoch_life import EpochLife

if TYPE_CHECKING:
    from .conftest import Network

CREDIT = 10**9


@pytest.fixture(scope="module")
def stranger(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A node that nobody knew: its own new key, the genesis file, and the address of one miner."""
    port = tomllib.loads((network.folder / "miner-0" / "config.toml").read_text())["node"]["port"]
    home = Home(tmp_path_factory.mktemp("stranger") / "home")
    made = run_moed(
        *("init", "--home", str(home.folder), "--port", str(free_ports(1)[0])),
        *("--genesis", str(network.folder / "miner-0" / "genesis.json"), "--bootstrap", f"127.0.0.1:{port}"),
    )
    assert made.returncode == 0, made.stderr
    daemon = Daemon(home)
    fallen = [Daemon(Home(network.folder / name)) for name in network.names if not is_up(network, name)]
    with running(daemon, *fallen):  # a test before this one may have killed a validator: it comes back as it would
        daemon.wait_ready()
        stand = [one.wait_ready()["height"] for one in fallen]
        daemon.wait_height(max([*stand, network.client("validator-1").get("/v1/status")["height"]]) + 1)
        yield daemon
        assert daemon.stop() == 0


def is_up(network: Network, name: str) -> bool:
    """Whether a node of the network answers."""
    try:
        network.client(name).get("/v1/status")
    except DaemonUnreachable:
        return False
    return True


def moectl_says(home: Path, *arguments: str) -> dict[str, Any]:
    """The JSON that a `moectl` verb prints."""
    done = CliRunner().invoke(moectl, ["--home", str(home), *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    answer: dict[str, Any] = json.loads(done.output)
    return answer


def account(daemon: Daemon, public_key: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = daemon.client.get("/v1/account", {"key": public_key})
    return found


def test_b21_nobody_is_asked_before_joining(network: Network, stranger: Daemon) -> None:
    """A fresh key that holds no credit takes a uid by its own transaction, and every node of the network lists it."""
    before = account(stranger)
    assert (before["balance"], before["uid"], before["registration_price"]) == (0, None, 0)
    moectl_says(stranger.home.folder, "register", "--wait")
    uid = account(stranger)["uid"]
    assert uid == len(network.names)
    for name in network.names:
        client = network.client(name)
        wait_until(f"{name} to know uid {uid}", partial(_lists, client, uid, before["node_id"]))


def _lists(client: Any, uid: int, node_id: str) -> bool:
    return any((row["uid"], row["node_id"]) == (uid, node_id) for row in client.get("/v1/rankings")["miners"])


def test_b5_who_serves_is_paid_and_who_does_not_is_not(network: Network, stranger: Daemon) -> None:
    """Over one epoch every miner's balance rises; the stranger, which has a uid and serves nothing, gets nothing."""
    client = network.client("validator-1")
    keys = {name: network.client(name).get("/v1/status")["public_key"] for name in network.miners}
    before = {name: account(stranger, one)["balance"] for name, one in keys.items()}
    epoch = client.get("/v1/status")["epoch"]
    wait_until("the next epoch", lambda: client.get("/v1/status")["epoch"] > epoch, 60.0)
    height = client.get("/v1/status")["height"]
    stranger.wait_height(height)
    earned = {name: account(stranger, one)["balance"] - before[name] for name, one in keys.items()}
    assert min(earned.values()) > 0, earned
    assert account(stranger)["balance"] == 0


def test_g1_offered_found_used_and_paid_without_an_operator(network: Network, stranger: Daemon) -> None:
    """A miner's processor is in the pool and its owner was paid; a stranger that came in through a miner uses it.

    The genesis names two keys, by their stake and nothing else; neither was asked, and no node is special.
    """
    miner = network.client("miner-1").get("/v1/status")
    pool = stranger.client.get("/v1/capacity")["nodes"]
    (offered,) = [node for node in pool if node["node_id"] == miner["node_id"]]
    assert offered["devices"][0]["matmul_flops_per_s"] > 0
    assert account(stranger, miner["public_key"])["balance"] > 0
    assert all(set(one) >= {"public_key", "stake"} for one in network.genesis["accounts"])
    assert miner["public_key"] not in {one["public_key"] for one in network.genesis["accounts"]}
    question = {"prompt": "The import statement ", "max_bytes": 8, "temperature": 0.0}
    answer = stranger.client.post("/v1/complete", question)
    assert answer["text"]
    served = {row["uid"] for row in stranger.client.get("/v1/experts")}
    assert {int(uid) for uid in answer["experts"]} <= served


def test_b22_who_stakes_uses_the_network_and_adds_to_a_validators_say(network: Network, stranger: Daemon) -> None:
    """A user gets credit from a miner, puts it behind a validator, is answered, and may let it leave again."""
    to = account(stranger)["public_key"]
    moectl_says(network.folder / "miner-0", "tx", "send", "transfer", f"to={to}", "amount=1.5", "--wait")
    wait_until("the credit", lambda: account(stranger)["balance"] == CREDIT * 3 // 2)
    chosen = min(stranger.client.get("/v1/rankings")["validators"], key=lambda row: row["stake"])
    assert chosen["take"] == 0.1
    before = account(stranger, chosen["public_key"])["stake_behind"]
    moectl_says(stranger.home.folder, "stake", "add", "1.25", "--to", chosen["public_key"], "--wait")
    held = account(stranger)
    assert [(row["uid"], row["stake"]) for row in held["positions"]] == [
        (chosen["uid"], pytest.approx(1.25 * CREDIT, abs=2))
    ]
    wait_until(
        "every node to count it",
        lambda: all(
            network.client(name).get("/v1/account", {"key": chosen["public_key"]})["stake_behind"] >= before + CREDIT
            for name in network.names
        ),
    )
    answer = stranger.client.post("/v1/complete", {"prompt": "for name in ", "max_bytes": 8, "temperature": 0.0})
    assert answer["text"]
    moectl_says(stranger.home.folder, "stake", "remove", "--pool", held["positions"][0]["pool"], "--wait")
    (left,) = account(stranger)["positions"]
    assert sum(part["units"] for part in left["leaving"]) >= 1.25 * CREDIT - 2


def test_b22_delegated_stake_decides_which_work_is_paid() -> None:
    """Two validators want different work; a user's credit behind the smaller one turns the pay to what that wants."""
    prose, code, user = 2, 3, 4
    life = EpochLife((60, 40), 2, balances=(100,))
    wanted = {0: {prose: 1}, 1: {code: 1}}
    life.epoch(wanted)
    metagraph = life.epoch(wanted)
    assert metagraph[prose].incentive_emission > 0 == metagraph[code].incentive_emission
    metagraph = life.epoch(wanted, (user, Delegate(to=key(2).public_key, amount=90 * LIFE_CREDIT)))
    assert metagraph[code].incentive_emission > 0 == metagraph[prose].incentive_emission
