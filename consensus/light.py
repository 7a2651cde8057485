"""Following the validators without the blocks: one proof an epoch, from the genesis to the present.

The set that signs blocks changes only at the end of an epoch. So the last block of each, signed by the set that is
known so far, with a proof of the set in the state after it, is a step from one epoch to the next; nothing between is
needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from moed.protocol.codec import decode_record

from .blocks import HASH_BYTES, Header, check_commit
from .errors import InvalidProof, WrongChain
from .genesis import Genesis, genesis_state
from .proofs import MAX_PROOF_BYTES, StateProof, check_proof
from .state import VALIDATORS_KEY, ValidatorSet, read_validators


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A block that the operator knows to be on the chain: no set of validators is believed that decided another."""

    height: int
    block_hash: bytes

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read ``HEIGHT:HASH``. Raises `ValueError`."""
        height, _, digest = text.partition(":")
        found = cls(int(height), bytes.fromhex(digest))
        if found.height < 1 or len(found.block_hash) != HASH_BYTES:
            raise ValueError(f"a checkpoint is HEIGHT:HASH, and {text!r} is not")
        return found

    def __str__(self) -> str:
        return f"{self.height}:{self.block_hash.hex()}"

    def check(self, header: Header) -> None:
        """Raise `WrongChain` for another block of this height."""
        if header.height == self.height and header.hash != self.block_hash:
            raise WrongChain("block at the checkpoint", str(self), header.hash.hex())


class LightChain:
    """Where the steps have led: ``validators`` decide what comes after ``height``; ``last`` is the step that said so.

    Of a step that does not hold nothing is kept.
    """

    def __init__(self, genesis: Genesis, checkpoint: Checkpoint | None = None) -> None:
        self.height = 0
        self.validators: ValidatorSet = read_validators(genesis_state(genesis))
        self.last: StateProof | None = None
        self._tempo = genesis.params.tempo
        self._network_id = genesis.network_id
        self._checkpoint = checkpoint

    @property
    def next_height(self) -> int:
        """The block that the next step rests on."""
        return self.height + self._tempo

    @property
    def has_passed_checkpoint(self) -> bool:
        return self._checkpoint is None or self.height >= self._checkpoint.height

    def take(self, encoded: bytes | memoryview) -> None:
        """Go one step on. Raises `RuleBroken` or `Malformed` for one that does not follow from what is known.

        The whole commit must hold, not only enough of it: whoever begins at this block puts it into the next one.
        """
        step = decode_record(encoded, StateProof, max_bytes=MAX_PROOF_BYTES)
        if (step.key, step.header.height) != (VALIDATORS_KEY, self.next_height):
            raise InvalidProof("block and key of the step", (self.next_height, "validators"), step.header.height)
        check_commit(step.commit, step.header, self.validators, self._network_id)
        if self._checkpoint is not None:
            self._checkpoint.check(step.header)
        found = check_proof(step, self.validators, self._network_id)
        if not isinstance(found, ValidatorSet) or not found.members:
            raise InvalidProof("validators after the epoch", "at least one", found)
        self.height, self.validators, self.last = step.header.height, found, step
