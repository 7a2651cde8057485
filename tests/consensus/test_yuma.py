"""Tests of the epoch against the slow oracle, and of its laws."""

from __future__ import annotations

import json
import os
import random
import runpy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moed.consensus.epoch_inputs import NO_COMMIT
from moed.consensus.errors import InvalidEpochInput
from moed.consensus.fixedpoint import ONE, U16_MAX
from moed.consensus.yuma import EpochInputs, epoch, upscale_weights
from support.epochs import as_dict, run_epoch

ORACLE = runpy.run_path(str(Path(__file__).with_name("yuma_oracle.py")))
oracle_epoch: Callable[[dict[str, Any]], dict[str, Any]] = ORACLE["oracle_epoch"]
random_epoch: Callable[[random.Random], dict[str, Any]] = ORACLE["random_epoch"]

RECORDED = Path(__file__).resolve().parent.parent / "vectors" / "yuma_oracle.json"
EPOCHS_PER_SEED = int(os.environ.get("MOED_YUMA_EPOCHS", "60"))


# --- the oracle -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_oracle_agrees_on_random_epochs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every quantity of random epochs has the oracle's bits, whatever the tile that the matrices are cut into."""
    draw = random.Random(seed)
    for number in range(EPOCHS_PER_SEED):
        monkeypatch.setattr("moed.consensus.pairs.TILE", draw.choice([1, 16, 1 << 15]))
        inputs = random_epoch(draw)
        assert as_dict(run_epoch(inputs)) == oracle_epoch(inputs), f"seed {seed}, epoch {number}: {json.dumps(inputs)}"


@pytest.mark.parametrize("yuma_version", [1, 3])
def test_oracle_agrees_on_a_chain_of_epochs(yuma_version: int) -> None:
    """Twenty epochs whose permits and bonds feed the next, with uids changing hands on the way."""
    draw = random.Random(yuma_version)
    n = 12
    state = random_epoch(draw) | {"n": n, "yuma_version": yuma_version, "owner_uid": 3, "commit_blocks": None}
    state |= {
        "liquid_alpha": True,
        "max_allowed_validators": 5,
        "activity_cutoff": 40,
        "min_stake": 0,
        "emission": 7**20,
    }
    state |= {"stake": [draw.randrange(1, 1 << 40) for _ in range(n)], "validator_permit": [True] * n}
    state |= {"block_at_registration": [0] * n, "bonds_u16": [[] for _ in range(n)]}
    for number in range(1, 21):
        block = 10 * number
        state |= {
            "block": block,
            "last_tempo_block": block - 9,
            "last_update": [block - draw.randrange(60) for _ in range(n)],
        }
        state["last_update"] = [max(0, updated) for updated in state["last_update"]]
        state["weights_u16"] = [ORACLE["random_row"](draw, n, zeros=True) for _ in range(n)]
        state["block_at_registration"][draw.randrange(n)] = block - draw.randrange(10)
        result = as_dict(run_epoch(state))
        assert result == oracle_epoch(state), json.dumps(state)
        state |= {"validator_permit": result["new_validator_permit"], "bonds_u16": result["stored_bonds_u16"]}


def test_oracle_agrees_on_a_dense_epoch() -> None:
    """Forty validators who rate two hundred miners each: many tiles' worth of entries, all ways of dividing."""
    draw = random.Random(40)
    n, validators = 200, 40
    everyone = range(n)
    for yuma_version in (1, 3):
        inputs = random_epoch(draw) | {"n": n, "yuma_version": yuma_version, "liquid_alpha": yuma_version == 3}
        inputs |= {"block": 100, "last_tempo_block": 90, "last_update": [95] * n, "block_at_registration": [0] * n}
        inputs |= {"stake": [draw.randrange(1, 1 << 50) if uid < validators else 0 for uid in everyone]}
        inputs |= {"validator_permit": [uid < validators for uid in everyone], "owner_uid": None, "commit_blocks": None}
        for name in ("weights_u16", "bonds_u16"):
            inputs[name] = [
                [[j, draw.randrange(1, U16_MAX + 1)] for j in everyone] if uid < validators else [] for uid in everyone
            ]
        assert as_dict(run_epoch(inputs)) == oracle_epoch(inputs)


def test_threads_change_no_bit() -> None:
    """Tiles on a pool of threads give the bits that they give one after another."""
    inputs = lawful_epoch(random.Random(3))
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr("moed.consensus.pairs.TILE", 16)
        threaded = epoch(EpochInputs(**inputs), map_tiles=pool.map)
    assert as_dict(threaded) == as_dict(run_epoch(inputs))


