"""Measures tensor calls: ``python -m benchmarks.rpc [--json] [--anchor-python PYTHON] [--only WORD] [--profile]``.

Two processes on loopback, encrypted, float32. Where hivemind 1.1.12 is installed (the extra ``anchors``, or the
environment of ``--anchor-python``) it runs the same workloads, the two taking turns repeat by repeat. It uses as many
threads of torch as it likes, moed ``--threads``; in all processes idle threads of torch's sleep instead of spinning.
Both learn by Adam from each backward pass; hivemind runs the layer again for it, moed takes up the forward call before
it where that was the same. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import torch

from benchmarks.report import Row, Spread, print_report
from moed.models.remote import Patience, RemoteExpert
from moed.models.remote_mixture import RemoteMixture

from . import bare_cipher
from .anchor import Anchor, has_hivemind
from .moed_side import (
    GRID,
    Caller,
    ServerProcess,
    concurrent_calls,
    grid_samples,
    kill_one,
    large_calls,
    learning_rate,
    local_learning_rate,
    mixed_sizes,
    module_calls,
    open_transport,
    proportional_mib,
    small_calls,
    storm,
)
from .time_shares import profile

ANCHOR = "hivemind 1.1.12"
PATIENT = Patience(deadline_s=120.0)  # a benchmark measures slowness, it does not give up on it


@dataclass(slots=True)
class Run:
    """What the workloads share."""

    repeats: int
    threads: int
    many: int
    anchor: Anchor | None
    server: ServerProcess
    caller: Caller
    rows: list[Row] = field(default_factory=list)

    def turns(
        self, ours: Callable[[], Any], theirs: Callable[[Anchor], Any] | None = None
    ) -> tuple[list[Any], list[Any]]:
        """Both sides' repeats, taking turns."""
        mine, other = [], []
        for _ in range(self.repeats):
            mine.append(ours())
            if self.anchor is not None and theirs is not None:
                other.append(theirs(self.anchor))
        return mine, other

    def compare(
        self, name: str, unit: str, mine: Sequence[float], other: Sequence[float], target: str, *, anchor: str = ANCHOR
    ) -> None:
        """One row; the target is "at least" or "at most" a ratio."""
        spread = Spread.of(mine)
        anchor_value = Spread.of(other).median if other else None
        ratio = spread.median / anchor_value if anchor_value else None
        word, _, bound = target.rpartition(" ")
        met = None if ratio is None else (ratio >= float(bound) if word == "at least" else ratio <= float(bound))
        self.rows.append(
            Row(name, unit, spread.median, spread.min, spread.max, anchor, anchor_value, ratio, target, met)
        )

    def tell(
        self, name: str, unit: str, mine: Sequence[float], target: str | None = None, met: bool | None = None
    ) -> None:
        """One row without an anchor."""
        spread = Spread.of(mine)
        self.rows.append(Row(name, unit, spread.median, spread.min, spread.max, target=target, met=met))


def measure_small(run: Run) -> None:
    calls = 2000  # twenty of them are over the p99
    mine, other = run.turns(
        lambda: run.caller.run(partial(small_calls, calls=calls)),
        lambda anchor: anchor.measure("small_calls", calls=400),
    )
    run.compare("small-p50", "ms", [one.p50_ms for one in mine], [one[0] for one in other], "at most 0.1")
    run.compare("small-p99", "ms", [one.p99_ms for one in mine], [one[1] for one in other], "at most 0.1")
    with open_transport(run.server) as transport:
        expert = RemoteExpert(transport, "identity")
        through_module = [module_calls(expert, calls).p50_ms for _ in range(run.repeats)]
    run.compare("small-p50-module", "ms", through_module, [one[0] for one in other], "at most 0.1")


