"""The ledger: `apply` one transaction to the state, or refuse it and leave the state as it was."""

from __future__ import annotations

from .errors import (
    AlreadyRegistered,
    InsufficientBalance,
    NoFreeSlot,
    NotPermitted,
    NotRegistered,
    TooManyRegistrations,
    WrongNonce,
    WrongReveal,
)
from .params import ChainParams
from .state import (
    TOTALS_KEY,
    Account,
    Neuron,
    Overlay,
    WeightsCommit,
    account_key,
    change,
    neuron_key,
    read_account,
    read_neuron,
    read_neurons,
    read_totals,
)
from .transactions import (
    AddStake,
    CommitWeights,
    Register,
    RevealWeights,
    SetWeights,
    SignedTransaction,
    Transfer,
    WeightRow,
    weights_commitment,
)
from .yuma import upscale_weights


def apply(state: Overlay, transaction: SignedTransaction, *, params: ChainParams, height: int) -> None:
    """Apply one transaction, already checked for its signature, in the block at ``height``.

    Raises a subclass of `InvalidTransaction`; then ``state`` is unchanged. Units are conserved: no
    transaction makes or destroys any.
    """
    step = Overlay(state)
    sender = read_account(step, transaction.sender)
    if transaction.nonce != sender.nonce:
        raise WrongNonce("next nonce of the sender", sender.nonce, transaction.nonce)
    put_account(step, transaction.sender, change(sender, nonce=sender.nonce + 1))
    match transaction.body:
        case Transfer() as body:
            _transfer(step, transaction.sender, body)
        case AddStake() as body:
            _add_stake(step, transaction.sender, body)
        case Register():
            _register(step, transaction.sender, params, height)
        case SetWeights() as body:
            _require_commit_reveal(params, is_used=False)
            _set_weights(step, _validator_of(step, transaction.sender), body.weights, height)
        case CommitWeights() as body:
            _require_commit_reveal(params, is_used=True)
            _commit_weights(step, _validator_of(step, transaction.sender), body, height)
        case RevealWeights() as body:
            _require_commit_reveal(params, is_used=True)
            _reveal_weights(step, _validator_of(step, transaction.sender), body)
    state.absorb(step)


def put_account(state: Overlay, public_key: bytes, account: Account) -> None:
    """Write the account of a key."""
    state.put(account_key(public_key), account)


def credit(state: Overlay, public_key: bytes, *, balance: int = 0, stake: int = 0) -> None:
    """Add units to an account; the caller takes them from somewhere or mints them."""
    account = read_account(state, public_key)
    put_account(state, public_key, change(account, balance=account.balance + balance, stake=account.stake + stake))


def _spend(state: Overlay, public_key: bytes, amount: int) -> None:
    account = read_account(state, public_key)
    if account.balance < amount:
        raise InsufficientBalance("balance of the sender in units", f"at least {amount}", account.balance)
    put_account(state, public_key, change(account, balance=account.balance - amount))


def _transfer(state: Overlay, sender: bytes, body: Transfer) -> None:
    _spend(state, sender, body.amount)
    credit(state, body.to, balance=body.amount)


def _add_stake(state: Overlay, sender: bytes, body: AddStake) -> None:
    _spend(state, sender, body.amount)
    credit(state, sender, stake=body.amount)


def _register(state: Overlay, sender: bytes, params: ChainParams, height: int) -> None:
    account = read_account(state, sender)
    if account.uid is not None:
        raise AlreadyRegistered("uid of the sender", None, account.uid)
    totals = read_totals(state)
    if totals.registrations_in_block >= params.max_registrations_per_block:
        limit = params.max_registrations_per_block
        raise TooManyRegistrations("registrations in this block", f"under {limit}", limit)
    uid = totals.uids
    if uid == params.max_uids:
        uid = _prune(state, params, height)
    else:
        totals = change(totals, uids=uid + 1)
    state.put(TOTALS_KEY, change(totals, registrations_in_block=totals.registrations_in_block + 1))
    state.put(neuron_key(uid), Neuron(uid=uid, key=sender, registered_block=height, last_update=height))
    put_account(state, sender, change(account, uid=uid))


def _prune(state: Overlay, params: ChainParams, height: int) -> int:
    """Free the slot of the neuron that earned least in the last epoch; returns its uid.

    Ties go to the older registration, then to the lower uid (the reference chain's order). Validators that sign
    blocks and neurons within their immunity period stay.
    """
    candidates = [
        neuron
        for neuron in read_neurons(state)
        if not neuron.has_permit and height - neuron.registered_block >= params.immunity_period
    ]
    if not candidates:
        raise NoFreeSlot("slots that may be given up", "at least one", 0)
    gone = min(candidates, key=lambda neuron: (neuron.emission, neuron.registered_block, neuron.uid))
    put_account(state, gone.key, change(read_account(state, gone.key), uid=None))
    for neuron in read_neurons(state):
        # what others said of the old holder must not pay the new one
        weights = tuple((uid, 0 if uid == gone.uid else weight) for uid, weight in neuron.weights)
        bonds = tuple((uid, bond) for uid, bond in neuron.bonds if uid != gone.uid)
        if (weights, bonds) != (neuron.weights, neuron.bonds):
            state.put(neuron_key(neuron.uid), change(neuron, weights=weights, bonds=bonds))
    return gone.uid


def _require_commit_reveal(params: ChainParams, *, is_used: bool) -> None:
    if params.commit_reveal != is_used:
        asked = "committed first" if is_used else "set in the open"
        raise NotPermitted("weights on this network", "set in the open" if is_used else "committed first", asked)


def _validator_of(state: Overlay, sender: bytes) -> Neuron:
    """The sender's neuron, which must hold a permit."""
    account = read_account(state, sender)
    neuron = read_neuron(state, account.uid) if account.uid is not None else None
    if neuron is None:
        raise NotRegistered("uid of the sender", "a registered one", None)
    if not neuron.has_permit:
        raise NotPermitted("validator permit of the sender", True, False)
    return neuron


def _set_weights(state: Overlay, neuron: Neuron, row: WeightRow, height: int) -> None:
    slots = read_totals(state).uids
    unknown = [uid for uid, _ in row if uid >= slots]
    if unknown:
        raise NotRegistered("uids of the weight row", f"under {slots}", unknown[0])
    # the row's largest weight becomes 65535, so that no validator gains by a coarse or a small scale
    state.put(neuron_key(neuron.uid), change(neuron, weights=tuple(upscale_weights(row)), last_update=height))


def _commit_weights(state: Overlay, neuron: Neuron, body: CommitWeights, height: int) -> None:
    epoch = read_totals(state).epoch
    earlier = tuple(one for one in neuron.commits if one.epoch != epoch)
    commit = WeightsCommit(epoch=epoch, block=height, commitment=body.commitment)
    state.put(neuron_key(neuron.uid), change(neuron, commits=(*earlier, commit)))


def _reveal_weights(state: Overlay, neuron: Neuron, body: RevealWeights) -> None:
    """Put a committed row in force, as of the block of its commit: a uid taken since then is not the one it means."""
    due = read_totals(state).epoch - 1
    commit = next((one for one in neuron.commits if one.epoch == due), None)
    if commit is None:
        raise WrongReveal("commitment of the sender to reveal", f"one of epoch {due}", None)
    commitment = weights_commitment(neuron.key, body.salt, body.weights)
    if commitment != commit.commitment:
        raise WrongReveal("commitment of the weights", commit.commitment.hex(), commitment.hex())
    left = tuple(one for one in neuron.commits if one is not commit)
    _set_weights(state, change(neuron, commits=left), body.weights, commit.block)
