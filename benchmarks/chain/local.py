"""What needs no network: blocks executed again, their bytes on disk, and what the state root costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from moed.consensus.blocks import Commit, CommitSignature, VoteKind, sign_vote
from moed.consensus.genesis import Genesis, GenesisAccount
from moed.consensus.params import CREDIT, DEVNET
from moed.consensus.state import Account, account_key, encode_state
from moed.consensus.stateroot import StateTree
from moed.consensus.transactions import sign_transaction
from moed.consensus.transition import Head
from moed.consensus.turns import proposer
from moed.daemon.store import Store, verify_chain
from moed.protocol.identity import Identity

from .load import senders, transfer

VALIDATORS = [Identity(bytes((9, number)).ljust(32)) for number in range(4)]
TOUCHED = 1_000


def make_genesis() -> Genesis:
    """Four validators, and the accounts of the load."""
    rows = [
        GenesisAccount(public_key=one.public_key.hex(), stake=100 * CREDIT, is_validator=True) for one in VALIDATORS
    ]
    rows += [GenesisAccount(public_key=one.public_key.hex(), balance=1_000 * CREDIT) for one in senders()]
    return Genesis(name="benchmark", created_ms=1_000_000, params=DEVNET, accounts=tuple(rows))


def write_chain(path: Path, genesis: Genesis, signers: Sequence[Identity], blocks: int, transfers: int) -> int:
    """Put a chain of so many blocks with so many transfers each on disk; returns the bytes of the database."""
    by_key = {one.public_key: one for one in signers}
    keys = senders()
    with Store(path, genesis) as store:
        empty = path.stat().st_size
        network_id = genesis.network_id  # which is computed at each call
        head = store.load_head()
        for number in range(blocks):
            waiting = [
                sign_transaction(
                    keys[one % len(keys)],
                    network_id,
                    one // len(keys),
                    transfer(keys[(one + 1) % len(keys)].public_key, 0),
                )
                for one in range(number * transfers, (number + 1) * transfers)
            ]
            turn = proposer(head.validators, 0)
            block, refused = head.build(waiting, proposer=turn, now_ms=head.time_ms + 1_000)
            if refused:
                raise AssertionError(f"{len(refused)} transfers of the benchmark were refused: {refused[0][1]}")
            votes = [
                sign_vote(by_key[key], network_id, VoteKind.PRECOMMIT, block.height, 0, block.hash)
                for key in sorted(by_key)
            ]
            commit = Commit(
                height=block.height,
                round=0,
                block_hash=block.hash,
                signatures=tuple(CommitSignature(validator=one.validator, signature=one.signature) for one in votes),
            )
            executed = head.execute(block)
            store.append(executed, commit)
            head.advance(executed, commit)
    return path.stat().st_size - empty  # closing it has moved the write-ahead log into the file


def executed_again_per_s(path: Path, genesis: Genesis) -> float:
    """Blocks a second when the whole chain is checked and executed from its genesis."""
    with Store(path, genesis) as store:
        began = time.perf_counter()
        head: Head = verify_chain(store)
        return head.height / (time.perf_counter() - began)


def state_root_ms(accounts: int, repeats: int) -> list[float]:
    """Milliseconds for the root after a block that touches 1,000 of so many accounts."""
    tree = StateTree()
    keys = [account_key(number.to_bytes(32, "big")) for number in range(accounts)]
    for start in range(0, accounts, 50_000):
        some = {key: Account(balance=start + 1) for key in keys[start : start + 50_000]}
        tree.apply(tree.preview(encode_state(some)))
    step = accounts // TOUCHED
    samples = []
    for repeat in range(repeats):
        touched = {key: Account(balance=2 + repeat) for key in keys[repeat::step][:TOUCHED]}
        encoded = encode_state(touched)
        began = time.perf_counter()
        tree.preview(encoded)
        samples.append((time.perf_counter() - began) * 1000)
    return samples