def measure_large(run: Run) -> None:
    for mib, calls, theirs, target in (
        (1, 60, 10, "at least 12"),
        (8, 16, 3, "at least 10"),
        (32, 5, 1, "at least 10"),
    ):
        mine, other = run.turns(
            partial(run.caller.run, partial(large_calls, mib=mib, calls=calls)),
            partial(Anchor.measure, what="large_calls", mib=mib, calls=theirs),
        )
        rates = [one["mb_per_s"] for one in other if one["mb_per_s"] is not None]
        run.compare(f"identity-{mib}MiB", "MB/s", mine, rates, target)
        if other:
            failed = sum(one["failed"] for one in other)
            run.tell(f"identity-{mib}MiB-failed-by-hivemind", "calls", [failed])


def measure_hashed(run: Run) -> None:
    mine, plain = [], []
    for _ in range(run.repeats):
        mine.append(run.caller.run(partial(large_calls, mib=8, calls=16, hashed=True)))
        plain.append(run.caller.run(partial(large_calls, mib=8, calls=16)))
    run.compare("identity-8MiB-with-hashes", "MB/s", mine, plain, "at least 0", anchor="the same without hashes")


def measure_limit(run: Run) -> None:
    mine, limits = [], []
    for _ in range(run.repeats):
        mine.append(run.caller.run(partial(large_calls, mib=8, calls=16)))
        limits.append(bare_cipher.measure(8, 32))
    run.compare(
        "identity-8MiB-of-bare-cipher", "MB/s", mine, limits, "at least 0.4", anchor="AES-256-GCM over trio TCP"
    )


def measure_concurrent(run: Run) -> None:
    mine, other = run.turns(
        lambda: run.caller.run(partial(concurrent_calls, expert="ffn", in_flight=64, calls=1536)),
        lambda anchor: anchor.measure("concurrent_calls", in_flight=64, calls=256),
    )
    run.compare("ffn-64-in-flight", "forwards/s", mine, other, "at least 3")
    mine, _ = run.turns(lambda: run.caller.run(partial(concurrent_calls, expert="identity", in_flight=64, calls=3072)))
    run.tell("identity-64-in-flight", "forwards/s", mine)


def measure_learning(run: Run) -> None:
    with open_transport(run.server) as transport, tempfile.TemporaryDirectory() as folder:
        module = RemoteExpert(transport, "ffn", PATIENT)
        mine, other, local = [], [], []
        for _ in range(run.repeats):
            mine.append(learning_rate(module, 6))
            local.append(local_learning_rate(6, Path(folder), run.threads))
            if run.anchor is not None:
                other.append(run.anchor.measure("learning_rate", steps=4))
    run.compare("ffn-forward-backward", "steps/s", mine, other, "at least 1.5")
    run.compare(
        "ffn-forward-backward-of-local", "steps/s", mine, local, "at least 0.85", anchor="the same calls in process"
    )


def measure_grid(run: Run) -> None:
    threads = ("--threads", str(run.threads))
    with (
        ServerProcess(*(f"{name}=ffn:256" for name in GRID[0::2]), *threads) as first,
        ServerProcess(*(f"{name}=ffn:256" for name in GRID[1::2]), *threads) as second,
        open_transport(first, second) as transport,
    ):
        mixture = RemoteMixture(256, (4, 4), transport=transport, prefix="grid.", k_best=4, k_min=4, patience=PATIENT)
        mine, other = run.turns(
            lambda: grid_samples(mixture, 8), lambda anchor: anchor.measure("grid_samples", batches=1)
        )
    run.compare("grid-4x4-top-4", "samples/s", mine, other, "at least 5")


def measure_idle(run: Run) -> None:
    sizes = []
    for _ in range(3):
        with ServerProcess("ffn=ffn:1024", "--threads", str(run.threads)) as server:
            sizes.append(proportional_mib(server.process.pid))
    other = [run.anchor.measure("idle") for _ in range(3)] if run.anchor is not None else []
    run.compare("idle-memory", "MiB PSS", sizes, [one[0] for one in other], "at most 0.5")
    run.compare("idle-processes", "processes", [1.0], [one[1] for one in other], "at most 1")


