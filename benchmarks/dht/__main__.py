"""Measures discovery: ``python -m benchmarks.dht [--json] [--anchor-python PYTHON] [--only PART ...]``.

Parts: loopback (8, 16, 32 nodes on real sockets, beside hivemind where the extra ``anchors`` is installed, or in the
environment of ``--anchor-python``), virtual (100 and 1,000 nodes, 4,000 with ``--nightly``, beside the stock kademlia
package), dead, lying, flood, churn.

On virtual time the network is in memory with seeded delays (mean round trip 100 ms), the clock is trio's MockClock,
and the same seed gives the same run. Getters hold no copy themselves, on either side. On loopback all our nodes share
one process, and so one core: each figure is the whole network's work for that call, signatures of all nodes included.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import structlog
import trio
from trio.testing import MockClock

from benchmarks.report import Row, Spread, print_report
from benchmarks.rpc.anchor import has_hivemind
from moed.daemon.network.library import open_loop
from moed.daemon.simulation.datagrams import VirtualNetwork
from moed.daemon.simulation.schedule import same_schedule

from . import hivemind_peers, loopback, ours, stock
from .ours import Gets
from .results import Loopback

PARTS = ("loopback", "virtual", "dead", "lying", "flood", "churn")
SIZES = (8, 16, 32)
SEED = 1
REPEATS = 5
KEYS, WARMUP = 100, 20
GETS = 500
HIVEMIND = "hivemind 1.1.12"
STOCK = "kademlia, stock"


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dht", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="run these parts")
    parser.add_argument(
        "--anchor-python", default=sys.executable, metavar="PYTHON", help="an environment with hivemind"
    )
    parser.add_argument("--nightly", action="store_true", help="4,000 nodes on virtual time as well")
    parser.add_argument("--sizes", nargs="+", type=int, help="other sizes on virtual time")
    parser.add_argument("--hours", type=float, default=6.0, help="virtual hours of churn")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # the stock package tells every lost datagram
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    sizes = options.sizes or ([100, 1000, 4000] if options.nightly else [100, 1000])
    parts: list[tuple[str, Callable[[], list[Row]]]] = [
        *(("loopback", partial(on_loopback, size, options.anchor_python)) for size in SIZES),
        *(("virtual", partial(on_virtual_time, size)) for size in sizes),
        *(("dead", partial(with_dead, size)) for size in sizes),
        *(("lying", partial(with_liars, size)) for size in sizes),
        ("flood", beside_a_flood),
        ("churn", partial(under_churn, options.hours)),
    ]
    rows: list[Row] = []
    for part, measure in parts:
        if part in options.only:
            measured = measure()
            sys.stderr.writelines(f"  {row.id}: {row.value:.4g} {row.unit}\n" for row in measured)
            rows += measured
    print_report("dht", rows, as_json=options.json)


def on_loopback(size: int, anchor_python: str) -> list[Row]:
    """Both take turns within each repeat, so that a busy machine disturbs both alike."""
    mine: list[Loopback] = []
    theirs: list[Loopback] = []
    anchor = hivemind_peers.Anchor(anchor_python, size) if has_hivemind(anchor_python) else None
    try:
        for _ in range(REPEATS):
            mine.append(trio.run(loopback.measure, size, KEYS, WARMUP))
            if anchor is not None:
                theirs.append(anchor.measure(KEYS, WARMUP))
    finally:
        if anchor is not None:
            anchor.close()
    factor = 1.0 if size <= 8 else 0.5
    measures: list[tuple[str, str, Callable[[Loopback], float], float | None]] = [
        ("store p50", "ms", lambda each: percentile(each.store_ms, 0.5), factor),
        ("store p99", "ms", lambda each: percentile(each.store_ms, 0.99), None),
        ("get p50", "ms", lambda each: percentile(each.get_ms, 0.5), factor),
        ("get p99", "ms", lambda each: percentile(each.get_ms, 0.99), None),
        ("join p50", "ms", lambda each: percentile(each.join_ms, 0.5), None),
        ("failed", "calls", lambda each: float(each.failed), None),
    ]
    rows = [
        compared(f"{name}, {size} nodes", unit, [of(each) for each in mine], [of(each) for each in theirs], most)
        for name, unit, of, most in measures
    ]
    growth, whole = loopback.memory_mib(size)
    anchor_mib = Spread.of([each.memory_mib for each in theirs]).median if theirs else None
    name = f"memory per node, {size} nodes"
    rows.append(bounded(f"{name}, growth", "MiB", [growth], "< 8", lambda value: value < 8, HIVEMIND, anchor_mib))
    rows.append(bounded(f"{name}, whole process", "MiB", [whole], "< 8", lambda value: value < 8, HIVEMIND, anchor_mib))
    return rows


def compared(
    name: str, unit: str, mine: Sequence[float], theirs: Sequence[float], most: float | None, anchor: str = HIVEMIND
) -> Row:
    """A row whose target is a multiple of the anchor's number."""
    spread = Spread.of(mine)
    other = Spread.of(theirs).median if theirs else None
    ratio = spread.median / other if other else None
    return Row(
        id=name,
        unit=unit,
        value=spread.median,
        min=spread.min,
        max=spread.max,
        anchor=anchor,
        anchor_value=other,
        ratio=ratio,
        target=None if most is None else f"<= {most:g} x {anchor}",
        met=None if most is None or ratio is None else ratio <= most,
    )


