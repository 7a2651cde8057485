"""The ledger: `apply` one transaction to the state, or refuse it and leave the state as it was."""

from __future__ import annotations

from .accounts import credit, fill_treasury, put_account, spend
from .errors import WrongNonce
from .fees import fee_of
from .params import ChainParams
from .registration import owned, register, rotate_key, set_owner
from .staking import delegate, set_take, slash, undelegate, withdraw
from .state import Overlay, change, read_account
from .transactions import (
    AddStake,
    Body,
    CommitWeights,
    Delegate,
    Register,
    ReportEvidence,
    RevealWeights,
    RotateKey,
    SetOwner,
    SetTake,
    SetWeights,
    SignedTransaction,
    Sponsor,
    Transfer,
    Undelegate,
    Withdraw,
)
from .weighing import commit_weights, reveal_weights, set_weights


def apply(state: Overlay, transaction: SignedTransaction, *, params: ChainParams, height: int) -> None:
    """Apply one transaction, already checked for its signatures, in the block at ``height``.

    Raises a subclass of `InvalidTransaction`; then ``state`` is unchanged. Units are conserved: no
    transaction makes or destroys any.
    """
    step = Overlay(state)
    sender = read_account(step, transaction.sender)
    if transaction.nonce != sender.nonce:
        raise WrongNonce("next nonce of the sender", sender.nonce, transaction.nonce)
    put_account(step, transaction.sender, change(sender, nonce=sender.nonce + 1))
    fee = fee_of(step, transaction, params)
    if fee:
        spend(step, transaction.sender, fee)
        fill_treasury(step, fee)
    _apply_body(step, transaction.sender, transaction.body, params, height)
    state.absorb(step)


def _apply_body(state: Overlay, sender: bytes, body: Body, params: ChainParams, height: int) -> None:
    match body:
        case Transfer():
            spend(state, sender, body.amount)
            credit(state, body.to, body.amount)
        case AddStake():
            delegate(state, sender, sender, body.amount)
        case Delegate():
            delegate(state, sender, body.to, body.amount)
        case Undelegate():
            undelegate(state, sender, body.pool, body.amount, release=height + params.unbonding_blocks)
        case Withdraw():
            withdraw(state, sender, body.pool, height=height)
        case SetTake():
            set_take(state, owned(state, body.uid, sender), body, params, height)
        case Register():
            register(state, sender, body.owner or b"", sender, params, height)
        case Sponsor():
            register(state, body.key, sender, sender, params, height, expires=body.expires)
        case RotateKey():
            rotate_key(state, sender, body)
        case SetOwner():
            set_owner(state, sender, body)
        case SetWeights():
            set_weights(state, sender, body, params, height)
        case CommitWeights():
            commit_weights(state, sender, body, params, height)
        case RevealWeights():
            reveal_weights(state, sender, body, params, height)
        case ReportEvidence():
            slash(state, body.evidence, params, height)
