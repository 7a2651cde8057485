"""The state of the ledger: typed records under short keys, read through overlays and summed up by one root.

A key is one table byte and an identifier. `Overlay` keeps what changed apart from what it stands on, so a
refused transaction or block leaves no trace, and the cost of a step grows with what it touches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Protocol, TypeVar

import msgspec
from msgspec import Meta

from moed.protocol.codec import Record, decode_record, encode_record
from moed.protocol.errors import Malformed
from moed.protocol.identity import NodeId, node_id_of

from .params import NonNegative


class Account(Record, frozen=True, kw_only=True):
    """What a key holds. Amounts in units; ``nonce`` is the number of the next transaction that it may send.

    ``uid`` is the slot that the key works for. ``pool`` names the pool of stake behind the key where that is another
    key's: a work key that came by rotation stands for the pool of the first one, and still does when it is replaced.
    """

    balance: NonNegative = 0
    nonce: NonNegative = 0
    uid: int | None = None
    pool: bytes | None = None


class Pool(Record, frozen=True, kw_only=True):
    """The stake behind one key, its own and everybody's who delegated to it, and who stands for it now.

    Holders own ``shares`` of ``stake``, so that dividends and slashes reach all of them at the cost of one record; what
    is leaving is owned the same way, and slashed alike until it is withdrawn. ``take_ppm`` is the part of dividends
    that goes to the uid's owner first (None is the network's default), last raised at ``take_raised``. ``seated`` is
    the last block at which this stake got a seat among the validators, ``punished`` the block of the last slash.
    ``last_owner`` owned the uid that stood for this stake when that was given up.
    """

    stake: NonNegative = 0
    shares: NonNegative = 0
    leaving: NonNegative = 0
    leaving_shares: NonNegative = 0
    uid: int | None = None
    take_ppm: NonNegative | None = None
    take_raised: NonNegative | None = None
    seated: NonNegative | None = None
    punished: NonNegative | None = None
    last_owner: bytes | None = None


class Leaving(Record, frozen=True, kw_only=True):
    """Shares of a pool's leaving stake that may be withdrawn from the block at ``release`` on."""

    shares: NonNegative
    release: NonNegative


class Position(Record, frozen=True, kw_only=True):
    """What one key holds of one pool."""

    shares: NonNegative = 0
    leaving: tuple[Leaving, ...] = ()


class WeightsCommit(Record, frozen=True, kw_only=True):
    """A row of weights that is fixed and not yet shown: the epoch that it counts for, and the block that took it."""

    epoch: int
    block: int
    commitment: bytes


class Neuron(Record, frozen=True, kw_only=True):
    """One uid of the metagraph: whose it is, and what the last epoch said of it.

    ``key`` works for the uid, until the block ``key_expires`` if that is not 0; ``owner`` is paid its incentive, may
    replace the key, and need not be on any machine of the network (empty: the key itself). ``last_update`` is the block
    in which the weights in force were fixed: set, or committed to. ``*_u16`` are shares scaled to 65535; ``emission``
    is what the last epoch paid, in units.
    """

    uid: int
    key: bytes
    owner: bytes = b""
    key_expires: NonNegative = 0
    registered_block: int
    last_update: int
    has_permit: bool = False
    is_active: bool = False
    consensus_u16: int = 0
    incentive_u16: int = 0
    dividends_u16: int = 0
    trust_u16: int = 0
    emission: int = 0
    incentive_emission: int = 0
    weights: tuple[tuple[int, int], ...] = ()
    bonds: tuple[tuple[int, int], ...] = ()
    commits: tuple[WeightsCommit, ...] = ()

    @property
    def node_id(self) -> NodeId:
        return node_id_of(self.key)

    @property
    def payee(self) -> bytes:
        """The key that is paid, and that decides on keys and take."""
        return self.owner or self.key

    def has_expired(self, height: int) -> bool:
        """Whether the work key may no longer act in the block at ``height``."""
        return 0 < self.key_expires <= height


class Validator(Record, frozen=True, kw_only=True):
    """One signer of blocks: its power is the stake that it had when the epoch began."""

    key: bytes
    power: Annotated[int, Meta(ge=1)]
    priority: int = 0  # turns to propose come round by this; see consensus/turns.py


class ValidatorSet(Record, frozen=True, kw_only=True):
    """Who signs blocks now, in the order of their keys."""

    members: tuple[Validator, ...] = ()


class Totals(Record, frozen=True, kw_only=True):
    """Sums over the whole ledger, kept as they change.

    ``supply`` is all units ever made: balances, stakes, what is leaving, the ``treasury`` (fees and slashes, which the
    next epochs pay out before they mint) and what registrations ``burned``. ``uids`` is the number of slots in use;
    ``epoch`` the number of epochs completed, the last at block ``epoch_block``. ``burn_price`` is what a taken slot
    cost right after the registration at ``burn_block``; it falls from there.
    """

    supply: NonNegative = 0
    treasury: NonNegative = 0
    burned: NonNegative = 0
    burn_price: NonNegative = 0
    burn_block: NonNegative = 0
    uids: NonNegative = 0
    epoch: NonNegative = 0
    epoch_block: NonNegative = 0
    registrations_in_block: NonNegative = 0


StateRecord = Account | Pool | Position | Neuron | ValidatorSet | Totals

_TABLES: dict[bytes, type[StateRecord]] = {
    b"a": Account,
    b"p": Pool,
    b"d": Position,
    b"n": Neuron,
    b"v": ValidatorSet,
    b"w": ValidatorSet,
    b"t": Totals,
}
TOTALS_KEY = b"t"
VALIDATORS_KEY = b"v"
PREVIOUS_VALIDATORS_KEY = b"w"


