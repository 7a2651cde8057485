"""Times one bit-exact Yuma epoch beside a plain float64 one: ``python -m benchmarks.yuma [--json]``.

Dense rows: every validator rates every uid, and holds the bonds of the epoch before. The plain epoch is what one
would write in numpy without caring for bits: an ``argsort`` of each miner's weights along a contiguous axis and a
cumulative sum for the median, float64 throughout. It gets dense matrices, which saves it reading sparse rows. The two
take turns, so that a busy machine disturbs both alike.

Memory is the peak of a fresh process that does nothing but make the inputs and run the epoch.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.report import Row, Spread, print_report
from moed.consensus.fixedpoint import ONE, U16_MAX
from moed.consensus.sparse_rows import SparseRows
from moed.consensus.yuma import EpochInputs, EpochResult, epoch

SIZES = {"64x256": 0.0, "128x1024": 1.0, "256x4096": 0.65, "4096x4096": 0.25}
"""Validators x uids, and the most that the epoch may take of the plain one's time; 0 for the bound in ms below."""
LARGE = ("256x4096", "4096x4096")
"""Where the second core may help."""
SMALL_MS = 2.0
MEMORY_MIB = 2048.0
THREADS = 2
SEED = 1

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Case:
    """One network: the inputs of its second epoch, and the same as matrices [validators, uids]."""

    inputs: EpochInputs
    stake: npt.NDArray[np.int64]
    weights: npt.NDArray[np.uint16]
    bonds: npt.NDArray[np.uint16]


def make_case(validators: int, uids: int) -> Case:
    """Random dense weights and stakes of a steady state: bonds are those that a first epoch stored."""
    draw = np.random.default_rng(SEED)
    weights = draw.integers(1, U16_MAX + 1, (validators, uids), dtype=np.uint16)
    weights[np.arange(validators), draw.integers(0, uids, validators)] = U16_MAX
    stake = np.zeros(uids, np.int64)
    stake[:validators] = draw.integers(10**12, 10**15, validators)
    columns = np.tile(np.arange(uids, dtype=np.uint16), validators)
    rows = SparseRows(np.minimum(np.arange(uids + 1), validators) * uids, columns, weights.ravel())
    first = EpochInputs(
        n=uids,
        block=1_000,
        last_tempo_block=640,
        emission=360 * 10**9,
        stake=stake,
        validator_permit=np.arange(uids) < validators,
        last_update=np.full(uids, 990),
        block_at_registration=np.zeros(uids, np.int64),
        weights_u16=rows,
        bonds_u16=SparseRows(np.zeros(uids + 1, np.int64), columns[:0], columns[:0]),
        max_allowed_validators=validators,
    )
    bonds = epoch(first).stored_bonds_u16
    second = replace(first, bonds_u16=bonds)
    return Case(second, stake[:validators], weights, bonds.dense(np.arange(validators), uids))


