"""The metagraph at an epoch's end: what the ledger gives to Yuma, and what Yuma's answer does to the ledger."""

from __future__ import annotations

from dataclasses import dataclass

from .accounts import credit
from .epoch_inputs import EpochInputs
from .epoch_result import EpochResult
from .params import ChainParams, emission_at
from .staking import add_dividends
from .state import (
    TOTALS_KEY,
    VALIDATORS_KEY,
    Neuron,
    Overlay,
    StateReader,
    change,
    neuron_key,
    pool_key,
    pool_of,
    read_neurons,
    read_pool,
    read_totals,
    read_validators,
    stake_behind,
)
from .turns import replace_members
from .yuma import epoch


def epoch_budget(params: ChainParams, height: int) -> int:
    """Units that the epoch ending at ``height`` may mint: the emission of each of its blocks."""
    return sum(emission_at(params, one) for one in range(height - params.tempo + 1, height + 1))


def epoch_inputs(state: StateReader, params: ChainParams, height: int) -> EpochInputs:
    """What the epoch ending at ``height`` depends on, read from the state before it."""
    neurons = read_neurons(state)
    totals = read_totals(state)
    return EpochInputs(
        n=len(neurons),
        block=height,
        last_tempo_block=totals.epoch_block + 1 if totals.epoch else height - params.tempo,
        emission=epoch_budget(params, height),
        stake=[stake_behind(state, neuron.key) for neuron in neurons],
        validator_permit=[neuron.has_permit and not neuron.has_expired(height) for neuron in neurons],
        last_update=[neuron.last_update for neuron in neurons],
        # no weight counts on a uid that came after it, and so none on one whose key has expired
        block_at_registration=[height if neuron.has_expired(height) else neuron.registered_block for neuron in neurons],
        weights_u16=[list(neuron.weights) for neuron in neurons],
        bonds_u16=[list(neuron.bonds) for neuron in neurons],
        # a commit expires when its epoch to reveal ends, so all that are kept count
        commit_blocks=[_earliest_commit(neuron) for neuron in neurons] if params.commit_reveal else None,
        yuma_version=params.yuma_version,
        kappa_u16=params.kappa_u16,
        bonds_penalty_u16=params.bonds_penalty_u16,
        bonds_moving_average_ppm=params.bonds_moving_average_ppm,
        activity_cutoff=params.activity_cutoff,
        min_stake=params.min_stake,
        max_allowed_validators=params.max_allowed_validators,
    )


def _earliest_commit(neuron: Neuron) -> int | None:
    return min((commit.block for commit in neuron.commits), default=None)


@dataclass(frozen=True, slots=True)
class ClosedEpoch:
    """An epoch that a block ended: the how manieth, and what it was computed from."""

    number: int
    inputs: EpochInputs


def close_epoch(state: Overlay, params: ChainParams, height: int) -> ClosedEpoch | None:
    """Run the epoch that ends at ``height``: pay miners and validators, store what it found, seat new validators.

    Returns None if nobody is registered.
    """
    neurons = read_neurons(state)
    inputs = epoch_inputs(state, params, height) if neurons else None
    if inputs is not None:
        result = epoch(inputs)
        _store(state, neurons, result, height)
        _expire_commits(state)
        _pay(state, neurons, result, params)
        _seat(state, height)
    totals = read_totals(state)
    state.put(TOTALS_KEY, change(totals, epoch=totals.epoch + 1, epoch_block=height))
    return None if inputs is None else ClosedEpoch(totals.epoch + 1, inputs)


def _store(state: Overlay, neurons: list[Neuron], result: EpochResult, height: int) -> None:
    bonds = result.stored_bonds_u16.to_lists()
    for uid, neuron in enumerate(neurons):
        changed = change(
            neuron,
            has_permit=bool(result.new_validator_permit[uid]) and not neuron.has_expired(height),
            is_active=bool(result.active[uid]),
            consensus_u16=int(result.consensus_u16[uid]),
            incentive_u16=int(result.incentive_u16[uid]),
            dividends_u16=int(result.dividends_u16[uid]),
            trust_u16=int(result.validator_trust_u16[uid]),
            emission=int(result.emission[uid]),
            incentive_emission=int(result.server_emission[uid]),
            bonds=tuple((int(one), int(bond)) for one, bond in bonds[uid]),
        )
        state.put(neuron_key(uid), changed)


def _expire_commits(state: Overlay) -> None:
    """Drop commitments of the epoch before the one that ends: the time to reveal them is over."""
    ending = read_totals(state).epoch
    for neuron in read_neurons(state):
        kept = tuple(commit for commit in neuron.commits if commit.epoch >= ending)
        if kept != neuron.commits:
            state.put(neuron_key(neuron.uid), change(neuron, commits=kept))


def _pay(state: Overlay, neurons: list[Neuron], result: EpochResult, params: ChainParams) -> None:
    """Incentive goes to the balance of the miner's owner, dividends to the validator's pool, where they compound.

    The treasury is paid out first; only what is missing is minted.
    """
    paid = 0
    for uid, neuron in enumerate(neurons):
        incentive, dividends = int(result.server_emission[uid]), int(result.validator_emission[uid])
        if incentive:
            credit(state, neuron.payee, incentive)
        if dividends:
            add_dividends(state, neuron, dividends, params)
        paid += incentive + dividends
    totals = read_totals(state)
    recycled = min(paid, totals.treasury)
    changed = change(totals, supply=totals.supply + paid - recycled, treasury=totals.treasury - recycled)
    state.put(TOTALS_KEY, changed)


def _seat(state: Overlay, height: int) -> None:
    """The validators of the next epoch: whoever holds a permit and stake now.

    An empty set would end the chain, so where that is nobody the old ones go on; they answer for what they sign too.
    """
    powers: dict[bytes, int] = {}
    for neuron in read_neurons(state):
        stake = stake_behind(state, neuron.key)
        if neuron.has_permit and stake > 0:
            powers[neuron.key] = stake
    if powers:
        state.put(VALIDATORS_KEY, replace_members(read_validators(state), powers))
    for member in read_validators(state).members:
        name = pool_of(state, member.key)
        state.put(pool_key(name), change(read_pool(state, name), seated=height))
