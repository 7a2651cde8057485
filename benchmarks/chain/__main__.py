"""Measures the chain: ``python -m benchmarks.chain [--json] [--only WORD] [--seconds S] [--accounts N]``.

Finality is the time from the stamp in a block's header, which its proposer takes when it begins to build it, until the
block is final *and on disk*, at every node; all are `moed run` processes on one machine with one clock. The pause
between blocks is not in it. A block that took more than one round is counted in a row of its own and is in no time: a
later proposer stamped it anew. Transactions a second are those in final blocks while a generator, one more process,
keeps pools full; it starts when the first block with any is final. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec
import structlog
import trio

from benchmarks.report import Row, Spread, print_report
from moed.consensus.params import DEVNET

from . import local
from .load import Generator, Load, senders, sign_all
from .validators import Validators

COMETBFT = "CometBFT 1.0 (published, 175 validators of 200 nodes)"
COMETBFT_PER_S = 400.0
KILOBYTE_MEMO = 780
"""With it a signed transfer is 1,024 bytes long, give or take a few."""
SYNC_BLOCKS = 2_000
WARM_UP_BLOCKS = 5


def finality_rows(folder: Path, count: int, seconds: float, target_ms: float | None) -> list[Row]:
    """The times to finality in a network of ``count`` validators that has nothing else to do."""
    network = Validators(folder, count)
    with network.running():
        blocks = WARM_UP_BLOCKS + int(seconds)
        network.wait(0, lambda status: status["height"] >= blocks, timeout_s=60 + 4 * seconds)
    samples = sorted(
        float(row["after_ms"])
        for number in range(count)
        for row in network.finals(number)
        if row["height"] > WARM_UP_BLOCKS and row["round"] == 0
    )
    later = sum(row["round"] > 0 for row in network.finals(0))
    median = Spread.of(samples).median
    target = f"< {target_ms:g}" if target_ms is not None else None
    p99 = samples[int(0.99 * (len(samples) - 1))]
    return [
        Row(
            f"finality_p50_{count}_validators",
            "ms",
            median,
            samples[0],
            samples[-1],
            target=target,
            met=median < target_ms if target_ms is not None else None,
        ),
        Row(f"finality_p99_{count}_validators", "ms", p99, p99, p99),
        Row(f"blocks_in_later_rounds_{count}_validators", "blocks", later, later, later),
    ]


def load_row(folder: Path, name: str, seconds: float, memo_bytes: int, target_per_s: float) -> Row:
    """Transactions a second to finality with four validators."""
    # the default bounds of a block, every quarter of a second: what is measured is the nodes, and not the pause
    params = msgspec.structs.replace(DEVNET, block_interval_ms=250)
    network = Validators(folder, 4, params=params, accounts=senders())
    bodies = sign_all(network.genesis.network_id, int(seconds * 3 * target_per_s), memo_bytes)
    gc.freeze()
    with network.running():
        network.wait(0, lambda status: status["height"] >= 2 and status["peers"] >= 3)
        load: Load = trio.run(Generator(network.genesis.network_id, network.addresses, bodies).run, seconds)
    per_s = load.final / load.seconds
    return Row(
        name,
        f"transactions of {len(bodies[0])} bytes/s",
        per_s,
        per_s,
        per_s,
        anchor=COMETBFT if memo_bytes else None,
        anchor_value=COMETBFT_PER_S if memo_bytes else None,
        ratio=per_s / COMETBFT_PER_S if memo_bytes else None,
        target=f"> {target_per_s:g}",
        met=per_s > target_per_s,
    )


def sync_rows(folder: Path, blocks: int) -> list[Row]:
    """A follower that was away for many blocks of a second each: how fast one full node brings it up to date."""
    network = Validators(folder, 4, followers=1)
    local.write_chain(network.homes[0].database, network.genesis, network.identities[:4], blocks, 0)
    with network.running([0]), network.running([4]):
        network.wait(4, lambda status: status["height"] >= blocks, timeout_s=600)
    finals = network.finals(4)
    began, ended = (_seconds(row) for row in (finals[0], finals[-1]))
    per_s = (len(finals) - 1) / max(1e-3, ended - began)
    interval_s = network.genesis.params.block_interval_ms / 1000
    times = per_s * interval_s
    return [Row("sync_times_real_time", "x", times, times, times, target="> 20", met=times > 20)]


def _seconds(row: dict[str, object]) -> float:
    return datetime.fromisoformat(str(row["timestamp"]).replace("Z", "+00:00")).timestamp()


def execution_rows(folder: Path, blocks: int) -> list[Row]:
    """Execution from the genesis, and what a block takes on disk, without transfers and with a hundred."""
    rows = []
    genesis = local.make_genesis()
    for transfers, count in ((0, blocks), (100, blocks // 10)):
        path = folder / f"chain-{transfers}.db"
        size = local.write_chain(path, genesis, local.VALIDATORS, count, transfers)
        rates = [local.executed_again_per_s(path, genesis) for _ in range(3)]
        spread = Spread.of(rates)
        what = f"{transfers}_transfers"
        rows.append(Row(f"executed_again_{what}", "blocks/s", spread.median, spread.min, spread.max))
        rows.append(Row(f"disk_bytes_{what}", "bytes/block", size / count, size / count, size / count))
    return rows


def root_rows(accounts: Sequence[int]) -> list[Row]:
    """The state root after a block that touches a thousand accounts."""
    rows = []
    first: float | None = None
    for count in accounts:
        spread = Spread.of(local.state_root_ms(count, 7))
        first = first or spread.median
        ratio = spread.median / first
        rows.append(
            Row(
                f"state_root_{count}_accounts",
                "ms",
                spread.median,
                spread.min,
                spread.max,
                anchor=f"{accounts[0]} accounts",
                anchor_value=first,
                ratio=ratio,
                target="ratio < 2" if count != accounts[0] else None,
                met=ratio < 2 if count != accounts[0] else None,
            )
        )
    return rows


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chain", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", choices=("finality", "load", "sync", "execution", "root"), help="measure this alone")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each network is watched")
    parser.add_argument("--accounts", type=int, default=1_000_000, help="of the larger state")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only in (None, "finality"):
            rows += finality_rows(folder / "four", 4, options.seconds, 60.0)
            rows += finality_rows(folder / "seven", 7, options.seconds, None)
        if options.only in (None, "load"):
            rows.append(load_row(folder / "transfers", "transfers", options.seconds, 0, 1_000.0))
            rows.append(load_row(folder / "kilobytes", "kilobyte_transactions", options.seconds, KILOBYTE_MEMO, 400.0))
        if options.only in (None, "sync"):
            rows += sync_rows(folder / "sync", SYNC_BLOCKS)
        if options.only in (None, "execution"):
            rows += execution_rows(folder, SYNC_BLOCKS // 2)
        if options.only in (None, "root"):
            rows += root_rows((10_000, options.accounts))
    print_report("chain", rows, as_json=options.json)
    sys.exit(any(row.met is False for row in rows))


if __name__ == "__main__":
    main()