def account_key(public_key: bytes) -> bytes:
    return b"a" + public_key


def pool_key(public_key: bytes) -> bytes:
    return b"p" + public_key


def position_key(pool: bytes, holder: bytes) -> bytes:
    return b"d" + pool + holder


def neuron_key(uid: int) -> bytes:
    return b"n" + uid.to_bytes(2, "big")


def decode_state_record(key: bytes, value: bytes) -> StateRecord:
    """The record stored under ``key``. Raises `Malformed` if the bytes are not one of that table."""
    table = _TABLES.get(key[:1])
    if table is None:
        raise Malformed(f"no table of the state has the key {key[:8].hex()}")
    return decode_record(value, table)


def encode_state(records: Mapping[bytes, StateRecord]) -> dict[bytes, bytes]:
    """Records as their canonical bytes, in the order of their keys."""
    return {key: encode_record(records[key]) for key in sorted(records)}


class StateReader(Protocol):
    """Anything that a record can be looked up in."""

    def get(self, key: bytes, /) -> StateRecord | None: ...


RecordT = TypeVar("RecordT", bound=msgspec.Struct)


class Overlay:
    """Changes over a base that stays untouched until somebody takes `changes` and applies them there."""

    def __init__(self, base: StateReader) -> None:
        self._base = base
        self._changes: dict[bytes, StateRecord] = {}

    def get(self, key: bytes, /) -> StateRecord | None:
        changed = self._changes.get(key)
        return changed if changed is not None else self._base.get(key)

    def put(self, key: bytes, record: StateRecord) -> None:
        self._changes[key] = record

    def absorb(self, other: Overlay) -> None:
        """Take over the changes of an overlay that stands on this one."""
        self._changes.update(other.changes)

    @property
    def changes(self) -> Mapping[bytes, StateRecord]:
        return self._changes

    def encoded_changes(self) -> dict[bytes, bytes]:
        """The changed records as their canonical bytes, in the order of their keys."""
        return encode_state(self._changes)


class State:
    """A whole state in memory: the base of overlays."""

    def __init__(self, records: Mapping[bytes, StateRecord] | None = None) -> None:
        self._records: dict[bytes, StateRecord] = dict(records or {})

    def get(self, key: bytes, /) -> StateRecord | None:
        return self._records.get(key)

    def apply(self, changes: Mapping[bytes, StateRecord]) -> None:
        self._records.update(changes)

    def records(self) -> Iterable[StateRecord]:
        """Every record, in no promised order."""
        return self._records.values()

    def encoded(self) -> dict[bytes, bytes]:
        """The whole state as canonical bytes, in the order of its keys."""
        return encode_state(self._records)


def _read(state: StateReader, key: bytes, kind: type[RecordT]) -> RecordT | None:
    record = state.get(key)
    if record is not None and not isinstance(record, kind):
        raise TypeError(f"state key {key.hex()} holds a {type(record).__name__}, not a {kind.__name__}")
    return record


def read_account(state: StateReader, public_key: bytes) -> Account:
    """The account of a key; an empty one if it was never used."""
    return _read(state, account_key(public_key), Account) or Account()


def pool_of(state: StateReader, public_key: bytes) -> bytes:
    """The key that names the pool of stake behind ``public_key``: itself, unless it came by rotation."""
    return read_account(state, public_key).pool or public_key


def read_pool(state: StateReader, pool: bytes) -> Pool:
    """The pool of that name; an empty one if nobody ever staked there."""
    return _read(state, pool_key(pool), Pool) or Pool()


def read_position(state: StateReader, pool: bytes, holder: bytes) -> Position:
    """What ``holder`` has in a pool; nothing if it never staked there."""
    return _read(state, position_key(pool, holder), Position) or Position()


def stake_behind(state: StateReader, public_key: bytes) -> int:
    """All units at stake behind a key, its own and those delegated to it."""
    return read_pool(state, pool_of(state, public_key)).stake


def units_in(records: Iterable[StateRecord]) -> int:
    """All units that these records hold; over a whole state that is the supply."""
    units = 0
    for record in records:
        if isinstance(record, Account):
            units += record.balance
        elif isinstance(record, Pool):
            units += record.stake + record.leaving
        elif isinstance(record, Totals):
            units += record.treasury + record.burned
    return units


def read_neuron(state: StateReader, uid: int) -> Neuron | None:
    """The neuron in a slot, or None if the slot was never taken."""
    return _read(state, neuron_key(uid), Neuron)


def read_neurons(state: StateReader) -> list[Neuron]:
    """Every neuron, by rising uid; slots are filled without gaps."""
    found = (read_neuron(state, uid) for uid in range(read_totals(state).uids))
    return [neuron for neuron in found if neuron is not None]


def read_validators(state: StateReader) -> ValidatorSet:
    return _read(state, VALIDATORS_KEY, ValidatorSet) or ValidatorSet()


def read_previous_validators(state: StateReader) -> ValidatorSet:
    """Who decided the block that this state is the result of."""
    return _read(state, PREVIOUS_VALIDATORS_KEY, ValidatorSet) or ValidatorSet()


def read_totals(state: StateReader) -> Totals:
    return _read(state, TOTALS_KEY, Totals) or Totals()


def change(record: RecordT, **fields: object) -> RecordT:
    """A copy of ``record`` with some fields replaced."""
    return msgspec.structs.replace(record, **fields)
