"""Uids: who gets one, at what price, whose it replaces, and which key works for it."""

from __future__ import annotations

from .accounts import put_account, spend
from .errors import AlreadyRegistered, KeyInUse, NoFreeSlot, NotPermitted, NotRegistered, TooManyRegistrations
from .params import ChainParams
from .state import (
    TOTALS_KEY,
    Account,
    Neuron,
    Overlay,
    Pool,
    Position,
    StateReader,
    Totals,
    change,
    neuron_key,
    pool_key,
    pool_of,
    read_account,
    read_neuron,
    read_neurons,
    read_pool,
    read_position,
    read_totals,
)
from .transactions import RotateKey, SetOwner


def burn_price(totals: Totals, params: ChainParams, height: int) -> int:
    """Units that a registration burns where every slot is taken: raised by each one, halved in each half-life since.

    Between two halvings it falls in a straight line; it never leaves ``min_burn`` to ``max_burn``.
    """
    halvings, rest = divmod(max(0, height - totals.burn_block), params.burn_half_life)
    start = totals.burn_price >> min(halvings, 63)
    price = start - (start - start // 2) * rest // params.burn_half_life
    return min(max(price, params.min_burn), params.max_burn)


def registration_price(totals: Totals, params: ChainParams, height: int) -> int:
    """Units that the next registration burns: none while slots are free."""
    return 0 if totals.uids < params.max_uids else burn_price(totals, params, height)


def register(
    state: Overlay, key: bytes, owner: bytes, payer: bytes, params: ChainParams, height: int, *, expires: int = 0
) -> None:
    """Give ``key`` a uid of ``owner``'s (empty: its own); ``payer`` burns the price.

    Raises `AlreadyRegistered`, `NotPermitted`, `TooManyRegistrations`, `NoFreeSlot` or `InsufficientBalance`.
    """
    check_registration(state, key, owner, payer)
    totals = read_totals(state)
    limit = params.max_registrations_per_block
    if totals.registrations_in_block >= limit:
        raise TooManyRegistrations("registrations in this block", f"under {limit}", totals.registrations_in_block)
    name, uid = pool_of(state, key), totals.uids
    if uid == params.max_uids:
        # paid first: whoever cannot pay must not cost the work of a replacement
        totals = _burn(state, payer, totals, params, height)
        uid = _prune(state, params, height)
    else:
        totals = change(totals, uids=uid + 1)
    state.put(TOTALS_KEY, change(totals, registrations_in_block=totals.registrations_in_block + 1))
    neuron = Neuron(uid=uid, key=key, owner=owner, key_expires=expires, registered_block=height, last_update=height)
    state.put(neuron_key(uid), neuron)
    put_account(state, key, change(read_account(state, key), uid=uid))
    state.put(pool_key(name), change(read_pool(state, name), uid=uid))


def check_registration(state: StateReader, key: bytes, owner: bytes, payer: bytes) -> None:
    """Whether ``key`` may have a uid at all, whatever it costs. Raises `AlreadyRegistered` or `NotPermitted`."""
    account = read_account(state, key)
    pool = read_pool(state, pool_of(state, key))
    held = account.uid if account.uid is not None else pool.uid
    if held is not None:
        raise AlreadyRegistered("uid of the key, or of the stake behind it", None, held)
    _check_last_owner(account, pool, owner, payer)


def _check_last_owner(account: Account, pool: Pool, owner: bytes, payer: bytes) -> None:
    """Stake whose uid was given up gets a new one from the owner of that one alone.

    A key that was replaced, perhaps because it was stolen, still stands for the pool, and would else bring it under
    itself. A key that came by no rotation was the last to work for the uid: it may come back, for the same owner.
    """
    last = pool.last_owner
    if last is None or payer == last or (account.pool is None and (owner == last or not pool.shares)):
        return
    raise NotPermitted("last owner of the stake behind the key", last.hex(), payer.hex())


def _burn(state: Overlay, payer: bytes, totals: Totals, params: ChainParams, height: int) -> Totals:
    price = burn_price(totals, params, height)
    spend(state, payer, price)
    raised = min(price + price * params.burn_step_ppm // 1_000_000, params.max_burn)
    return change(totals, burned=totals.burned + price, burn_price=raised, burn_block=height)


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
    name = pool_of(state, gone.key)
    put_account(state, gone.key, change(read_account(state, gone.key), uid=None))
    state.put(pool_key(name), change(read_pool(state, name), uid=None, last_owner=gone.payee))
    for neuron in read_neurons(state):
        # what others said of the old holder must not pay the new one
        weights = tuple((uid, 0 if uid == gone.uid else weight) for uid, weight in neuron.weights)
        bonds = tuple((uid, bond) for uid, bond in neuron.bonds if uid != gone.uid)
        if (weights, bonds) != (neuron.weights, neuron.bonds):
            state.put(neuron_key(neuron.uid), change(neuron, weights=weights, bonds=bonds))
    return gone.uid


def owned(state: Overlay, uid: int, sender: bytes) -> Neuron:
    """The neuron of a uid that the sender owns. Raises `NotRegistered` or `NotPermitted`."""
    neuron = read_neuron(state, uid)
    if neuron is None:
        raise NotRegistered("uid", f"under {read_totals(state).uids}", uid)
    if neuron.payee != sender:
        raise NotPermitted("owner of the uid", neuron.payee.hex(), sender.hex())
    return neuron


def rotate_key(state: Overlay, sender: bytes, body: RotateKey) -> None:
    """Let another key work for a uid; rank and stake stay. Raises `KeyInUse`, `NotRegistered` or `NotPermitted`.

    A key that was replaced goes on standing for the pool: what it signed before can be punished, and it can never
    get a uid of its own beside that pool. For the same reason a key whose own pool ever had a seat takes no other, nor
    one that has stake in its own pool, which would not follow it. What others put there is theirs to take out, and no
    hindrance: a stranger's smallest coin would else stop a rotation.
    """
    neuron = owned(state, body.uid, sender)
    if body.key != neuron.key:
        name = pool_of(state, neuron.key)
        fresh, own = read_account(state, body.key), read_pool(state, body.key)
        is_bound = own.seated is not None or read_position(state, body.key, body.key) != Position()
        if fresh.uid is not None or fresh.pool not in (None, name) or (is_bound and body.key != name):
            raise KeyInUse("uid, pool, stake and last seat of the new key", "none", (fresh.uid, own.stake, own.seated))
        put_account(state, neuron.key, change(read_account(state, neuron.key), uid=None, pool=name))
        put_account(state, body.key, change(read_account(state, body.key), uid=neuron.uid, pool=name))
    # an owner that was never named is the old key itself, and stays that
    state.put(neuron_key(neuron.uid), change(neuron, key=body.key, owner=neuron.payee, key_expires=body.expires))


def set_owner(state: Overlay, sender: bytes, body: SetOwner) -> None:
    """Hand a uid of the sender's to another owner. Raises `NotRegistered` or `NotPermitted`."""
    state.put(neuron_key(body.uid), change(owned(state, body.uid, sender), owner=body.owner))
