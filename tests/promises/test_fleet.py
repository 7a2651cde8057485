"""The promise of a fleet: many devices of one operator, by one command, against a real daemon and its chain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from moed.consensus.transactions import sign_consent
from moed.daemon.ctl import moectl
from moed.daemon.home import Home
from moed.daemon.keystore import load_identity
from moed.protocol.identity import Identity
from support.daemons import make_network, run_moed, running

DEVICES = 20


def register(home: Path, fleet: Path) -> tuple[int, dict[str, Any]]:
    """Exit code and answer of the one command."""
    result = CliRunner().invoke(moectl, ["--home", str(home), "fleet", "register", str(fleet), "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_a4_one_operator_registers_a_fleet_at_once(tmp_path: Path) -> None:
    """Twenty devices and more by one command: each gets a uid of the operator's; one without its own consent and one of
    somebody else's cost the others nothing; and the same command again pays for nobody twice."""
    operator, machine = make_network(tmp_path, (100,), others=1)
    owner = load_identity(operator.home.key).public_key
    network_id = Home(operator.home.folder).load_genesis().network_id
    said = run_moed("keys", "consent", "--home", str(machine.home.folder), "--owner", owner.hex(), "--line")
    assert said.returncode == 0, said.stderr
    devices = [Identity(bytes([number]) * 32) for number in range(1, DEVICES)]
    forged = Identity(b"\xfe" * 32)
    lines = [
        f"{one.public_key.hex()} {sign_consent(one, network_id, owner).hex()} rack {n}" for n, one in enumerate(devices)
    ]
    lines.insert(3, f"{forged.public_key.hex()} {sign_consent(devices[0], network_id, owner).hex()} forged")
    fleet = tmp_path / "fleet.txt"
    fleet.write_text("# racks\n" + said.stdout + "\n".join(lines) + "\n")
    with running(operator):
        operator.wait_ready()
        code, answer = register(operator.home.folder, fleet)
        rows = {row["public_key"]: row for row in answer["devices"]}
        assert (code, answer["registered"], answer["refused"]) == (1, DEVICES, 1)
        assert rows[forged.public_key.hex()]["result"] == "refused"
        assert len({row["uid"] for row in rows.values() if row["uid"] is not None}) == DEVICES
        for key in (load_identity(machine.home.key).public_key, devices[-1].public_key):
            account = operator.client.get("/v1/account", {"key": key.hex()})
            assert (account["owner"], account["uid"]) == (owner.hex(), rows[key.hex()]["uid"])
        nonce = operator.client.get("/v1/account")["nonce"]
        fleet.write_text("\n".join(line for line in fleet.read_text().splitlines() if "forged" not in line))
        code, again = register(operator.home.folder, fleet)
        assert (code, again["already"], again["registered"]) == (0, DEVICES, 0)
        assert operator.client.get("/v1/account")["nonce"] == nonce
        here = operator.client.get("/v1/capacity", {"owner": owner.hex()})
        assert {node["owner"] for node in here["nodes"]} <= {owner.hex()}
        assert operator.client.get("/v1/capacity", {"owner": forged.public_key.hex()})["nodes"] == []
