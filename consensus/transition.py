"""From one block to the next: what a block must satisfy, what it does to the state, and how one is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from moed.protocol.codec import encode_record
from moed.protocol.errors import ProtocolError

from .blocks import GENESIS_COMMIT, Block, Commit, Header, check_commit
from .errors import InvalidBlock, InvalidProof, InvalidTransaction, RuleBroken
from .genesis import Genesis, genesis_state
from .ledger import apply
from .metagraph import ClosedEpoch, close_epoch
from .params import ChainParams
from .proofs import StateProof
from .state import (
    PREVIOUS_VALIDATORS_KEY,
    TOTALS_KEY,
    VALIDATORS_KEY,
    Overlay,
    State,
    StateRecord,
    ValidatorSet,
    change,
    read_previous_validators,
    read_totals,
    read_validators,
)
from .stateroot import RootPatch, StateTree
from .transactions import SignedTransaction, transactions_root
from .turns import next_turn, power_of


@dataclass(frozen=True, slots=True)
class Executed:
    """A block that holds, and what it changes; `Head.advance` makes it so. ``closed`` is the epoch that it ends."""

    block: Block
    changes: Mapping[bytes, StateRecord]
    encoded: Mapping[bytes, bytes]
    patch: RootPatch
    closed: ClosedEpoch | None = None


class Head:
    """The tip of one node's chain: the last final block, the commit that made it final, the state after it.

    `execute` and `build` leave it as it is; only `advance` moves it.
    """

    def __init__(
        self, genesis: Genesis, state: State, header: Header | None = None, commit: Commit = GENESIS_COMMIT
    ) -> None:
        """Stand on ``state``, which is the one after ``header``, or the genesis state if that is None."""
        self.genesis = genesis
        self.network_id = genesis.network_id
        self.state = state
        self.header = header
        self.commit = commit
        self._tree = StateTree()
        self._tree.apply(self._tree.preview(state.encoded()))

    @classmethod
    def at_genesis(cls, genesis: Genesis) -> Head:
        return cls(genesis, genesis_state(genesis))

    @property
    def params(self) -> ChainParams:
        return self.genesis.params

    @property
    def height(self) -> int:
        """Number of the last final block; 0 before the first."""
        return self.header.height if self.header is not None else 0

    @property
    def hash(self) -> bytes:
        """What the next block names as its parent: the last block, or the genesis."""
        return self.header.hash if self.header is not None else self.network_id

    @property
    def time_ms(self) -> int:
        return self.header.time_ms if self.header is not None else self.genesis.created_ms

    @property
    def state_root(self) -> bytes:
        return self._tree.root

    @property
    def validators(self) -> ValidatorSet:
        """Who decides the next block."""
        return read_validators(self.state)

    def build(
        self, transactions: Iterable[SignedTransaction], *, proposer: bytes, now_ms: int
    ) -> tuple[Block, list[tuple[SignedTransaction, InvalidTransaction]]]:
        """A block on this head with those of ``transactions`` that apply, in order; and the ones refused, with why.

        After one of a sender's that is not taken, for want of room or refused, the rest of that sender's are passed
        over: they may apply in a later block.
        """
        height = self.height + 1
        overlay = _begin(self.state, height)
        taken: list[SignedTransaction] = []
        room = self.params.max_block_bytes
        refused: list[tuple[SignedTransaction, InvalidTransaction]] = []
        passed_over: set[bytes] = set()
        for transaction in transactions:
            if len(taken) == self.params.max_block_transactions:
                break
            if transaction.sender in passed_over:
                continue
            size_bytes = transaction.size_bytes
            if size_bytes > room:
                passed_over.add(transaction.sender)
                continue
            try:
                apply(overlay, transaction, params=self.params, height=height)
            except InvalidTransaction as error:
                refused.append((transaction, error))
                passed_over.add(transaction.sender)
            else:
                taken.append(transaction)
                room -= size_bytes
        _finish(overlay, self.params, height)
        header = Header(
            height=height,
            parent=self.hash,
            proposer=proposer,
            time_ms=max(now_ms, self.time_ms + 1),
            transactions_root=transactions_root(tuple(taken)),
            state_root=self._tree.preview(overlay.encoded_changes()).root,
            last_commit_hash=self.commit.hash,
        )
        return Block(header=header, transactions=tuple(taken), last_commit=self.commit), refused

    def is_timely(self, block: Block, now_ms: int) -> bool:
        """Whether a block's time is not too far ahead of a clock: asked of a fresh proposal, not of a final block."""
        return block.header.time_ms <= now_ms + self.params.max_clock_drift_ms

    def execute(self, block: Block) -> Executed:
        """Check a block on this head, cheap rules first, and say what it changes. Raises `InvalidBlock`."""
        self._check_place(block)
        self._check_contents(block)
        overlay = _begin(self.state, block.height)
        for transaction in block.transactions:
            try:
                transaction.check_signature(self.network_id)
                apply(overlay, transaction, params=self.params, height=block.height)
            except (InvalidTransaction, ProtocolError) as error:
                raise InvalidBlock("transactions of the block", "all apply", error) from error
        closed = _finish(overlay, self.params, block.height)
        encoded = overlay.encoded_changes()
        patch = self._tree.preview(encoded)
        if patch.root != block.header.state_root:
            raise InvalidBlock("state root after the block", patch.root.hex(), block.header.state_root.hex())
        return Executed(block, overlay.changes, encoded, patch, closed)

    def check_final(self, block: Block, commit: Commit) -> None:
        """Raise `InvalidCommit` unless ``commit`` makes ``block`` the final one after this head."""
        check_commit(commit, block.header, self.validators, self.network_id)

    def prove(self, key: bytes) -> StateProof:
        """Proof of what the state after the last block holds under ``key``. Raises `RuleBroken` before the first."""
        if self.header is None:
            raise InvalidProof("blocks that a proof can rest on", "at least one", 0)
        record = self.state.get(key)
        value = encode_record(record) if record is not None else None
        return StateProof(header=self.header, commit=self.commit, key=key, value=value, branch=self._tree.prove(key))

    def advance(self, executed: Executed, commit: Commit) -> None:
        """Stand on an executed block; ``commit`` was checked or came out of our own rounds."""
        self.state.apply(executed.changes)
        self._tree.apply(executed.patch)
        self.header = executed.block.header
        self.commit = commit

    def become(self, other: Head) -> None:
        """Stand where ``other`` of the same network stands, which nobody else may use from then on."""
        self.state, self._tree, self.header, self.commit = other.state, other._tree, other.header, other.commit

    def _check_place(self, block: Block) -> None:
        header = block.header
        if header.height != self.height + 1:
            raise InvalidBlock("height", self.height + 1, header.height)
        if header.parent != self.hash:
            raise InvalidBlock("parent", self.hash.hex(), header.parent.hex())
        if power_of(self.validators, header.proposer) == 0:
            raise InvalidBlock("proposer", "a validator", header.proposer.hex())
        if header.time_ms <= self.time_ms:
            raise InvalidBlock("time in ms", f"after {self.time_ms}", header.time_ms)

    def _check_contents(self, block: Block) -> None:
        header = block.header
        if len(block.transactions) > self.params.max_block_transactions:
            raise InvalidBlock("transactions", f"at most {self.params.max_block_transactions}", len(block.transactions))
        size = sum(transaction.size_bytes for transaction in block.transactions)
        if size > self.params.max_block_bytes:
            raise InvalidBlock("bytes of transactions", f"at most {self.params.max_block_bytes}", size)
        root = transactions_root(block.transactions)
        if header.transactions_root != root:
            raise InvalidBlock("transactions root", root.hex(), header.transactions_root.hex())
        commit = block.last_commit
        if header.last_commit_hash != commit.hash:
            raise InvalidBlock("hash of the last commit", commit.hash.hex(), header.last_commit_hash.hex())
        if self.header is None:
            if commit != GENESIS_COMMIT:
                raise InvalidBlock("commit before the first block", "the empty one", commit.height)
            return
        try:
            check_commit(commit, self.header, read_previous_validators(self.state), self.network_id)
        except RuleBroken as error:
            raise InvalidBlock("commit of the block before", "a valid one", error) from error


def _begin(state: State, height: int) -> Overlay:
    """What happens before a block's transactions."""
    overlay = Overlay(state)
    totals = read_totals(overlay)
    if totals.registrations_in_block:
        overlay.put(TOTALS_KEY, change(totals, registrations_in_block=0))
    # who decides this block signs the commit that the next one carries
    overlay.put(PREVIOUS_VALIDATORS_KEY, read_validators(state))
    return overlay


def _finish(overlay: Overlay, params: ChainParams, height: int) -> ClosedEpoch | None:
    """What happens after a block's transactions: the next turn, and the epoch if it ends here."""
    moved, _ = next_turn(read_validators(overlay))
    overlay.put(VALIDATORS_KEY, moved)
    return close_epoch(overlay, params, height) if height % params.tempo == 0 else None
