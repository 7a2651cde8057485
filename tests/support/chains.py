"""Keys, genesis files and heads for tests, made from small numbers so that every run is the same."""

from __future__ import annotations

from collections.abc import Sequence

from moed.consensus.blocks import Block, Commit, CommitSignature, VoteKind, sign_vote
from moed.consensus.genesis import Genesis, GenesisAccount
from moed.consensus.params import DEVNET, ChainParams
from moed.consensus.transactions import Body, SignedTransaction, sign_transaction
from moed.consensus.transition import Head
from moed.protocol.identity import Identity


def key(number: int) -> Identity:
    """The identity with this number; the same in every run."""
    return Identity(number.to_bytes(32, "big"))


def make_genesis(
    stakes: Sequence[int] = (60, 40),
    *,
    balances: Sequence[int] = (),
    params: ChainParams = DEVNET,
) -> Genesis:
    """A genesis with validators ``key(1)``, ``key(2)``… of these stakes, then plain accounts of these balances."""
    validators = [
        GenesisAccount(public_key=key(number).public_key.hex(), stake=stake, is_validator=True)
        for number, stake in enumerate(stakes, start=1)
    ]
    others = [
        GenesisAccount(public_key=key(number).public_key.hex(), balance=balance)
        for number, balance in enumerate(balances, start=1 + len(stakes))
    ]
    return Genesis(name="test", created_ms=1_000_000, params=params, accounts=(*validators, *others))


def sign_commit(genesis: Genesis, block: Block, signers: Sequence[Identity], round_number: int = 0) -> Commit:
    """The commit that these signers give a block."""
    votes = [
        sign_vote(signer, genesis.network_id, VoteKind.PRECOMMIT, block.height, round_number, block.hash)
        for signer in sorted(signers, key=lambda signer: signer.public_key)
    ]
    return Commit(
        height=block.height,
        round=round_number,
        block_hash=block.hash,
        signatures=tuple(CommitSignature(validator=vote.validator, signature=vote.signature) for vote in votes),
    )


def grow(head: Head, signers: Sequence[Identity], transactions: Sequence[SignedTransaction] = ()) -> Block:
    """Build, execute and commit the next block on ``head``; every transaction must apply."""
    block, refused = head.build(transactions, proposer=signers[0].public_key, now_ms=head.time_ms + 1_000)
    assert refused == []
    commit = sign_commit(head.genesis, block, signers)
    head.check_final(block, commit)
    head.advance(head.execute(block), commit)
    return block


def signed(head: Head, sender: Identity, body: Body, nonce: int = 0) -> SignedTransaction:
    """A transaction of ``sender`` for this chain."""
    return sign_transaction(sender, head.network_id, nonce, body)