def test_recorded_epochs() -> None:
    """The epochs recorded in this project come out as recorded, from the epoch and from the oracle."""
    recorded = json.loads(RECORDED.read_text())
    assert len(recorded["cases"]) == 24
    for case in recorded["cases"]:
        assert as_dict(run_epoch(case["input"])) == case["expected"]
        assert oracle_epoch(case["input"]) == case["expected"]


# --- liquid alpha as it was in 2024 ---------------------------------------------------------------------------


def test_classic_liquid_alpha_of_2024() -> None:
    """Rates and stored bonds of the reference's liquid-alpha test of that time.

    From opentensor/subtensor, test_bonds_with_liquid_alpha as of 2024: four validators who agree; then uid 0, then
    uid 1 as well, points at itself only. The bonds toward uid 4 are asserted there, the rates a later printed trace.
    """
    full = [[4, 16383], [5, 32767], [6, 49149], [7, 65535]]
    inputs: dict[str, Any] = {
        "n": 8,
        "last_tempo_block": 2,
        "emission": 10**9,
        "stake": [1, 2, 3, 4, 0, 0, 0, 0],
        "validator_permit": [True] * 8,
        "last_update": [2, 2, 2, 2, 1, 1, 1, 1],
        "block_at_registration": [1] * 8,
        "bonds_u16": [[]] * 8,
        "classic_liquid_alpha": True,
        "max_allowed_validators": 64,
    }
    on_itself = [[[0, 65535]], [[1, 65535]]]
    asserted = [[16383, 32767, 49151, 65535], [2862, 32767, 49151, 65535], [435, 4985, 49151, 65535]]
    printed = [0.7000076314] * 4 + [0.8095842435, 0.8856769793, 0.9000076293, 0.9000076293]
    for selfish, expected in enumerate(asserted):
        rows = on_itself[:selfish] + [full] * (4 - selfish) + [[]] * 4
        result = run_epoch(inputs | {"block": 2 + selfish, "weights_u16": rows})
        assert result.pairs.alphas()[:, 0] / ONE == pytest.approx(np.array(printed), abs=2e-10)
        assert [dict(result.stored_bonds_u16.row(uid))[4] for uid in range(4)] == expected
        inputs["bonds_u16"] = result.stored_bonds_u16


# --- laws -----------------------------------------------------------------------------------------------------


def lawful_epoch(draw: random.Random) -> dict[str, Any]:
    """A random epoch with distinct stakes, none under 2**-32 of the whole, and no floor."""
    inputs = random_epoch(draw)
    stake = draw.sample(range(1 << 20, 1 << 40, 1 << 12), inputs["n"])
    return inputs | {"stake": stake, "min_stake": 0}


def permuted(inputs: dict[str, Any], to: list[int]) -> dict[str, Any]:
    """The same epoch with uid u renamed ``to[u]``."""
    back = sorted(range(len(to)), key=to.__getitem__)
    result = dict(inputs)
    for name in ("stake", "validator_permit", "last_update", "block_at_registration", "commit_blocks"):
        if inputs[name] is not None:
            result[name] = [inputs[name][u] for u in back]
    for name in ("weights_u16", "bonds_u16"):
        result[name] = [sorted([to[j], value] for j, value in inputs[name][u]) for u in back]
    if inputs["owner_uid"] is not None:
        result["owner_uid"] = to[inputs["owner_uid"]]
    return result


@pytest.mark.parametrize("seed", range(4))
def test_renaming_uids_renames_results(seed: int) -> None:
    """With distinct stakes nothing depends on which number a uid has."""
    draw = random.Random(1000 + seed)
    for _ in range(25):
        inputs = lawful_epoch(draw)
        to = draw.sample(range(inputs["n"]), inputs["n"])
        before, after = as_dict(run_epoch(inputs)), as_dict(run_epoch(permuted(inputs, to)))
        for name, values in before.items():
            if name in ("ema_bonds_bits", "stored_bonds_u16"):
                renamed = [sorted([to[j], value] for j, value in row) for row in values]
            else:
                renamed = values
            assert [after[name][to[u]] for u in range(inputs["n"])] == renamed, (name, json.dumps(inputs), to)


@pytest.mark.parametrize("factor", [2, 1000, 7**7])
def test_scaling_all_stakes_changes_nothing(factor: int) -> None:
    """Only proportions of stake matter, to the last bit, as long as no floor cuts in."""
    draw = random.Random(factor)
    for _ in range(25):
        inputs = lawful_epoch(draw)
        scaled = inputs | {"stake": [factor * stake for stake in inputs["stake"]]}
        assert as_dict(run_epoch(inputs)) == as_dict(run_epoch(scaled)), json.dumps(inputs)


