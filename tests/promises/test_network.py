"""Promises about a network of real daemons, each looked at from outside, through the sockets of its nodes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.daemons import wait_until

if TYPE_CHECKING:
    from .conftest import Network


def test_b3_each_miner_is_one_model_with_its_own_key(network: Network) -> None:
    """Four miners: four keys, four uids, one expert each, and no two with the same weights on disk."""
    statuses = [network.client(name).get("/v1/status") for name in network.miners]
    assert len({status["public_key"] for status in statuses}) == len(network.miners) == 4
    assert len({status["uid"] for status in statuses}) == 4
    experts = network.client("validator-0").get("/v1/experts")
    assert sorted(row["uid"] for row in experts) == sorted(status["uid"] for status in statuses)
    checkpoints = [path.read_bytes() for path in network.folder.glob("miner-*/experts/*.ckpt")]
    assert len(set(checkpoints)) == len(checkpoints)


def test_b5_a_miner_earns_credit_for_answers(network: Network) -> None:
    """Every miner started with nothing and holds credit now, minted for it by consensus."""
    keys = {account["public_key"] for account in network.genesis["accounts"]}
    for name in network.miners:
        assert network.client(name).get("/v1/status")["public_key"] not in keys
    assert all(row["balance"] > 0 for row in network.rankings["miners"])


def test_b6_the_trained_gate_routes_each_domain_to_its_miner(network: Network) -> None:
    """For every domain that has a miner, the gate's largest weight goes to that miner, and it is most of it."""
    share = network.losses["share"]
    for row in network.rankings["miners"]:
        weights = share[row["domain"]]
        assert max(weights, key=weights.__getitem__) == str(row["uid"]), (row["domain"], weights)
        assert weights[str(row["uid"])] > 0.5, (row["domain"], weights)


def test_b7_the_mixture_beats_its_best_member(network: Network) -> None:
    """On held-out text the routed mixture loses fewer bits per byte than the best single expert and the average."""
    losses = network.losses
    assert losses["mixture"] < losses["best_single"]
    assert losses["mixture"] < losses["uniform_average"]


def test_b13_rankings_merge_into_one_consensus(network: Network) -> None:
    """Two validators wrote weights of their own; every node made the same one reward of each miner out of both."""
    validators = [str(row["uid"]) for row in network.rankings["validators"]]
    miners = network.rankings["miners"]
    first, second = ([row["weight_by_validator"][uid] for row in miners] for uid in validators)
    assert first != second
    for name in network.names:
        for row in miners:
            query = {"uid": row["uid"], "epoch": network.rankings["epoch"]}
            reward = network.client(name).get("/v1/why/reward", query)
            assert reward["emission"] == row["emission"]
            assert {str(rating["uid"]) for rating in reward["ratings"]} == set(validators)
    assert sum(row["incentive"] for row in miners) == pytest.approx(1, abs=1e-3)


def test_b14_a_higher_rank_earns_more(network: Network) -> None:
    """Emission follows the incentive that consensus gave, share for share."""
    miners = network.rankings["miners"]
    total = sum(row["emission"] for row in miners)
    for row in miners:
        assert row["emission"] / total == pytest.approx(row["incentive"], abs=1e-4)
    assert len({row["emission"] for row in miners}) > 1


def test_b14_a_reward_can_be_taken_apart(network: Network) -> None:
    """Any node says who rated a miner, what was clipped and paid, and what it would be without each validator."""
    epoch = network.rankings["epoch"]
    for row in network.rankings["miners"]:
        reward = network.client("miner-0").get("/v1/why/reward", {"uid": row["uid"], "epoch": epoch})
        assert reward["emission"] == row["emission"]
        assert sum(rating["rank"] for rating in reward["ratings"]) == pytest.approx(reward["rank"], abs=1e-8)
        assert {rating["uid"] for rating in reward["ratings"]} <= {one["uid"] for one in network.rankings["validators"]}
        assert all(rating["clipped"] <= rating["weight"] for rating in reward["ratings"])


def test_b17_miners_train_while_they_serve(network: Network) -> None:
    """Between two looks each miner has both answered more rows and made more training steps; it has learned."""

    def work(name: str) -> dict[str, float]:
        (own,) = [row for row in network.client(name).get("/v1/experts") if "training_steps" in row]
        return {key: own[key] for key in ("rows_served", "training_steps", "training_loss_bits")}

    before = {name: work(name) for name in network.miners}

    def moved() -> bool:
        after = {name: work(name) for name in network.miners}
        return all(
            after[name]["rows_served"] > before[name]["rows_served"]
            and after[name]["training_steps"] > before[name]["training_steps"]
            for name in network.miners
        )

    wait_until("every miner to serve and train", moved)
    # a byte is 8 bits: what a model loses that has learned nothing
    assert all(one["training_loss_bits"] < 4 for one in before.values())


def test_b21_joining_is_permissionless(network: Network) -> None:
    """The genesis names the two validators and nobody else, and every miner is in the metagraph."""
    assert len(network.genesis["accounts"]) == 2
    assert all(network.client(name).get("/v1/status")["uid"] is not None for name in network.miners)


def test_t2_the_pool_reports_its_capacity(network: Network) -> None:
    """Any node can sum up what all others measured of themselves."""
    capacity = network.client("miner-0").get("/v1/capacity")
    devices = [device for node in capacity["nodes"] for device in node["devices"]]
    assert len(capacity["nodes"]) == 6
    assert capacity["total"]["matmul_flops_per_s"] == sum(device["matmul_flops_per_s"] for device in devices) > 0
    assert capacity["total"]["memory_bytes"] == sum(device["total_bytes"] for device in devices)


def test_t3_anyone_contributes_and_benefits(network: Network) -> None:
    """A miner that nobody named in the genesis serves rows to others, is paid for it, and uses the pool itself."""
    for name in network.miners[:2]:
        client = network.client(name)
        status = client.get("/v1/status")
        assert status["public_key"] not in json.dumps(network.genesis)
        assert any(row.get("rows_served", 0) > 0 for row in client.get("/v1/experts"))
        (ranked,) = [row for row in network.rankings["miners"] if row["node_id"] == status["node_id"]]
        assert ranked["balance"] > 0
        answer = client.post("/v1/complete", {"prompt": "The import statement ", "max_bytes": 8, "temperature": 0.0})
        assert answer["text"]
        assert set(answer["experts"]) - {str(status["uid"])}, "only its own model answered"


def test_b1_no_server_is_needed_for_a_query(network: Network) -> None:
    """Every node has sessions with all others; with the bootstrap node killed, the other validator still answers."""
    for name in network.names:
        assert network.client(name).get("/v1/status")["peers"] == 5
    pid = int((network.folder / "validator-0" / "moed.pid").read_text())
    assert b"validator-0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    os.kill(pid, signal.SIGKILL)
    wait_until("the others to notice", lambda: network.client("validator-1").get("/v1/status")["peers"] == 4)
    question = {"prompt": "The import statement ", "max_bytes": 8, "temperature": 0.0}
    for asked in ("validator-1", "miner-3"):
        answer = network.client(asked).post("/v1/complete", question)
        assert answer["text"]
        assert sum(answer["experts"].values()) == pytest.approx(1, abs=1e-3)
