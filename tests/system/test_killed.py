"""Validators killed again and again, whose databases lose their tails, fork nothing and lose nothing final.

A short run by default. ``MOED_KILL_S=180 pytest tests/system/test_killed.py`` goes on for three minutes;
``MOED_KILL_SEED`` chooses another order of victims, moments and cuts.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from moed.consensus.params import DEVNET
from moed.consensus.state import change
from moed.daemon.store import Store, verify_chain
from support.daemons import Daemon, make_network, running, wait_until

SECONDS = float(os.environ.get("MOED_KILL_S", "0"))
SEED = int(os.environ.get("MOED_KILL_SEED", "1"))
KILLS_AT_LEAST = 3


def blocks_of(daemon: Daemon, start: int) -> dict[int, tuple[str, str]]:
    """Hash and state root of the blocks that a node has from ``start`` on, by height."""
    answer = daemon.client.get(f"/v1/chain?start={start}&limit=200")
    return {block["height"]: (block["hash"], block["state_root"]) for block in answer["blocks"]}


def cut_tail(daemon: Daemon, generator: random.Random) -> int:
    """Cut a dead node's write-ahead log of the database at a random byte; returns how many went."""
    log = daemon.home.database.with_name(daemon.home.database.name + "-wal")
    size = log.stat().st_size if log.exists() else 0
    if size == 0:
        return 0
    kept = generator.randrange(size)
    with log.open("r+b") as file:
        file.truncate(kept)
    return size - kept


def kill_and_restart(
    network: list[Daemon], generator: random.Random, finals: dict[int, tuple[str, str]], kills: int
) -> None:
    """Kill one node a block or two after the last time, note what the others have, and bring it back."""
    victim = generator.choice(network)
    rest = [daemon for daemon in network if daemon is not victim]
    witness = generator.choice(rest)
    status = wait_until("a status of the victim", victim.status)
    victim.wait_height(status["height"] + generator.randint(1, 2))
    note(finals, blocks_of(victim, max(1, status["height"])))
    victim.kill()
    lost = cut_tail(victim, generator) if kills % 2 else 0
    print(f"killed {victim.home.folder.name}, cut {lost} bytes")
    seen = wait_until("a status of a witness", witness.status)["height"]
    if generator.random() < 0.5:
        witness.wait_height(seen + 2)  # three of four decide without it
    victim.start()
    victim.wait_ready()
    victim.wait_height(seen)
    wait_until("the victim to say that it is with the others", lambda: (victim.status() or {}).get("synced"))


def note(finals: dict[int, tuple[str, str]], found: dict[int, tuple[str, str]]) -> None:
    """Every block that anybody ever showed as final stays the one of its height."""
    for height, block in found.items():
        assert finals.setdefault(height, block) == block, f"block {height} was another one before"


@pytest.mark.slow
def test_kills_and_cuts_fork_nothing_and_lose_nothing(tmp_path: Path) -> None:
    """Four validators; each kill is SIGKILL, every other one followed by a cut of the database's write-ahead log."""
    generator = random.Random(SEED)
    params = change(DEVNET, block_interval_ms=300)
    network = make_network(tmp_path, (30 * 10**9, 25 * 10**9, 25 * 10**9, 20 * 10**9), params=params)
    finals: dict[int, tuple[str, str]] = {}
    with running(*network):
        for daemon in network:
            daemon.wait_ready()
        ends = time.monotonic() + SECONDS
        kills = 0
        while kills < KILLS_AT_LEAST or time.monotonic() < ends:
            kill_and_restart(network, generator, finals, kills)
            kills += 1
        top = max(wait_until("a status", daemon.status)["height"] for daemon in network) + 2
        for daemon in network:
            daemon.wait_height(top)
        for daemon in network:
            start = 1
            while start <= top:
                note(finals, blocks_of(daemon, start))
                start += 200
        genesis = network[0].home.load_genesis()
    assert set(range(1, top + 1)) <= set(finals)
    for daemon in network:
        with Store(daemon.home.database, genesis) as store:
            assert verify_chain(store).height >= top
        assert "chain.equivocation" not in daemon.log.read_text()
    print(f"{kills} kills, {top} blocks, one chain")
