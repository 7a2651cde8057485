"""Discovery among real processes: what `moectl` shows of it, and coming back when the bootstrap is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from moed.daemon.client import Client
from support.daemons import ENVIRONMENT, Daemon, make_network, running, wait_until


def moectl(daemon: Daemon, *arguments: str) -> tuple[int, Any]:
    """The exit code of one `moectl` verb and its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "moed.daemon.ctl", "--home", str(daemon.home.folder), *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT,
    )
    return done.returncode, json.loads(done.stdout)


def contacts(client: Client) -> int:
    return int(client.get("/v1/dht/table")["contacts"])


def test_discovery_is_shown_and_outlives_its_bootstrap(tmp_path: Path) -> None:
    """Records, table, way and reachability by `moectl`; then a node restarts with the one bootstrap dead."""
    bootstrap, other, third = daemons = make_network(tmp_path, (60,), others=2)
    with running(*daemons):
        ids = [daemon.wait_ready()["node_id"] for daemon in daemons]
        wait_until("everybody to meet", lambda: all((one.status() or {}).get("peers") == 2 for one in daemons))
        wait_until("the topic to fill", lambda: len(moectl(third, "dht", "get", "topic:here")[1]["records"]) == 3)
        code, found = moectl(third, "dht", "get", f"peer:{ids[1]}")
        assert code == 0
        assert [record["addresses"] for record in found["records"]] == [[f"127.0.0.1:{other.port}"]]
        code, way = moectl(third, "dht", "lookup", ids[1])
        assert code == 0
        assert way["nearest"][0]["node_id"] == ids[1]
        assert all(step["hop"] >= 1 and step["took_ms"] > 0 for step in way["steps"])
        code, health = moectl(third, "doctor")
        assert (code, health["udp"], health["tcp"], health["dial_votes"]) == (0, True, True, 2)
        assert (health["external_host"], health["is_client"]) == ("127.0.0.1", False)

        third.kill()
        bootstrap.kill()
        third.start()
        third.wait_ready()
        wait_until("the remembered peer to be met again", lambda: contacts(third.client) >= 1)
        wait_until("a session with it", lambda: (third.status() or {}).get("peers") == 1)

        other.kill()
        wait_until("the alarm", lambda: "dht.alone" in third.log.read_text() or None, timeout_s=45)
