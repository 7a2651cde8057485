"""Transactions that wait for a block: by sender and nonce, in rooms that nobody fills at no cost.

What waits for its turn was tried on top of its sender's earlier ones, so whoever fills the pool pays fees in the next
blocks. What nobody pays for has rooms of its own: the duties of permit holders, evidence, registrations. What stands
behind a gap, or behind something that may not apply, is kept only as long as there is space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile

from moed.protocol.domains import Domain, tagged_hash

from .accounts import spend
from .errors import InvalidTransaction, NotPermitted, PoolFull, WrongNonce
from .fees import fee_of
from .ledger import apply
from .params import ChainParams
from .registration import check_registration, registration_price
from .staking import check_evidence
from .state import Account, Overlay, StateReader, read_account, read_neuron, read_totals
from .transactions import (
    MAX_TRANSACTION_BYTES,
    CommitWeights,
    Register,
    ReportEvidence,
    RevealWeights,
    SetWeights,
    SignedTransaction,
    Sponsor,
)

MAX_TRANSACTIONS = 10_000
MAX_POOL_BYTES = 1 << 22
"""Encoded; of transactions that pay for their place."""
MAX_PER_SENDER = 64
MAX_REGISTRATIONS = 2_000
"""Keys without credit, of which there is no end, wait in a room of their own; those for whom a sponsor pays the fee, in
another, and they go first."""
MAX_EVIDENCE = 256
"""Reported by others than permit holders."""
MAX_DUTY_BYTES = 2 * MAX_TRANSACTION_BYTES
"""Weights and evidence of one permit holder: a full row and what else it has to say in an epoch."""
MAX_LOOSE = 512
MAX_LOOSE_BYTES = 1 << 18
"""Behind a gap, or behind what may not apply; the oldest gives way to the newest."""
MAX_WAIT_BLOCKS = 50
"""Blocks after which a transaction that none of them took is dropped. What cannot apply would else hold its place, and
its sender's nonce, for ever; the sender may send it again."""
MAX_BLOCKS_AHEAD = 2
"""How much further than we the reporter of an offence may be."""

_STALE = -1
_WEIGHTS = (SetWeights, CommitWeights, RevealWeights)
_REGISTRATIONS = (Register, Sponsor)


@dataclass(slots=True, eq=False)
class _Room:
    """Space for one sort of transaction."""

    name: str
    max_count: int
    max_bytes: int
    count: int = 0
    held_bytes: int = 0

    def require(self, size_bytes: int) -> None:
        if self.count >= self.max_count:
            raise PoolFull(f"waiting {self.name}", f"under {self.max_count}", self.count)
        if self.held_bytes + size_bytes > self.max_bytes:
            raise PoolFull(f"bytes of waiting {self.name}", f"at most {self.max_bytes}", self.held_bytes + size_bytes)


@dataclass(frozen=True, slots=True)
class _Waiting:
    transaction: SignedTransaction
    since_height: int
    size_bytes: int
    room: _Room


@dataclass(slots=True)
class _Line:
    """What waits of one sender. ``tried`` is the state after those that will apply, ``account`` its own before them."""

    account: Account
    tried: Overlay
    height: int
    is_firm: bool = True
    entries: dict[int, _Waiting] = field(default_factory=dict)

    def run(self, nonce: int) -> list[_Waiting]:
        """Those that can apply one after the other from a nonce on."""
        found: list[_Waiting] = []
        while (entry := self.entries.get(nonce)) is not None:
            found.append(entry)
            nonce += 1
        return found


