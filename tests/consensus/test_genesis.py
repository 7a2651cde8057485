"""A genesis that no network could live with is refused when it is read, and named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moed.consensus.errors import InvalidGenesis
from moed.consensus.genesis import MAX_GENESIS_BYTES, decode_genesis, encode_genesis, genesis_state
from moed.consensus.params import MAX_INTEGER
from moed.consensus.state import read_account, read_totals, read_validators
from support.chains import key, make_genesis

GENESIS = make_genesis((60, 40), balances=(1_000,))


def altered(**fields: Any) -> bytes:
    """The file with some of its fields, or of its parameters, replaced."""
    raw = json.loads(encode_genesis(GENESIS))
    for name, value in fields.items():
        (raw["params"] if name in raw["params"] else raw)[name] = value
    return json.dumps(raw).encode()


def account(number: int, **fields: Any) -> dict[str, Any]:
    return {"public_key": key(number).public_key.hex(), **fields}


def test_a_genesis_is_the_same_after_its_file() -> None:
    """The file gives back the accounts, the constants and the network's id."""
    again = decode_genesis(encode_genesis(GENESIS))
    assert again == GENESIS
    assert again.network_id == GENESIS.network_id
    assert read_totals(genesis_state(again)).supply == 1_100


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("emission_per_block", 2**62),
        ("emission_per_block", 2**70),
        ("halving_interval", 2**50),
        ("max_allowed_validators", 100_000),
        ("max_block_bytes", 1 << 24),
        ("min_stake", 2**64),
        ("activity_cutoff", 2**64),
        ("created_ms", 2**64),
        ("tempo", 0),
        ("tempo", GENESIS.params.unbonding_blocks),
        ("unbonding_blocks", GENESIS.params.tempo),
        ("accounts", []),
        ("accounts", [account(1, stake=1)]),
        ("accounts", [account(1, stake=1, is_validator=True), account(1)]),
        ("accounts", [account(1, stake=MAX_INTEGER, is_validator=True), account(2, balance=1)]),
        ("accounts", [account(1, stake=2**64, is_validator=True)]),
        ("nonsense", 1),
        ("workloads", []),
        ("workloads", ["inference", "inference"]),
        ("workloads", ["gambling"]),
    ],
)
def test_a_value_that_would_stop_the_chain_later_is_refused_now(name: str, value: object) -> None:
    """Each would be met only at a block or an epoch, when every node of the network already runs."""
    with pytest.raises(InvalidGenesis):
        decode_genesis(altered(**{name: value}))


def test_a_file_over_the_limit_is_not_read() -> None:
    """However well it is formed: a genesis comes from strangers, and is parsed whole."""
    data = encode_genesis(GENESIS)
    decode_genesis(data + b" " * (MAX_GENESIS_BYTES - len(data)))
    with pytest.raises(InvalidGenesis):
        decode_genesis(data + b" " * (MAX_GENESIS_BYTES - len(data) + 1))


def test_a_validator_without_stake_has_a_uid_and_no_say() -> None:
    """It may earn a permit later; until then the blocks are signed by those with stake."""
    seats = [account(1, stake=5, is_validator=True), account(2, is_validator=True)]
    state = genesis_state(decode_genesis(altered(accounts=seats)))
    assert [read_account(state, key(number).public_key).uid for number in (1, 2)] == [0, 1]
    assert [member.key for member in read_validators(state).members] == [key(1).public_key]