def bounded(
    name: str,
    unit: str,
    values: Sequence[float],
    target: str,
    is_met: Callable[[float], bool],
    anchor: str | None = None,
    anchor_value: float | None = None,
) -> Row:
    """A row whose target is a number."""
    spread = Spread.of(values)
    ratio = spread.median / anchor_value if anchor_value else None
    return Row(
        name, unit, spread.median, spread.min, spread.max, anchor, anchor_value, ratio, target, is_met(spread.median)
    )


def run_virtual(play: Callable[[], Any]) -> None:
    """Run an async function on virtual time, the same way each time."""
    with same_schedule(SEED):
        trio.run(play, clock=MockClock(autojump_threshold=0))


def our_gets(size: int, *, dead: float = 0.0, lying: float = 0.0) -> Gets:
    out: list[Gets] = []
    run_virtual(partial(ours.scene, SEED, size, ours.play_gets(GETS, out, dead=dead, lying=lying)))
    return out[0]


def stock_gets(size: int, *, dead: float = 0.0) -> Gets:
    out: list[Gets] = []

    async def play() -> None:
        network = VirtualNetwork(SEED)
        async with open_loop(), trio.open_nursery() as nursery:
            nursery.start_soon(network.run)
            nodes = stock.StockNodes(network, SEED)
            await nodes.grow(size)
            owners = await nodes.publish()
            await trio.sleep(30)
            gone = set(nodes.rng.sample(range(size), round(dead * size)))
            for number in gone:
                nodes.kill(number)
            out.append(await nodes.get([each for each in range(size) if each not in gone], owners, GETS))
            nursery.cancel_scope.cancel()

    run_virtual(play)
    return out[0]


def times_ms(gets: Gets, share: float) -> list[float]:
    return [percentile(gets.times_s, share) * 1000]


def on_virtual_time(size: int) -> list[Row]:
    mine, theirs = our_gets(size), stock_gets(size)
    p50 = times_ms(mine, 0.5)
    return [
        compared(f"get p50, {size} virtual nodes", "ms", p50, times_ms(theirs, 0.5), 1.0, STOCK),
        bounded(f"get p50, {size} virtual nodes, alone", "ms", p50, "<= 350", lambda value: value <= 350),
        compared(f"get p99, {size} virtual nodes", "ms", times_ms(mine, 0.99), times_ms(theirs, 0.99), 1.0, STOCK),
        compared(f"hops to the first value, {size} virtual nodes", "hops", *mean_hops(mine, theirs), None, STOCK),
        bounded(
            f"found, {size} virtual nodes", "share", [mine.success], ">= 1", lambda v: v >= 1, STOCK, theirs.success
        ),
    ]


def mean_hops(*runs: Gets) -> tuple[list[float], list[float]]:
    mine, theirs = ([sum(each.hops) / len(each.hops)] for each in runs)
    return mine, theirs


def with_dead(size: int) -> list[Row]:
    mine, theirs = our_gets(size, dead=0.3), stock_gets(size, dead=0.3)
    name = f"{size} virtual nodes, 30 % dead"
    return [
        compared(f"get p50, {name}", "ms", times_ms(mine, 0.5), times_ms(theirs, 0.5), None, STOCK),
        bounded(
            f"get p99, {name}", "ms", times_ms(mine, 0.99), "<= 1500", lambda v: v <= 1500, STOCK,
            times_ms(theirs, 0.99)[0],
        ),
        bounded(f"found, {name}", "share", [mine.success], "> 0.99", lambda v: v > 0.99, STOCK, theirs.success),
    ]  # fmt: skip


def with_liars(size: int) -> list[Row]:
    mine = our_gets(size, lying=0.2)
    name = f"{size} virtual nodes, 20 % lying"
    return [
        compared(f"get p50, {name}", "ms", times_ms(mine, 0.5), [], None, STOCK),
        compared(f"get p99, {name}", "ms", times_ms(mine, 0.99), [], None, STOCK),
        bounded(f"found, {name}", "share", [mine.success], "> 0.99", lambda v: v > 0.99),
        bounded(f"forged records accepted, {name}", "records", [float(mine.forged)], "0", lambda v: v == 0),
    ]


def beside_a_flood() -> list[Row]:
    """Within each repeat the flood is measured between two quiet times, so that a busy machine disturbs both alike."""
    turns = [trio.run(loopback.look_ups_beside_a_flood, loopback.FLOOD_S) for _ in range(REPEATS)]
    flooded, quiet = [turn[0] for turn in turns], [turn[1] for turn in turns]
    lost = [1 - with_it / without for with_it, without in zip(flooded, quiet, strict=True)]
    return [
        compared("look-ups of others, flooded", "per s", flooded, quiet, None, "the same, the flood beside them"),
        bounded("speed lost to 20,000 datagrams/s", "share", lost, "< 0.2", lambda value: value < 0.2),
    ]


def under_churn(hours: float) -> list[Row]:
    out: list[Gets] = []

    async def play(nodes: ours.Nodes) -> None:
        await nodes.publish(nodes.all)
        out.append(await ours.churn(nodes, hours=hours, every_s=600, gets_a_round=50))

    run_virtual(partial(ours.scene, SEED, 200, play))
    name = f"200 virtual nodes, half replaced every 10 min, {hours:g} h"
    return [
        bounded(f"found, {name}", "share", [out[0].success], "> 0.99", lambda value: value > 0.99),
        compared(f"get p50, {name}", "ms", times_ms(out[0], 0.5), [], None, STOCK),
        compared(f"get p99, {name}", "ms", times_ms(out[0], 0.99), [], None, STOCK),
    ]


if __name__ == "__main__":
    main()