class Mempool:
    """Waiting transactions; the caller has checked their signatures."""

    def __init__(self, params: ChainParams) -> None:
        self._params = params
        self._lines: dict[bytes, _Line] = {}
        self._height = 0
        self._paying = _Room("transactions", MAX_TRANSACTIONS, MAX_POOL_BYTES)
        self._registrations = _Room("registrations", MAX_REGISTRATIONS, MAX_POOL_BYTES // 4)
        self._sponsored = _Room("sponsored registrations", MAX_REGISTRATIONS, MAX_POOL_BYTES // 4)
        self._evidence = _Room("evidence", MAX_EVIDENCE, MAX_POOL_BYTES // 4)
        self._loose = _Room("transactions behind others", MAX_LOOSE, MAX_LOOSE_BYTES)
        self._duties: dict[bytes, _Room] = {}
        self._loose_ones: dict[tuple[bytes, int], None] = {}  # oldest first

    def __len__(self) -> int:
        return sum(len(line.entries) for line in self._lines.values())

    def __contains__(self, transaction: SignedTransaction) -> bool:
        line = self._lines.get(transaction.sender)
        waiting = line.entries.get(transaction.nonce) if line is not None else None
        return waiting is not None and waiting.transaction == transaction

    def add(self, transaction: SignedTransaction, state: StateReader, height: int) -> None:
        """Keep a transaction; ``height`` is that of the last block.

        Raises `PoolFull`, `WrongNonce`, or the `InvalidTransaction` that a block would; the first one of a nonce stays.
        """
        sender = transaction.sender
        line = self._lines.get(sender)
        if line is None:
            line = _Line(read_account(state, sender), Overlay(state), height)
        elif line.height != height:
            self._replay(sender, line, state, height)
        next_nonce = line.account.nonce
        if not next_nonce <= transaction.nonce < next_nonce + MAX_PER_SENDER:
            raise WrongNonce("nonce", f"{next_nonce} to {next_nonce + MAX_PER_SENDER - 1}", transaction.nonce)
        if transaction.nonce in line.entries:
            raise WrongNonce("nonce", "one without a waiting transaction", transaction.nonce)
        self._keep(line, transaction, transaction.size_bytes, height)
        self._lines[sender] = line
        self._firm_up(line, sender)

    def next_nonce(self, sender: bytes, state: StateReader) -> int:
        """The nonce for the sender's next transaction, counting those that wait."""
        nonce = read_account(state, sender).nonce
        line = self._lines.get(sender)
        return nonce if line is None else nonce + len(line.run(nonce))

    def candidates(self, state: StateReader) -> Iterator[SignedTransaction]:
        """Transactions in an order in which they can apply: each sender's by nonce, without gaps.

        Evidence comes first, then what permit holders owe the network, then the others, each time in another order of
        senders; of registrations no more than a few blocks' share. Take what is needed before anything else changes
        the pool.
        """
        mark = self._height.to_bytes(8, "big")
        order = sorted(self._lines, key=lambda sender: tagged_hash(Domain.TRANSACTION_ORDER, mark, sender))
        runs = {sender: self._lines[sender].run(read_account(state, sender).nonce) for sender in order}
        urgent = {sender: _urgent(run, self._duties.get(sender), self._evidence) for sender, run in runs.items()}
        for sender in sorted((one for one in order if urgent[one]), key=lambda one: not _accuses(runs[one])):
            yield from (entry.transaction for entry in runs[sender][: urgent[sender]])
        yield from self._in_turn({sender: runs[sender][urgent[sender] :] for sender in order})

    def _in_turn(self, runs: Mapping[bytes, list[_Waiting]]) -> Iterator[SignedTransaction]:
        """What is not urgent; registrations that a sponsor pays for come first, so that no crowd keeps them out."""
        paid = {sender: list(takewhile(lambda one: one.room is self._sponsored, run)) for sender, run in runs.items()}
        registrations = 2 * self._params.max_registrations_per_block
        cut: set[bytes] = set()
        for sender, run in (*paid.items(), *((sender, run[len(paid[sender]) :]) for sender, run in runs.items())):
            for entry in run:
                if isinstance(entry.transaction.body, _REGISTRATIONS):
                    registrations -= 1
                    if registrations < 0:
                        cut.add(sender)
                if sender in cut:
                    break
                yield entry.transaction

    def discard(self, transaction: SignedTransaction) -> None:
        """Drop a transaction, if it waits."""
        if transaction in self:
            line = self._lines[transaction.sender]
            self._take_out(line, transaction.nonce)
            line.height = _STALE  # what stands behind it is to be tried anew
            if not line.entries:
                del self._lines[transaction.sender]

    def prune(self, state: StateReader, height: int) -> None:
        """After the block at ``height``: drop what can no longer apply, and what has waited too long."""
        self._height = height
        for sender, line in list(self._lines.items()):
            for entry in list(line.entries.values()):
                if height - entry.since_height >= MAX_WAIT_BLOCKS:
                    self.discard(entry.transaction)
            accuses = _accuses(line.entries.values())  # somebody, who may have been punished by now
            if accuses or line.height == _STALE or line.account != read_account(state, sender):
                self._replay(sender, line, state, height)

    def _replay(self, sender: bytes, line: _Line, state: StateReader, height: int) -> None:
        """Try a sender's transactions again on a newer state; those that no longer apply go."""
        entries = [self._take_out(line, nonce) for nonce in sorted(line.entries)]
        line.account, line.tried, line.height, line.is_firm = read_account(state, sender), Overlay(state), height, True
        for entry in entries:
            if entry.transaction.nonce >= line.account.nonce:
                self._try_keep(line, entry, height)
        if not line.entries:
            self._lines.pop(sender, None)

    def _try_keep(self, line: _Line, entry: _Waiting, height: int) -> None:
        try:
            self._keep(line, entry.transaction, entry.size_bytes, entry.since_height)
        except PoolFull:
            self._put_in(line, replace(entry, room=self._loose))
        except InvalidTransaction:
            return

    def _firm_up(self, line: _Line, sender: bytes) -> None:
        """A gap was filled: what stood behind it is no longer loose."""
        while line.is_firm:
            entry = line.entries.get(read_account(line.tried, sender).nonce)
            if entry is None or entry.room is not self._loose:
                return
            self._take_out(line, entry.transaction.nonce)
            before = read_account(line.tried, sender).nonce
            self._try_keep(line, entry, line.height)
            if read_account(line.tried, sender).nonce == before:
                return

    def _keep(self, line: _Line, transaction: SignedTransaction, size_bytes: int, since_height: int) -> None:
        """Find the room for a transaction and put it there. Raises `PoolFull`, or what a block would."""
        room = self._room_for(line, transaction)
        if room is not self._loose:
            room.require(size_bytes)
        if room is self._paying:
            apply(line.tried, transaction, params=self._params, height=line.height + 1)
        elif room in (self._registrations, self._sponsored):
            self._require_price(line, transaction)
        self._put_in(line, _Waiting(transaction, since_height, size_bytes, room))
        if room is not self._paying and transaction.nonce == read_account(line.tried, transaction.sender).nonce:
            line.is_firm = False  # it may wait for long, or not apply

    def _room_for(self, line: _Line, transaction: SignedTransaction) -> _Room:
        """Where a transaction waits. Raises what refuses it whatever stands before it."""
        sender, body = transaction.sender, transaction.body
        if isinstance(body, ReportEvidence):
            seen = min(body.evidence.height, line.height + MAX_BLOCKS_AHEAD)
            check_evidence(line.tried, body.evidence, self._params, max(line.height + 1, seen))
        if isinstance(body, (*_WEIGHTS, ReportEvidence)):
            if _holds_permit(line.tried, sender):
                return self._duties.get(sender) or _Room("duties of one sender", MAX_PER_SENDER, MAX_DUTY_BYTES)
            if isinstance(body, _WEIGHTS):
                raise NotPermitted("validator permit of the sender", True, False)
            return self._evidence if transaction.nonce == line.account.nonce else self._loose
        if not line.is_firm or transaction.nonce != read_account(line.tried, sender).nonce:
            return self._loose
        if isinstance(body, Sponsor):
            return self._sponsored
        return self._registrations if isinstance(body, Register) else self._paying

    def _require_price(self, line: _Line, transaction: SignedTransaction) -> None:
        """Raise unless the sender's key may have a uid and can pay for it; whether a slot is free the block shows."""
        state, sender, body = line.tried, transaction.sender, transaction.body
        if isinstance(body, Sponsor):
            check_registration(state, body.key, sender, sender)
        elif isinstance(body, Register):
            check_registration(state, sender, body.owner or b"", sender)
        price = registration_price(read_totals(state), self._params, line.height + 1)
        spend(Overlay(state), sender, price + fee_of(state, transaction, self._params))

    def _put_in(self, line: _Line, entry: _Waiting) -> None:
        room, sender, nonce = entry.room, entry.transaction.sender, entry.transaction.nonce
        line.entries[nonce] = entry
        room.count += 1
        room.held_bytes += entry.size_bytes
        if room is self._loose:
            self._loose_ones[sender, nonce] = None
            while room.count > room.max_count or room.held_bytes > room.max_bytes:
                self._give_way()
        elif room not in (self._paying, self._registrations, self._sponsored, self._evidence):
            self._duties[sender] = room

    def _take_out(self, line: _Line, nonce: int) -> _Waiting:
        entry = line.entries.pop(nonce)
        sender = entry.transaction.sender
        entry.room.count -= 1
        entry.room.held_bytes -= entry.size_bytes
        self._loose_ones.pop((sender, nonce), None)
        if entry.room is self._duties.get(sender) and not entry.room.count:
            del self._duties[sender]
        return entry

    def _give_way(self) -> None:
        """The oldest loose transaction goes."""
        sender, nonce = next(iter(self._loose_ones))
        line = self._lines[sender]
        self._take_out(line, nonce)
        if not line.entries:
            del self._lines[sender]


def _urgent(run: list[_Waiting], *rooms: _Room | None) -> int:
    """How many of a run come before everybody's: those up to the last one that waits in one of these rooms."""
    return max((place for place, entry in enumerate(run, start=1) if entry.room in rooms), default=0)


def _accuses(entries: Iterable[_Waiting]) -> bool:
    return any(isinstance(entry.transaction.body, ReportEvidence) for entry in entries)


def _holds_permit(state: StateReader, sender: bytes) -> bool:
    uid = read_account(state, sender).uid
    neuron = read_neuron(state, uid) if uid is not None else None
    return neuron is not None and neuron.has_permit