@pytest.mark.parametrize("seed", range(4))
def test_emission_stays_within_the_budget(seed: int) -> None:
    """Neither both halves together nor the combined amounts exceed what was to be handed out; little is lost."""
    draw = random.Random(2000 + seed)
    for _ in range(50):
        inputs = random_epoch(draw)
        result = run_epoch(inputs)
        # Python integers: the sums may be near 2**63
        halves = sum(result.server_emission.tolist()) + sum(result.validator_emission.tolist())
        combined = sum(result.emission.tolist())
        assert 0 <= halves <= inputs["emission"]
        assert 0 <= combined <= inputs["emission"]
        if any(result.combined_share_bits):
            lost = 2 * inputs["n"] * (1 + (inputs["emission"] >> 32))
            assert inputs["emission"] - combined <= 2 * lost + (inputs["emission"] >> 20)


@pytest.mark.parametrize("seed", range(2))
def test_intermediates_stay_in_their_ranges(seed: int) -> None:
    """Shares lie in [0, 1] and sum to 1 at most; clipped weights never exceed consensus; no bond leaves [0, 1]."""
    draw = random.Random(3000 + seed)
    for _ in range(50):
        result = run_epoch(random_epoch(draw))
        for values in (result.stake_bits, result.active_stake_bits, result.incentive_bits, result.dividends_bits):
            assert values.min() >= 0
            assert values.sum() <= ONE
        pairs = result.pairs
        assert (pairs.weights().sum(axis=0) <= ONE).all()
        assert (pairs.clipped_weights() <= result.consensus_bits[:, None]).all()
        for matrix in (pairs.weights_for_bonds(), pairs.old_bonds(), pairs.bonds(), pairs.alphas()):
            assert matrix.min(initial=0) >= 0
            assert matrix.max(initial=0) <= ONE
        if not pairs.rule.is_yuma_3:
            assert (pairs.bought_bonds().sum(axis=1) <= ONE).all()


def market(rows: list[list[int]], stake: list[int], yuma_version: int, bonds: list[Any]) -> dict[str, Any]:
    """Validators who rate the same miners: rows of weights of any scale, and the bonds of the epoch before."""
    validators, miners = len(rows), len(rows[0])
    n = validators + miners
    weights = [upscale_weights((validators + j, weight) for j, weight in enumerate(row)) for row in rows]
    return {
        "n": n,
        "block": 10,
        "last_tempo_block": 5,
        "emission": 10**9,
        "stake": stake + [0] * miners,
        "validator_permit": [uid < validators for uid in range(n)],
        "last_update": [9] * n,
        "block_at_registration": [0] * n,
        "weights_u16": weights + [[]] * miners,
        "bonds_u16": bonds or [[]] * n,
        "yuma_version": yuma_version,
    }


markets = st.integers(2, 6).flatmap(
    lambda validators: st.tuples(
        st.lists(st.lists(st.integers(1, 1 << 20), min_size=5, max_size=5), min_size=validators, max_size=validators),
        st.lists(st.integers(1 << 20, 1 << 40), min_size=validators, max_size=validators, unique=True),
    )
)


@settings(deadline=None)
@given(markets, st.sampled_from([1, 3]), st.integers(2, 1 << 20))
def test_lowering_all_weights_alike_changes_nothing(
    given_market: tuple[list[list[int]], list[int]], yuma_version: int, factor: int
) -> None:
    """A row is what its proportions are: the same weights at a fraction of the scale give the same bits."""
    rows, stake = given_market
    high = [[factor * weight for weight in rows[0]], *rows[1:]]
    before = as_dict(run_epoch(market(rows, stake, yuma_version, [])))
    assert as_dict(run_epoch(market(high, stake, yuma_version, []))) == before


