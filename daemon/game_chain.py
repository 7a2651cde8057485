"""The two-team game through the ledger: real keys, real blocks on a real disk, weights hidden and shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moed.consensus.blocks import Block, Commit, CommitSignature, VoteKind, sign_vote
from moed.consensus.fixedpoint import U16_MAX
from moed.consensus.games import TeamGame
from moed.consensus.genesis import Genesis, GenesisAccount
from moed.consensus.params import ChainParams
from moed.consensus.state import read_neurons
from moed.consensus.transactions import (
    Body,
    CommitWeights,
    Register,
    RevealWeights,
    SignedTransaction,
    WeightRow,
    sign_transaction,
    weights_commitment,
)
from moed.consensus.transition import Head
from moed.protocol.identity import Identity

from .store import Store, verify_chain

_TEMPO = 4
_FIRST_KEY = 1


@dataclass(frozen=True, slots=True)
class ChainOutcome:
    """The honest team's part of what the ledger paid in the epoch in which the weights were in force."""

    honest_part: float
    height: int
    state_root: str


def play_on_chain(game: TeamGame, honest_utility: float, cabal_weight: float, folder: Path) -> ChainOutcome:
    """Play one epoch of ``game`` in blocks that all validators sign, keep them in ``folder``, and check them all.

    Raises `StoreFailed` if the disk refuses, `StoreCorrupt` if the check finds anything else than was written.
    """
    keys = [Identity((_FIRST_KEY + number).to_bytes(32, "big")) for number in range(game.uids)]
    validators, servers = keys[: game.validators], keys[game.validators :]
    genesis = _genesis(game, validators)
    rows = [_row(game, weights.tolist()) for weights in game.weights(honest_utility, cabal_weight)]
    salts = [key.public_key for key in validators]  # nothing is secret in a game with oneself
    commits = [CommitWeights(commitment=weights_commitment(key.public_key, key.public_key, row))
               for key, row in zip(validators, rows, strict=True)]  # fmt: skip
    reveals = [RevealWeights(weights=row, salt=salt) for row, salt in zip(rows, salts, strict=True)]
    sent = {
        1: _signed(genesis, servers, [Register()] * len(servers), 0),
        2: _signed(genesis, validators, commits, 0),
        _TEMPO + 1: _signed(genesis, validators, reveals, 1),
    }
    with Store(folder / "chain.db", genesis) as store:
        head = store.load_head()
        while head.height < 2 * _TEMPO:
            _grow(head, store, validators, sent.get(head.height + 1, []))
        checked = verify_chain(store)
    neurons = read_neurons(checked.state)
    incentive = np.array([neuron.incentive_emission for neuron in neurons], np.float64)
    dividends = np.array([neuron.emission for neuron in neurons], np.float64) - incentive
    part = game.honest_part(incentive / incentive.sum(), dividends / dividends.sum())
    return ChainOutcome(part, checked.height, checked.state_root.hex())


def _genesis(game: TeamGame, validators: Sequence[Identity]) -> Genesis:
    params = ChainParams(
        tempo=_TEMPO,
        min_stake=0,
        max_uids=game.uids,
        max_allowed_validators=game.validators,
        max_registrations_per_block=game.servers,
        kappa_u16=int(game.rules.kappa * U16_MAX),
        bonds_penalty_u16=int(game.rules.beta * U16_MAX),
    )
    accounts = tuple(
        GenesisAccount(public_key=key.public_key.hex(), stake=int(stake), is_validator=True)
        for key, stake in zip(validators, game.stake, strict=False)
    )
    return Genesis(name="game", created_ms=0, params=params, accounts=accounts)


def _row(game: TeamGame, weights: Iterable[int]) -> WeightRow:
    return tuple(enumerate(weights, start=game.validators))


def _signed(genesis: Genesis, keys: Sequence[Identity], bodies: Sequence[Body], nonce: int) -> list[SignedTransaction]:
    network = genesis.network_id
    return [sign_transaction(key, network, nonce, body) for key, body in zip(keys, bodies, strict=True)]


def _grow(head: Head, store: Store, validators: Sequence[Identity], sent: Sequence[SignedTransaction]) -> None:
    block, refused = head.build(sent, proposer=validators[0].public_key, now_ms=head.time_ms + 1)
    if refused:
        raise refused[0][1]
    commit = _commit_of_all(head.genesis, block, validators)
    head.check_final(block, commit)
    executed = head.execute(block)
    store.append(executed, commit)
    head.advance(executed, commit)


def _commit_of_all(genesis: Genesis, block: Block, validators: Iterable[Identity]) -> Commit:
    votes = [
        sign_vote(validator, genesis.network_id, VoteKind.PRECOMMIT, block.height, 0, block.hash)
        for validator in sorted(validators, key=lambda one: one.public_key)
    ]
    signatures = tuple(CommitSignature(validator=vote.validator, signature=vote.signature) for vote in votes)
    return Commit(height=block.height, round=0, block_hash=block.hash, signatures=signatures)
