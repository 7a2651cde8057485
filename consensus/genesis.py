"""The genesis: who starts with what, under which constants; its hash is the network's id."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from moed.protocol.codec import Record, encode
from moed.protocol.domains import Domain, tagged_hash
from moed.protocol.identity import PUBLIC_KEY_BYTES

from .errors import InvalidGenesis
from .params import MAX_INTEGER, ChainParams, NonNegative
from .state import (
    TOTALS_KEY,
    VALIDATORS_KEY,
    Account,
    Neuron,
    Overlay,
    Pool,
    Position,
    State,
    Totals,
    ValidatorSet,
    account_key,
    neuron_key,
    pool_key,
    position_key,
)
from .turns import replace_members

MAX_GENESIS_BYTES = 1 << 24


Workload = Literal["pre-processing", "training", "fine-tuning", "inference"]
WORKLOADS: tuple[Workload, ...] = ("pre-processing", "training", "fine-tuning", "inference")


class GenesisAccount(Record, frozen=True, kw_only=True):
    """One key's start: balance and stake in units; ``is_validator`` gives it a uid and the permit to sign blocks.

    ``owner`` is the key that owns that uid and its stake; without one the key owns itself.
    """

    public_key: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    balance: NonNegative = 0
    stake: NonNegative = 0
    is_validator: bool = False
    owner: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None


class Genesis(Record, frozen=True, kw_only=True):
    """The file that makes a network: every node of one network holds the same.

    ``workloads`` is the work that its nodes do for each other; a network may be for one alone.
    """

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    created_ms: NonNegative
    params: ChainParams
    workloads: tuple[Workload, ...] = WORKLOADS
    accounts: tuple[GenesisAccount, ...]

    @property
    def network_id(self) -> bytes:
        """The 32-byte id that sessions, records and signatures of this network carry."""
        return tagged_hash(Domain.GENESIS, encode(msgspec.to_builtins(self)))


def decode_genesis(data: bytes) -> Genesis:
    """Read a genesis from its JSON. Raises `InvalidGenesis` naming what is wrong."""
    if len(data) > MAX_GENESIS_BYTES:
        raise InvalidGenesis("size of the genesis in bytes", f"at most {MAX_GENESIS_BYTES}", len(data))
    try:
        genesis = msgspec.json.decode(data, type=Genesis, strict=True)
    except msgspec.DecodeError as error:
        raise InvalidGenesis("form of the genesis", "the fields of version 1", error) from error
    _check(genesis)
    return genesis


def encode_genesis(genesis: Genesis) -> bytes:
    """The genesis as indented JSON, for people to read and pass on."""
    return msgspec.json.format(msgspec.json.encode(genesis), indent=2) + b"\n"


def _check(genesis: Genesis) -> None:
    keys = [account.public_key for account in genesis.accounts]
    if len(set(keys)) != len(keys):
        raise InvalidGenesis("accounts of the genesis", "each key once", "a repeated key")
    if not genesis.workloads or len(set(genesis.workloads)) != len(genesis.workloads):
        raise InvalidGenesis("workloads of the genesis", "one or more, each once", genesis.workloads)
    validators = [account for account in genesis.accounts if account.is_validator]
    if not any(account.stake for account in validators):
        raise InvalidGenesis("validators of the genesis", "at least one with stake", "none")
    # halvings add up to twice the first period's emission; then no sum of amounts can ever leave int64
    minted = 2 * genesis.params.emission_per_block * genesis.params.halving_interval
    supply = sum(account.balance + account.stake for account in genesis.accounts)
    if supply + minted > MAX_INTEGER:
        raise InvalidGenesis("units that will ever exist", f"at most {MAX_INTEGER}", supply + minted)
    params = genesis.params
    if params.unbonding_blocks <= params.tempo:
        # stake could be gone before the epoch ends in which it signs
        raise InvalidGenesis("unbonding_blocks", f"over the tempo of {params.tempo}", params.unbonding_blocks)
    if len(validators) > min(genesis.params.max_uids, genesis.params.max_allowed_validators):
        raise InvalidGenesis("validators of the genesis", "no more than the slots", len(validators))


def genesis_state(genesis: Genesis) -> State:
    """The state before the first block. Validators take the first uids, in the order of the file."""
    overlay = Overlay(State())
    supply, uids = 0, 0
    powers: dict[bytes, int] = {}
    for entry in genesis.accounts:
        key = bytes.fromhex(entry.public_key)
        assert len(key) == PUBLIC_KEY_BYTES
        owner = bytes.fromhex(entry.owner or "")
        uid = None
        if entry.is_validator:
            uid, uids = uids, uids + 1
            neuron = Neuron(uid=uid, key=key, owner=owner, registered_block=0, last_update=0, has_permit=True)
            overlay.put(neuron_key(uid), neuron)
            if entry.stake:
                powers[key] = entry.stake
        overlay.put(account_key(key), Account(balance=entry.balance, uid=uid))
        if entry.stake or uid is not None:
            seated = 0 if key in powers else None
            overlay.put(pool_key(key), Pool(stake=entry.stake, shares=entry.stake, uid=uid, seated=seated))
        if entry.stake:
            overlay.put(position_key(key, owner or key), Position(shares=entry.stake))
        supply += entry.balance + entry.stake
    overlay.put(TOTALS_KEY, Totals(supply=supply, uids=uids))
    overlay.put(VALIDATORS_KEY, replace_members(ValidatorSet(), powers))
    return State(overlay.changes)
