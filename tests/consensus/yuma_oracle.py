"""One epoch of Yuma consensus in plain Python integers, entry by entry: slow, and meant to be obviously right.

It is written from the definition alone and shares nothing with ``moed.consensus``. A number is the raw integer of a
signed 32.32 fixed-point value (1.0 is ``2**32``). A matrix is a list of rows, a row a dict from column to value: a
missing entry and an entry that is zero are different things, as they are in the reference chain's sparse epoch
(opentensor/subtensor, pallets/subtensor/src/epoch, commit 14bc6f9f).

Input and output are dicts with the names of the published ``epoch_bits`` vectors. ``python tests/consensus/
yuma_oracle.py`` rewrites ``tests/vectors/yuma_oracle.json``.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

ONE = 1 << 32
MOST = (1 << 63) - 1
U16 = 65535
E_23_BITS = int(2.718281828459045 * (1 << 23)) << 9  # e cut to 23 bits after the point
LOG2_E_23_BITS = int(1.4426950408889634 * (1 << 23)) << 9  # likewise

Row = dict[int, int]
Matrix = list[Row]


# --- numbers --------------------------------------------------------------------------------------------------


def saturate(bits: int) -> int:
    return max(-MOST - 1, min(MOST, bits))


def mul(a: int, b: int) -> int:
    return saturate((a * b) >> 32)


def div(a: int, b: int) -> int:
    if b == 0:
        return 0
    magnitude = (abs(a) << 32) // abs(b)
    return saturate(magnitude if (a < 0) == (b < 0) else -magnitude)


def total(values: list[int]) -> int:
    result = 0
    for value in values:
        result = saturate(result + value)
    return result


def normalized(values: list[int]) -> list[int]:
    whole = total(values)
    return list(values) if whole == 0 else [div(value, whole) for value in values]


def proportion(u16: int) -> int:
    return div(u16 << 32, U16 << 32)


def to_u16(bits: int) -> int:
    return max(0, min(U16, mul(bits, U16 << 32) >> 32))


def exp(x: int) -> int:
    x = max(-20 * ONE, min(20 * ONE, x))
    if x == 0:
        return ONE
    if x == ONE:
        return E_23_BITS
    size = abs(x)
    result = ONE + size
    term = size
    for i in range(2, 32):
        term = div(mul(term, size), i << 32)
        result += term
    return div(ONE, result) if x < 0 else result


def log2_from_one(x: int) -> int:
    """Base-2 logarithm of x >= 1.0: count the halvings, then square once for each further bit."""
    halvings = 0
    while x >= 2 * ONE:
        x = (x >> 1) + (x & 1)
        halvings += 1
    result = halvings
    if x == ONE:
        return result << 32
    for _ in range(32):
        x = mul(x, x)
        result <<= 1
        if x >= 2 * ONE:
            result |= 1
            x = (x >> 1) + (x & 1)
    return result


def ln(x: int) -> int:
    if x <= 0:
        return 0
    log2 = -log2_from_one(div(ONE, x)) if x < ONE else log2_from_one(x)
    return div(log2, LOG2_E_23_BITS)


def clamp(x: int, low: int, high: int) -> int:
    return max(low, min(high, x))


# --- matrices -------------------------------------------------------------------------------------------------


def column_sums(matrix: Matrix, n: int) -> list[int]:
    return [total([row[j] for row in matrix if j in row]) for j in range(n)]


def column_normalized(matrix: Matrix, n: int) -> Matrix:
    sums = column_sums(matrix, n)
    return [{j: div(v, sums[j]) if sums[j] else v for j, v in row.items()} for row in matrix]


def column_max_upscaled(matrix: Matrix, n: int) -> Matrix:
    most = [max([row[j] for row in matrix if j in row], default=0) for j in range(n)]
    return [{j: div(v, most[j]) if most[j] else v for j, v in row.items()} for row in matrix]


def ema(new: Matrix, old: Matrix, alpha: list[int]) -> Matrix:
    """``alpha_j new_ij + (1 - alpha_j) old_ij`` over the entries of both; entries that come out as 0 are dropped."""
    result: Matrix = []
    for new_row, old_row in zip(new, old, strict=True):
        row: Row = {}
        for j in sorted(set(new_row) | set(old_row)):
            value = mul(alpha[j], new_row.get(j, 0)) + mul(ONE - alpha[j], old_row.get(j, 0))
            if value > 0:
                row[j] = value
        result.append(row)
    return result


# --- the steps ------------------------------------------------------------------------------------------------


def weighted_median(stake: list[int], score: list[int], minority: int) -> int:
    """The smallest score v with stake(score <= v) > minority; the largest score if there is none."""
    for v in sorted(set(score)):
        if total([s for s, w in zip(stake, score, strict=True) if w <= v]) > minority:
            return v
    return max(score, default=0)


def consensus_of(active_stake: list[int], weights: Matrix, kappa: int, n: int) -> list[int]:
    voters = [i for i in range(n) if active_stake[i] > 0]
    stake = normalized([active_stake[i] for i in voters])
    minority = total(stake) - kappa
    return [weighted_median(stake, [weights[i].get(j, 0) for i in voters], minority) for j in range(n)]


def clip(weights: Matrix, consensus: list[int]) -> Matrix:
    clipped: Matrix = []
    for row in weights:
        clipped.append({j: min(w, consensus[j]) for j, w in row.items() if w <= consensus[j] or consensus[j] > 0})
    return clipped


def weights_for_bonds(weights: Matrix, clipped: Matrix, penalty: int) -> Matrix:
    if penalty == 0:
        return weights
    if penalty == ONE:
        return clipped
    result: Matrix = []
    for row, cut in zip(weights, clipped, strict=True):
        mixed = {j: w + mul(penalty, cut.get(j, 0) - w) for j, w in row.items()}
        result.append({j: w for j, w in mixed.items() if w > 0})
    return result


def permitted_top(stake: list[int], most: int) -> list[bool]:
    """Non-zero stake and among the ``most`` largest; the higher uid wins a tie."""
    ascending = sorted(range(len(stake)), key=lambda i: (stake[i], i))
    cut = set(ascending[: max(0, len(stake) - most)])
    return [stake[i] != 0 and i not in cut for i in range(len(stake))]


def liquid_alpha(weight: int, bond: int, consensus: int, low: int, high: int, steepness: int) -> int:
    difference = clamp(weight - consensus if weight >= bond else bond - weight, 0, ONE)
    exponent = mul(div(steepness << 32, -100 << 32), difference - ONE // 2)
    sigmoid = div(ONE, ONE + exp(exponent))
    return clamp(low + mul(sigmoid, high - low), low, high)


def liquid_ema(new: Matrix, old: Matrix, consensus: list[int], low: int, high: int, steepness: int) -> Matrix:
    """A bond survives only where the validator's row has an entry."""
    result: Matrix = []
    for new_row, old_row in zip(new, old, strict=True):
        row: Row = {}
        for j, w in new_row.items():
            alpha = liquid_alpha(w, old_row.get(j, 0), consensus[j], low, high, steepness)
            value = min(ONE, mul(ONE - alpha, old_row.get(j, 0)) + mul(alpha, w))
            if value > 0:
                row[j] = value
        result.append(row)
    return result