def plain_epoch(case: Case) -> dict[str, Floats]:
    """The same epoch in float64, laid out [uids, validators] like the exact one. It differs from it in late digits."""
    inputs = case.inputs
    stake = case.stake / case.stake.sum()
    weights = np.array(case.weights, np.float64)
    np.fill_diagonal(weights, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    columns = np.ascontiguousarray(weights.T)
    order = np.argsort(columns, axis=1)
    minority = 1 - inputs.kappa_u16 / U16_MAX
    position = (np.cumsum(stake[order], axis=1) <= minority).sum(axis=1)
    voter = np.take_along_axis(order, np.minimum(position, len(stake) - 1)[:, None], axis=1)
    consensus = np.take_along_axis(columns, voter, axis=1)
    clipped = np.minimum(columns, consensus)
    trust = clipped.sum(axis=0)
    ranks = clipped @ stake
    incentive = ranks / ranks.sum()
    old = np.ascontiguousarray(case.bonds.T).astype(np.float64)
    old /= old.sum(axis=1, keepdims=True)
    new = clipped * stake
    new /= new.sum(axis=1, keepdims=True)
    alpha = 1 - inputs.bonds_moving_average_ppm / 1_000_000
    bonds = alpha * new + (1 - alpha) * old
    bonds /= bonds.sum(axis=1, keepdims=True)
    dividends = incentive @ bonds
    dividends /= dividends.sum()
    stored = (bonds / bonds.max(axis=1, keepdims=True) * U16_MAX).astype(np.uint16)
    shares = np.zeros(inputs.n)
    shares[: len(stake)] = dividends
    return {
        "consensus": consensus[:, 0],
        "trust": trust,
        "incentive": incentive,
        "dividends": dividends,
        "emission": np.floor((incentive + shares) / 2 * inputs.emission),
        "stored": np.ascontiguousarray(stored.T),
    }


def farthest(plain: dict[str, Floats], exact: EpochResult) -> float:
    """The largest difference between the two in consensus, incentive and dividends: they are the same epoch."""
    validators = len(plain["dividends"])
    pairs = (
        (plain["consensus"], exact.consensus_bits),
        (plain["incentive"], exact.incentive_bits),
        (plain["dividends"], exact.dividends_bits[:validators]),
    )
    return max(float(np.abs(floats - bits / ONE).max()) for floats, bits in pairs)


def take_turns(runs: Sequence[Callable[[], Any]], repeats: int) -> list[Spread]:
    """Milliseconds of each of ``runs``; one after another in each repeat, after one that does not count."""
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for run, kept in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            if repeat:
                kept.append((time.perf_counter() - started) * 1e3)
    return [Spread.of(kept) for kept in times]


def time_rows(size: str, repeats: int) -> list[Row]:
    """The epoch of one size on one thread and on two, both against the plain one on one thread."""
    case = make_case(*_numbers(size))
    if (difference := farthest(plain_epoch(case), epoch(case.inputs))) > 1e-5:
        raise SystemExit(f"benchmarks.yuma: the plain epoch of {size} is another one, by {difference:.1e}")
    with ThreadPoolExecutor(THREADS) as pool:
        spreads = take_turns(
            [
                lambda: plain_epoch(case),
                lambda: epoch(case.inputs),
                lambda: epoch(case.inputs, map_tiles=pool.map),
            ],
            repeats,
        )
    plain = spreads[0]
    rows = [Row(f"plain-{size}", "ms", plain.median, plain.min, plain.max)]
    for threads, spread in zip((1, THREADS), spreads[1:], strict=True):
        ratio, bound = spread.median / plain.median, SIZES[size]
        target: str | None = f"ratio at most {bound}" if bound else f"at most {SMALL_MS} ms"
        met: bool | None = ratio <= bound if bound else spread.median <= SMALL_MS
        if threads > 1 and size not in LARGE:
            target = met = None  # shown, and no gain: handing out tiles takes longer than they do
        rows.append(
            Row(
                f"epoch-{size}-threads-{threads}",
                "ms",
                spread.median,
                spread.min,
                spread.max,
                anchor="plain float64 epoch, 1 thread",
                anchor_value=plain.median,
                ratio=ratio,
                target=target,
                met=met,
            )
        )
    return rows


def memory_row(size: str) -> Row:
    """Peak resident memory of a process that makes this network and runs its epoch."""
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.yuma", "--memory-of", size], check=True, capture_output=True, text=True
    )
    mib = float(found.stdout)
    return Row(f"memory-{size}", "MiB", mib, mib, mib, target=f"at most {MEMORY_MIB:.0f} MiB", met=mib <= MEMORY_MIB)


def _numbers(size: str) -> tuple[int, int]:
    validators, uids = size.split("x")
    return int(validators), int(uids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--size", action="append", choices=SIZES, help="only this size; may be given again")
    parser.add_argument("--repeats", type=int, default=21, help="timed runs of each (a third at 4096x4096)")
    parser.add_argument("--memory-of", choices=SIZES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        epoch(make_case(*_numbers(options.memory_of)).inputs)
        sys.stdout.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f}\n")
        return
    rows = []
    for size in options.size or SIZES:
        rows += time_rows(size, options.repeats // 3 if size == "4096x4096" else options.repeats)
        rows.append(memory_row(size))
    print_report("yuma", rows, as_json=options.json)


if __name__ == "__main__":
    main()
