"""The purse of a key: what every other part of the ledger pays into and spends from."""

from __future__ import annotations

from .errors import InsufficientBalance
from .state import TOTALS_KEY, Account, Overlay, account_key, change, read_account, read_totals


def put_account(state: Overlay, public_key: bytes, account: Account) -> None:
    """Write the account of a key."""
    state.put(account_key(public_key), account)


def credit(state: Overlay, public_key: bytes, units: int) -> None:
    """Add units to a balance; the caller takes them from somewhere or mints them."""
    account = read_account(state, public_key)
    put_account(state, public_key, change(account, balance=account.balance + units))


def spend(state: Overlay, public_key: bytes, units: int) -> None:
    """Take units from a balance; the caller puts them somewhere. Raises `InsufficientBalance`."""
    account = read_account(state, public_key)
    if account.balance < units:
        raise InsufficientBalance("balance of the sender in units", f"at least {units}", account.balance)
    put_account(state, public_key, change(account, balance=account.balance - units))


def fill_treasury(state: Overlay, units: int) -> None:
    """Add units that were taken from somewhere to what the next epochs pay out."""
    totals = read_totals(state)
    state.put(TOTALS_KEY, change(totals, treasury=totals.treasury + units))