def measure_kill(run: Run) -> None:
    killed = [kill_one(run.threads) for _ in range(run.repeats)]
    round_trip = next((row.value for row in run.rows if row.id == "small-p50"), 1.0)
    after_death = [one.error_after_death_ms for one in killed]
    met = Spread.of(after_death).median <= 2 * round_trip
    run.tell("killed-error-after-kill", "ms", [one.error_after_kill_ms for one in killed])
    run.tell("killed-error-after-death", "ms", after_death, "at most 2 round trips", met)
    run.tell("killed-next-call", "ms", [one.next_call_ms for one in killed])
    rows = [float(one.bad_rows) for one in killed]
    run.tell("killed-NaN-rows", "rows", rows, "0", max(rows) == 0)


def measure_storm(run: Run) -> None:
    storms = [storm(run.threads, 3.0) for _ in range(run.repeats)]
    run.tell("storm-rate-of-one-core", "connects/s", [one.connects_per_s for one in storms])
    run.compare(
        "storm-honest-p50",
        "ms",
        [one.storm_p50_ms for one in storms],
        [one.quiet_p50_ms for one in storms],
        "at most 3",
        anchor="the same calls in quiet",
    )
    grown = [one.grown_mib for one in storms]
    run.tell("storm-memory-grown", "MiB PSS", grown, "at most 8", max(grown) <= 8)


def measure_many(run: Run) -> None:
    failed = done = 0
    while done < run.many:
        calls = min(500, run.many - done)
        failed += run.caller.run(partial(mixed_sizes, calls=calls, seed=done))
        done += calls
        sys.stderr.write(f"  {done} of {run.many} calls, {failed} failed\n")
    run.tell(f"calls-of-1-to-64MiB-failed-of-{run.many}", "calls", [float(failed)], "0", failed == 0)


MEASURES: dict[str, Callable[[Run], None]] = {
    "small": measure_small,
    "large": measure_large,
    "limit": measure_limit,
    "hashed": measure_hashed,
    "concurrent": measure_concurrent,
    "learning": measure_learning,
    "grid": measure_grid,
    "idle": measure_idle,
    "kill": measure_kill,
    "storm": measure_storm,
    "many": measure_many,
}


def print_profile(threads: int) -> None:
    """The shares of busy time at both ends, of the 8 MiB and of the small case."""
    arguments = ("identity=identity:1024", "--threads", str(threads))
    for name, measure in (
        ("8 MiB in + out", partial(large_calls, mib=8, calls=60)),
        ("1 x 1024, sequential", partial(small_calls, calls=2000)),
        ("1 x 1024, 64 in flight", partial(concurrent_calls, expert="identity", in_flight=64, calls=6400)),
    ):
        for end, found in profile(arguments, measure).items():
            parts = ", ".join(f"{kind} {share:.0%}" for kind, share in found.items() if share >= 0.005)
            sys.stdout.write(f"{name}, {end}: {parts}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--anchor-python", default=sys.executable, metavar="PYTHON", help="an environment with hivemind"
    )
    parser.add_argument("--only", choices=MEASURES, action="append", help="these workloads alone")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in every process of moed (its default)")
    parser.add_argument("--many", type=int, default=200, help="how many calls of 1 to 64 MiB may not fail")
    parser.add_argument("--profile", action="store_true", help="print where the time goes, and nothing else")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    torch.set_num_threads(options.threads)
    gc.freeze()  # the caller is a node too
    if options.profile:
        print_profile(options.threads)
        return 0
    anchor = Anchor(options.anchor_python) if has_hivemind(options.anchor_python) else None
    try:
        with ServerProcess("identity=identity:1024", "ffn=ffn:1024", "--threads", str(options.threads)) as server:
            run = Run(options.repeats, options.threads, options.many, anchor, server, Caller(server.place))
            for name, measure in MEASURES.items():
                if options.only is None or name in options.only:
                    sys.stderr.write(f"measuring {name}\n")
                    measure(run)
    finally:
        if anchor is not None:
            anchor.close()
    print_report("rpc", run.rows, as_json=options.json)
    return 0 if all(row.met is not False for row in run.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
