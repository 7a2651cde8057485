"""When too much stake is gone the chain stands still, says who is missing, and goes on when they are back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moed.daemon.answer_tables import chain_parts
from support.daemons import make_network, running, wait_until


def test_the_missing_are_named(tmp_path: Path) -> None:
    """Two of four validators die: nothing becomes final, the others name exactly them, and with them back all go on."""
    network = make_network(tmp_path, (30 * 10**9, 30 * 10**9, 20 * 10**9, 20 * 10**9))
    with running(*network):
        ids = [daemon.wait_ready()["node_id"] for daemon in network]
        for daemon in network:
            daemon.wait_height(2)
        for daemon in network[2:]:
            daemon.kill()

        def standstill() -> Any:
            found = network[0].client.get("/v1/chain")
            return found if set(found["next"]["missing"]) == set(ids[2:]) else None

        found = wait_until("the missing to be named", standstill)
        facts = chain_parts(found)[0]
        assert isinstance(facts, dict)
        assert all(node_id[:8] in facts["not heard of"] for node_id in ids[2:])
        stood_at = found["height"]
        still = wait_until(
            "three intervals to go by",
            lambda: (one := network[0].client.get("/v1/chain"))["next"]["since_s"] > 3 and one,
        )
        assert still["height"] == stood_at
        for daemon in network[2:]:
            daemon.start()
        for daemon in network:
            daemon.wait_height(stood_at + 2)
        wait_until("everybody to be synced", lambda: all((daemon.status() or {}).get("synced") for daemon in network))
        assert len({daemon.state_root_at(stood_at + 2) for daemon in network}) == 1
