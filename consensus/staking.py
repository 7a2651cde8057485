"""Stake: delegate it, let it leave, withdraw it; what dividends add to it, and what a slash takes.

A pool is owned in shares. A dividend or a slash changes the worth of each share, so its cost does not grow with the
number of delegators. Shares and units are whole numbers; what rounding leaves stays in the pool, for all its holders.
"""

from __future__ import annotations

from .accounts import credit, fill_treasury, spend
from .errors import AmountOutOfRange, EvidenceRefused, InsufficientStake, NotPermitted, StillBonded
from .evidence import Evidence
from .params import MAX_INTEGER, ChainParams
from .state import (
    Leaving,
    Neuron,
    Overlay,
    Pool,
    Position,
    StateReader,
    change,
    neuron_key,
    pool_key,
    pool_of,
    position_key,
    read_neuron,
    read_pool,
    read_position,
)
from .transactions import SetTake

MAX_LEAVING = 32
"""Parts of one position that may be on their way out at a time."""


def delegate(state: Overlay, holder: bytes, to: bytes, amount: int) -> None:
    """Bond ``amount`` of the holder's balance behind the key ``to``.

    Raises `InsufficientBalance`, or `AmountOutOfRange` if that buys no share.
    """
    name = pool_of(state, to)
    pool = read_pool(state, name)
    spend(state, holder, amount)
    shares = _shares_for(amount, pool.stake, pool.shares)
    if shares == 0 or pool.shares + shares > MAX_INTEGER:
        price = -(-pool.stake // max(1, pool.shares))
        raise AmountOutOfRange("units to stake there", f"at least {price}, and shares under 2**63", amount)
    _put(state, name, change(pool, stake=pool.stake + amount, shares=pool.shares + shares))
    _hold(state, name, holder, shares)


def undelegate(state: Overlay, holder: bytes, name: bytes, amount: int | None, *, release: int) -> None:
    """Let ``amount`` units of the holder's stake, or all of it, leave; it can be withdrawn from ``release`` on.

    Raises `InsufficientStake`, `AmountOutOfRange`, or `NotPermitted` if too many parts leave already.
    """
    pool, position = read_pool(state, name), read_position(state, name, holder)
    shares = position.shares if amount is None else _shares_worth(amount, pool)
    if shares == 0 or shares > position.shares:
        worth = position.shares * pool.stake // pool.shares if pool.shares else 0
        raise InsufficientStake("units of the sender in that pool", f"at least {amount or 1}", worth)
    units = shares * pool.stake // pool.shares
    leaving_shares = _shares_for(units, pool.leaving, pool.leaving_shares)
    if leaving_shares == 0 or pool.leaving_shares + leaving_shares > MAX_INTEGER:
        raise AmountOutOfRange("units to take out", "at least the price of a share of what leaves", units)
    changed = change(
        pool,
        stake=pool.stake - units,
        shares=pool.shares - shares,
        leaving=pool.leaving + units,
        leaving_shares=pool.leaving_shares + leaving_shares,
    )
    parts = _added(position.leaving, Leaving(shares=leaving_shares, release=release))
    _put(state, name, changed)
    state.put(position_key(name, holder), Position(shares=position.shares - shares, leaving=parts))


def withdraw(state: Overlay, holder: bytes, name: bytes, *, height: int) -> None:
    """Move what has left the pool for long enough into the holder's balance. Raises `StillBonded` if nothing has."""
    pool, position = read_pool(state, name), read_position(state, name, holder)
    due = sum(part.shares for part in position.leaving if part.release <= height)
    if due == 0:
        first = min((part.release for part in position.leaving), default=None)
        raise StillBonded("block from which on stake may be withdrawn", first, height)
    units = due * pool.leaving // pool.leaving_shares
    _put(state, name, change(pool, leaving=pool.leaving - units, leaving_shares=pool.leaving_shares - due))
    kept = tuple(part for part in position.leaving if part.release > height)
    state.put(position_key(name, holder), change(position, leaving=kept))
    credit(state, holder, units)


def set_take(state: Overlay, neuron: Neuron, body: SetTake, params: ChainParams, height: int) -> None:
    """Change what a uid's owner takes of its dividends. Raises `NotPermitted` for too much, or two raises in a row."""
    name = pool_of(state, neuron.key)
    pool = read_pool(state, name)
    if body.take_ppm > params.max_take_ppm:
        raise NotPermitted("take in parts per million", f"at most {params.max_take_ppm}", body.take_ppm)
    raised = pool.take_raised
    if body.take_ppm > take_of(pool, params):
        if raised is not None and height < raised + params.take_pause_blocks:
            raise NotPermitted("block of the next raise of the take", raised + params.take_pause_blocks, height)
        raised = height
    _put(state, name, change(pool, take_ppm=body.take_ppm, take_raised=raised))


def take_of(pool: Pool, params: ChainParams) -> int:
    """The part of dividends, in parts per million, that the owner takes first."""
    return params.default_take_ppm if pool.take_ppm is None else pool.take_ppm


def add_dividends(state: Overlay, neuron: Neuron, units: int, params: ChainParams) -> None:
    """Share dividends, which the caller mints, among the holders of a uid's pool after its owner's take."""
    name = pool_of(state, neuron.key)
    pool = read_pool(state, name)
    take = units if pool.shares == 0 else units * take_of(pool, params) // 1_000_000
    shared = change(pool, stake=pool.stake + units - take)
    # the owner's part buys shares at the new price, so that it compounds like everybody's
    bought = min(_shares_for(take, shared.stake, shared.shares), MAX_INTEGER - shared.shares)
    _put(state, name, change(shared, stake=shared.stake + take, shares=shared.shares + bought))
    if bought:
        _hold(state, name, neuron.payee, bought)


def check_evidence(state: StateReader, evidence: Evidence, params: ChainParams, height: int) -> None:
    """Raise `EvidenceRefused` unless a block at ``height`` may slash for it; who signed what was checked before."""
    pool = read_pool(state, pool_of(state, evidence.validator))
    oldest = height - params.unbonding_blocks
    if not oldest <= evidence.height <= height:
        raise EvidenceRefused("height of the offence", f"{max(1, oldest)} to {height}", evidence.height)
    if pool.seated is None or evidence.height > pool.seated + params.tempo:
        raise EvidenceRefused("last seat of the accused among the validators", "at that height", pool.seated)
    if pool.punished is not None and evidence.height <= pool.punished:
        raise EvidenceRefused("height of an offence not yet punished", f"over {pool.punished}", evidence.height)


def slash(state: Overlay, evidence: Evidence, params: ChainParams, height: int) -> int:
    """Punish the stake behind a key that signed twice; returns the units that went to the treasury.

    One punishment covers everything up to its block. The permit goes too, until the next epoch draws permits.
    Raises `EvidenceRefused`.
    """
    check_evidence(state, evidence, params, height)
    name = pool_of(state, evidence.validator)
    pool = read_pool(state, name)
    bonded, leaving = (units * params.slash_ppm // 1_000_000 for units in (pool.stake, pool.leaving))
    _put(state, name, change(pool, stake=pool.stake - bonded, leaving=pool.leaving - leaving, punished=height))
    fill_treasury(state, bonded + leaving)
    neuron = read_neuron(state, pool.uid) if pool.uid is not None else None
    if neuron is not None:
        state.put(neuron_key(neuron.uid), change(neuron, has_permit=False))
    return bonded + leaving


def _shares_for(units: int, held: int, shares: int) -> int:
    """What ``units`` buy of a pool with so many units and shares, rounded down; the first holder pays 1 for 1."""
    return units * shares // held if shares else units


def _shares_worth(units: int, pool: Pool) -> int:
    """The fewest shares that are worth ``units``."""
    return -(-units * pool.shares // pool.stake) if pool.stake else 0


def _put(state: Overlay, name: bytes, pool: Pool) -> None:
    state.put(pool_key(name), pool)


def _hold(state: Overlay, name: bytes, holder: bytes, shares: int) -> None:
    position = read_position(state, name, holder)
    state.put(position_key(name, holder), change(position, shares=position.shares + shares))


def _added(parts: tuple[Leaving, ...], part: Leaving) -> tuple[Leaving, ...]:
    if parts and parts[-1].release == part.release:
        return (*parts[:-1], change(parts[-1], shares=parts[-1].shares + part.shares))
    if len(parts) == MAX_LEAVING:
        raise NotPermitted("parts of one position that leave", f"under {MAX_LEAVING}; withdraw first", len(parts))
    return (*parts, part)
