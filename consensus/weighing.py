"""Rows of weights: set in the open, or committed to in one epoch and shown in the next."""

from __future__ import annotations

from .errors import KeyExpired, NotPermitted, NotRegistered, WrongReveal
from .params import ChainParams
from .state import (
    Neuron,
    Overlay,
    StateReader,
    WeightsCommit,
    change,
    neuron_key,
    read_account,
    read_neuron,
    read_totals,
)
from .transactions import CommitWeights, RevealWeights, SetWeights, WeightRow, weights_commitment
from .yuma import upscale_weights


def set_weights(state: Overlay, sender: bytes, body: SetWeights, params: ChainParams, height: int) -> None:
    """Put a row in force at once, where rows are not hidden first."""
    _require_commit_reveal(params, is_used=False)
    _put_row(state, _validator_of(state, sender, height), body.weights, height)


def commit_weights(state: Overlay, sender: bytes, body: CommitWeights, params: ChainParams, height: int) -> None:
    """Keep the hash of a row for the next epoch; the last one of an epoch counts."""
    _require_commit_reveal(params, is_used=True)
    neuron = _validator_of(state, sender, height)
    epoch = read_totals(state).epoch
    earlier = tuple(one for one in neuron.commits if one.epoch != epoch)
    commit = WeightsCommit(epoch=epoch, block=height, commitment=body.commitment)
    state.put(neuron_key(neuron.uid), change(neuron, commits=(*earlier, commit)))


def reveal_weights(state: Overlay, sender: bytes, body: RevealWeights, params: ChainParams, height: int) -> None:
    """Put a committed row in force, as of the block of its commit: a uid taken since then is not the one it means."""
    _require_commit_reveal(params, is_used=True)
    neuron = _validator_of(state, sender, height)
    due = read_totals(state).epoch - 1
    commit = next((one for one in neuron.commits if one.epoch == due), None)
    if commit is None:
        raise WrongReveal("commitment of the sender to reveal", f"one of epoch {due}", None)
    commitment = weights_commitment(neuron.key, body.salt, body.weights)
    if commitment != commit.commitment:
        raise WrongReveal("commitment of the weights", commit.commitment.hex(), commitment.hex())
    left = tuple(one for one in neuron.commits if one is not commit)
    _put_row(state, change(neuron, commits=left), body.weights, commit.block)


def is_first_of_epoch(state: StateReader, sender: bytes, body: SetWeights | CommitWeights | RevealWeights) -> bool:
    """Whether a validator sends this for the first time in the epoch under way; nobody else ever does."""
    uid = read_account(state, sender).uid
    neuron = read_neuron(state, uid) if uid is not None else None
    if neuron is None or not neuron.has_permit:
        return False
    totals = read_totals(state)
    if isinstance(body, CommitWeights):
        return all(commit.epoch != totals.epoch for commit in neuron.commits)
    if isinstance(body, SetWeights):
        return neuron.last_update <= max(totals.epoch_block, neuron.registered_block)
    return True  # a commitment is shown once


def _require_commit_reveal(params: ChainParams, *, is_used: bool) -> None:
    if params.commit_reveal != is_used:
        asked = "committed first" if is_used else "set in the open"
        raise NotPermitted("weights on this network", "set in the open" if is_used else "committed first", asked)


def _validator_of(state: Overlay, sender: bytes, height: int) -> Neuron:
    """The sender's neuron, which must hold a permit."""
    account = read_account(state, sender)
    neuron = read_neuron(state, account.uid) if account.uid is not None else None
    if neuron is None:
        raise NotRegistered("uid of the sender", "a registered one", None)
    if neuron.has_expired(height):
        raise KeyExpired("block from which on the work key may not act", f"after {height}", neuron.key_expires)
    if not neuron.has_permit:
        raise NotPermitted("validator permit of the sender", True, False)
    return neuron


def _put_row(state: Overlay, neuron: Neuron, row: WeightRow, block: int) -> None:
    slots = read_totals(state).uids
    unknown = [uid for uid, _ in row if uid >= slots]
    if unknown:
        raise NotRegistered("uids of the weight row", f"under {slots}", unknown[0])
    # the row's largest weight becomes 65535, so that no validator gains by a coarse or a small scale
    state.put(neuron_key(neuron.uid), change(neuron, weights=tuple(upscale_weights(row)), last_update=block))