def quartile(values: list[int], quarters: int) -> int:
    ascending = sorted(values)
    below, rest = divmod(quarters * (len(values) - 1), 4)
    if rest == 0:
        return ascending[below]
    return ascending[below] + mul(ascending[below + 1] - ascending[below], rest * ONE // 4)


def alpha_by_consensus(consensus: list[int], low: int, high: int, fixed: int) -> list[int]:
    """The liquid alpha of 2024: one per miner, a logistic curve through the quartiles of consensus.

    Where the upper quartile is zero there is no curve, and the source of that time used the fixed alpha.
    """
    lower, upper = quartile(consensus, 1), quartile(consensus, 3)
    if upper == 0:
        return [fixed] * len(consensus)
    a = b = 0
    if upper > lower and low and high:
        at_low, at_high = ln(div(ONE, low) - ONE), ln(div(ONE, high) - ONE)
        a = div(at_high - at_low, lower - upper)
        b = saturate(at_low + mul(a, lower))
    return [clamp(div(ONE, ONE + exp(saturate(b - mul(a, c)))), low, high) for c in consensus]


def oracle_epoch(given: dict[str, Any]) -> dict[str, Any]:
    """The whole epoch; see the module's docstring for the names."""
    n = given["n"]
    uids = range(n)
    owner = given["owner_uid"]
    registered = given["block_at_registration"]
    updated = given["last_update"]

    # 1, 2, 3: who is active; stake over the threshold; its share
    active = [not updated[i] + given["activity_cutoff"] < given["block"] for i in uids]
    counted = [s if s >= given["min_stake"] or i == owner else 0 for i, s in enumerate(given["stake"])]
    everything = sum(counted)
    stake = [(s << 64) // everything >> 32 if everything else 0 for s in counted]

    # 4: permits of the last epoch are used, those of the next are drawn
    permit = [given["validator_permit"][i] or i == owner for i in uids]
    new_permit = [p or i == owner for i, p in enumerate(permitted_top(stake, given["max_allowed_validators"]))]

    # 5: active stake
    active_stake = normalized([stake[i] if active[i] and permit[i] else 0 for i in uids])

    # 6: weights
    commits = given.get("commit_blocks")
    weights: Matrix = []
    for i in uids:
        row: Row = {}
        for j, w in given["weights_u16"][i]:
            outdated = updated[i] <= registered[j]
            sniped = commits is not None and commits[i] is not None and commits[i] < registered[j]
            if permit[i] and (i != j or i == owner) and not outdated and not sniped:
                row[j] = w << 32
        whole = total(list(row.values()))
        weights.append({j: div(w, whole) if whole else w for j, w in row.items()})

    # 7, 8, 9, 10: consensus, clipping, validator trust, rank, incentive
    consensus = consensus_of(active_stake, weights, proportion(given["kappa_u16"]), n)
    clipped = clip(weights, consensus)
    validator_trust = [total(list(row.values())) for row in clipped]
    ranks = [total([mul(active_stake[i], clipped[i].get(j, 0)) for i in uids]) for j in uids]
    incentive = normalized(ranks)

    # 11, 12: bonds and dividends
    for_bonds = weights_for_bonds(weights, clipped, proportion(given["bonds_penalty_u16"]))
    kept = [{j: b for j, b in row if not given["last_tempo_block"] <= registered[j]} for row in given["bonds_u16"]]
    alpha = ONE - (given["bonds_moving_average_ppm"] << 32) // 1_000_000
    low, high = proportion(given["alpha_low_u16"]), proportion(given["alpha_high_u16"])
    if given["yuma_version"] == 3:
        old = [{j: proportion(b) for j, b in row.items()} for row in kept]
        if given["liquid_alpha"] and any(consensus):
            bonds = liquid_ema(for_bonds, old, consensus, low, high, given["alpha_sigmoid_steepness"])
        else:
            bonds = ema(for_bonds, old, [alpha] * n)
        shares = column_normalized(bonds, n)
        held = [total([mul(b, incentive[j]) for j, b in row.items()]) for row in shares]
        dividends = normalized([mul(held[i], active_stake[i]) for i in uids])
        stored = bonds
    else:
        old = column_normalized([{j: b << 32 for j, b in row.items()} for row in kept], n)
        bought = [{j: mul(active_stake[i], w) for j, w in row.items()} for i, row in enumerate(for_bonds)]
        alphas = [alpha] * n
        if given.get("classic_liquid_alpha") and any(consensus):
            alphas = alpha_by_consensus(consensus, low, high, alpha)
        bonds = column_normalized(ema(column_normalized(bought, n), old, alphas), n)
        dividends = normalized([total([mul(b, incentive[j]) for j, b in row.items()]) for row in bonds])
        stored = column_max_upscaled(bonds, n)

    # 13: emission, in units
    both = [i + d for i, d in zip(incentive, dividends, strict=True)]
    whole = total(both)
    server_share = [div(x, whole) if whole else x for x in incentive]
    validator_share = [div(x, whole) if whole else x for x in dividends]
    combined_share = normalized(both)
    if whole == 0:
        validator_share = combined_share = active_stake if any(active_stake) else stake
    amount = given["emission"]

    return {
        "active": active,
        "stake_bits": stake,
        "active_stake_bits": active_stake,
        "new_validator_permit": new_permit,
        "consensus_bits": consensus,
        "validator_trust_bits": validator_trust,
        "ranks_bits": ranks,
        "incentive_bits": incentive,
        "dividends_bits": dividends,
        "ema_bonds_bits": [[[j, b] for j, b in sorted(row.items())] for row in stored],
        "server_emission": [share * amount >> 32 for share in server_share],
        "validator_emission": [share * amount >> 32 for share in validator_share],
        "emission": [share * amount >> 32 for share in combined_share],
        "stored_bonds_u16": [
            [[j, to_u16(b)] for j, b in sorted(row.items())] if new_permit[i] else [] for i, row in enumerate(stored)
        ],
    }


# --- random epochs --------------------------------------------------------------------------------------------


def random_row(draw: random.Random, n: int, zeros: bool) -> list[list[int]]:
    columns = [j for j in range(n) if draw.random() < draw.choice([0.3, 0.9, 1.0])]
    style = draw.randrange(4)
    row = []
    for j in columns:
        value = [draw.randrange(U16 + 1), U16, draw.choice([0, 1, U16 // 2, U16]), draw.randrange(4)][style]
        if value or zeros:
            row.append([j, value])
    return row


def random_epoch(draw: random.Random) -> dict[str, Any]:
    """Inputs that reach every branch: ties, zeros, one holder, no stake, masks, owner, both bond rules."""
    n = draw.choice([1, 2, 3, 5, 8, 13])
    block = draw.randrange(1, 100)
    low, high = sorted([draw.randrange(U16 + 1), draw.choice([U16, draw.randrange(U16 + 1)])])
    stakes = [
        [draw.randrange(12) for _ in range(n)],
        [draw.randrange(1 << 50) for _ in range(n)],
        [draw.choice([0, 0, 1 << 61]) >> draw.randrange(3, 60) for _ in range(n)],
        [7] * n,
    ]
    return {
        "n": n,
        "yuma_version": draw.choice([1, 3]),
        "liquid_alpha": draw.random() < 0.6,
        "classic_liquid_alpha": draw.random() < 0.3,
        "kappa_u16": draw.choice([0, 26214, 32767, 32767, U16, draw.randrange(U16 + 1)]),
        "bonds_penalty_u16": draw.choice([0, U16, 32767, draw.randrange(U16 + 1)]),
        "bonds_moving_average_ppm": draw.choice([0, 900_000, 975_000, 1_000_000, draw.randrange(1_000_001)]),
        "alpha_low_u16": low,
        "alpha_high_u16": high,
        "alpha_sigmoid_steepness": draw.choice([1000, -1000, 100, 0, draw.randrange(-32768, 32768)]),
        "emission": draw.choice([0, 1, 10**9, draw.randrange(1 << 63)]),
        "block": block,
        "last_tempo_block": max(0, block - draw.choice([1, 10, 50])),
        "activity_cutoff": draw.choice([5000, 30, 1]),
        "owner_uid": draw.choice([None, None, draw.randrange(n)]),
        "min_stake": draw.choice([0, 0, 5]),
        "max_allowed_validators": draw.choice([1, 2, n, 64]),
        "stake": draw.choice(stakes),
        "validator_permit": [draw.random() < 0.75 for _ in range(n)],
        "last_update": [draw.choice([block, draw.randrange(block + 1)]) for _ in range(n)],
        "block_at_registration": [draw.choice([0, 0, draw.randrange(block + 1)]) for _ in range(n)],
        "weights_u16": [random_row(draw, n, zeros=True) for _ in range(n)],
        "bonds_u16": [random_row(draw, n, zeros=draw.random() < 0.5) for _ in range(n)],
        "commit_blocks": draw.choice([None, [draw.choice([None, draw.randrange(block + 1)]) for _ in range(n)]]),
    }


def vectors(count: int, seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    given = [random_epoch(draw) for _ in range(count)]
    return {
        "kind": "epoch_bits",
        "source": "tests/consensus/yuma_oracle.py; regenerate with: python tests/consensus/yuma_oracle.py",
        "seed": seed,
        "cases": [{"input": each, "expected": oracle_epoch(each)} for each in given],
    }


if __name__ == "__main__":
    target = Path(__file__).resolve().parent.parent / "vectors" / "yuma_oracle.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(vectors(count=24, seed=20260630), separators=(",", ":")) + "\n")
    sys.stdout.write(f"wrote {target}\n")