@settings(deadline=None)
@given(markets, st.sampled_from([1, 3]), st.booleans(), st.floats(0.01, 1))
def test_lowering_everyone_gains_a_validator_nothing(
    given_market: tuple[list[list[int]], list[int]], yuma_version: int, has_bonds: bool, part: float
) -> None:
    """A validator without a majority that takes a part of its weight off all miners, to a uid that nobody else rates.

    Its dividends do not grow, with bonds from an epoch before or without, but for what u16 rounding moves.
    """
    rows, stake = given_market
    one = stake.index(min(stake))
    # nobody rates the last miner; the rows are scaled, so that a part of them can be moved without rounding much
    rated = [[weight * 10**6 // sum(row) + 1 for weight in row] + [0] for row in rows]
    lowered = [list(row) for row in rated]
    lowered[one] = [round(weight * (1 - part)) for weight in rated[one]]
    lowered[one][-1] = sum(rated[one]) - sum(lowered[one])
    bonds = as_dict(run_epoch(market(rated, stake, yuma_version, [])))["stored_bonds_u16"] if has_bonds else []
    before = run_epoch(market(rated, stake, yuma_version, bonds)).dividends_bits[one] / ONE
    after = run_epoch(market(lowered, stake, yuma_version, bonds)).dividends_bits[one] / ONE
    assert after <= before * (1 + 1e-3) + 1e-6


def test_minority_cannot_raise_a_miner() -> None:
    """A validator with less than half of the stake is cut to what the others give, and loses the bonds for it."""
    honest, greedy = [[2, 40000], [3, 25535]], [[3, 65535]]
    inputs = {
        "n": 4,
        "block": 10,
        "last_tempo_block": 5,
        "emission": 10**9,
        "stake": [60, 40, 0, 0],
        "validator_permit": [True, True, False, False],
        "last_update": [9, 9, 0, 0],
        "block_at_registration": [0] * 4,
        "weights_u16": [honest, greedy, [], []],
        "bonds_u16": [[]] * 4,
    }
    result = run_epoch(inputs)
    assert result.consensus_bits[3] == result.pairs.weights()[3, 0]
    assert result.validator_trust_bits[1] < result.validator_trust_bits[0]
    assert result.dividends_bits[1] * 60 < result.dividends_bits[0] * 40
    assert not result.is_emergency


def test_one_validator_holds_everything() -> None:
    """A lone validator with one miner reaches exactly 1.0 in every product: the overflow case of 64 bits."""
    inputs = {
        "n": 2,
        "block": 10,
        "last_tempo_block": 5,
        "emission": 1_000,
        "stake": [5, 0],
        "validator_permit": [True, False],
        "last_update": [9, 0],
        "block_at_registration": [0, 0],
        "weights_u16": [[[1, 65535]], []],
        "bonds_u16": [[[1, 65535]], []],
    }
    for version in (1, 3):
        result = run_epoch(inputs | {"yuma_version": version})
        assert result.consensus_bits.tolist() == [0, ONE]
        assert result.incentive_bits.tolist() == [0, ONE]
        assert result.dividends_bits.tolist() == [ONE, 0]
        assert result.server_emission.tolist() == [0, 500]
        assert result.validator_emission.tolist() == [500, 0]
        assert result.stored_bonds_u16.to_lists() == [[(1, 65535)], []]
        assert result.pruning_scores_u16.tolist() == [65535, 65535]


# --- around the epoch -----------------------------------------------------------------------------------------


def test_commit_after_registration_keeps_weights() -> None:
    """Weights committed before a uid changed hands are dropped; those committed in or after that block count."""
    inputs = {
        "n": 3,
        "block": 20,
        "last_tempo_block": 11,
        "emission": 100,
        "stake": [1, 0, 0],
        "validator_permit": [True, False, False],
        "last_update": [19, 0, 0],
        "block_at_registration": [0, 10, 0],
        "weights_u16": [[[1, 65535], [2, 65535]], [], []],
        "bonds_u16": [[]] * 3,
    }
    for commit, paid in ((9, [False, True]), (10, [True, True]), (None, [True, True]), (NO_COMMIT, [True, True])):
        result = run_epoch(inputs | {"commit_blocks": [commit, None, None]})
        assert (result.server_emission[1:] > 0).tolist() == paid


@given(st.lists(st.integers(0, 1 << 80), max_size=12, unique=True))
def test_upscaled_weights_keep_order_and_reach_the_top(values: list[int]) -> None:
    """The largest weight becomes 65535, order is kept, and each is within half a unit of its exact proportion."""
    scaled = [value for _, value in upscale_weights(enumerate(values))]
    if any(values):
        assert max(scaled) == U16_MAX
        for value, result in zip(values, scaled, strict=True):
            assert abs(2 * (result * max(values) - value * U16_MAX)) <= max(values)
    assert [scaled[i] for i in np.argsort(np.array(values, object))] == sorted(scaled)


def test_upscaling_sorts_rounds_up_halves_and_refuses_negatives() -> None:
    """Rows come out in uid order; exact halves round away from zero; a negative weight is refused."""
    assert upscale_weights([(9, 65534), (2, 32767)]) == [(2, 32768), (9, 65535)]
    assert upscale_weights([(1, 0), (0, 0)]) == [(0, 0), (1, 0)]
    assert upscale_weights([]) == []
    with pytest.raises(InvalidEpochInput, match="not negative"):
        upscale_weights([(0, -1)])
