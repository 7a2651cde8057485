"""What breaks a rule of the network, one class per rule, each with the values that disagreed.

The tree:

    RuleBroken
    ├── InvalidEpochInput       the arrays given to an epoch contradict each other or their ranges
    ├── InvalidGenesis          a genesis that no network can start from
    ├── InvalidTransaction      refused by the ledger; the state is as before
    │   ├── WrongNonce              not the sender's next transaction
    │   ├── InsufficientBalance     the sender holds less than it spends
    │   ├── InsufficientStake       the sender holds less of that pool than it would take out
    │   ├── AmountOutOfRange        too little to buy one share of a pool, or more than a pool can count
    │   ├── StillBonded             stake that leaves may not be withdrawn yet
    │   ├── AlreadyRegistered       the sender has a uid
    │   ├── NotRegistered           the sender, or a uid that it names, is not registered
    │   ├── NoFreeSlot              every uid is taken and still immune
    │   ├── TooManyRegistrations    this block's share of new uids is used up
    │   ├── WrongReveal             weights that were not committed to in the epoch before
    │   ├── PoolFull                no room to wait in
    │   ├── KeyInUse                the new work key has a uid or stake of its own
    │   ├── KeyExpired              the work key's time is over; its owner can renew it
    │   ├── EvidenceRefused         it is too old, or punished already, or accuses nobody who had a seat
    │   └── NotPermitted            the sender's uid may not do this now
    ├── InvalidBlock            not applied; whoever signed it is at fault
    ├── InvalidCommit           signatures that do not add up to more than two thirds of the stake
    └── InvalidProof            what is said of the state does not follow from a final block
        └── WrongChain              signed as it should be, and not the block that the operator's checkpoint names
"""

from __future__ import annotations


class RuleBroken(Exception):
    """A rule that every node checks does not hold; nothing of what broke it was applied.

    ``rule`` says in words what must hold; ``expected`` and ``actual`` are the two values that disagreed.
    """

    def __init__(self, rule: str, expected: object, actual: object) -> None:
        super().__init__(f"{rule}: expected {expected}, got {actual}")
        self.rule = rule
        self.expected = expected
        self.actual = actual


class InvalidEpochInput(RuleBroken):
    """An epoch was asked for with inputs that no ledger can hold: a bug in the caller, or foreign data."""


class InvalidGenesis(RuleBroken):
    """The genesis contradicts itself; mend the file or get the network's own."""


class InvalidTransaction(RuleBroken):
    """The ledger refuses this transaction; the state is as before."""

    code = "invalid_transaction"


class WrongNonce(InvalidTransaction):
    """The transaction is not the sender's next one: it was applied before, or an earlier one is missing."""

    code = "wrong_nonce"


class InsufficientBalance(InvalidTransaction):
    """The sender's balance is smaller than what it would spend."""

    code = "insufficient_balance"


class InsufficientStake(InvalidTransaction):
    """The sender's part of the pool is worth less than what it asks for."""

    code = "insufficient_stake"


class AmountOutOfRange(InvalidTransaction):
    """The amount is under the price of one share of the pool, or over what the pool can count."""

    code = "amount_out_of_range"


class StillBonded(InvalidTransaction):
    """The stake leaves, and its unbonding time is not over: until then it answers for what it signed."""

    code = "still_bonded"


class KeyInUse(InvalidTransaction):
    """A work key stands for one uid and one pool; choose a key that was never used."""

    code = "key_in_use"


class KeyExpired(InvalidTransaction):
    """The work key acts no longer; the uid and its rank stay, and the owner can renew or replace the key."""

    code = "key_expired"


class EvidenceRefused(InvalidTransaction):
    """Nobody is slashed by this: the offence is too old, was punished, or is of a key that had no seat."""

    code = "evidence_refused"


class AlreadyRegistered(InvalidTransaction):
    """One key holds at most one uid."""

    code = "already_registered"


class NotRegistered(InvalidTransaction):
    """The key or uid is not in the metagraph."""

    code = "not_registered"


class NoFreeSlot(InvalidTransaction):
    """Every uid is taken and none may be replaced yet; try again when an immunity has ended."""

    code = "no_free_slot"


class TooManyRegistrations(InvalidTransaction):
    """The block holds its limit of registrations; the next one has room."""

    code = "too_many_registrations"


class NotPermitted(InvalidTransaction):
    """The rule protects others from what this uid asks."""

    code = "not_permitted"


class WrongReveal(InvalidTransaction):
    """The weights are not the ones committed to in the epoch before, or come too late: they count as none."""

    code = "wrong_reveal"


class PoolFull(InvalidTransaction):
    """Too many transactions wait already; send it again after the next blocks."""

    code = "pool_full"


class InvalidBlock(RuleBroken):
    """A block breaks a rule of the chain; it is not applied, and no honest validator votes for it."""


class InvalidCommit(RuleBroken):
    """A commit does not prove that more than two thirds of the stake signed this block."""


class InvalidProof(RuleBroken):
    """The proof does not lead from the record to a block that the validators signed; believe nothing in it."""


class WrongChain(InvalidProof):
    """Validators signed another block than the checkpoint's: theirs is a false chain, or the checkpoint is wrong."""
