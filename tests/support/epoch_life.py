"""A chain lived epoch by epoch: validators hide and show their weights, and each epoch is closed by real blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moed.consensus.params import U16, ChainParams
from moed.consensus.state import Neuron, read_account, read_neurons, stake_behind
from moed.consensus.transactions import Body, CommitWeights, Register, RevealWeights, WeightRow, weights_commitment
from moed.consensus.transition import Head

from .chains import grow, key, make_genesis, signed

CREDIT = 10**9
TEMPO = 4


class EpochLife:
    """Validators have uids 0, 1, …, in the order of ``stakes`` (credits); miners the uids after them.

    Validator uid u is ``key(u + 1)``, and so is a miner.
    """

    def __init__(
        self, stakes: Sequence[int], miners: int, *, balances: Sequence[int] = (), bonds_penalty_u16: int = U16
    ) -> None:
        """``balances``: what each validator has besides, in credits; it starts in an account of its own."""
        self.validators = len(stakes)
        self.miners = miners
        genesis_params = ChainParams(tempo=TEMPO, max_registrations_per_block=256, bonds_penalty_u16=bonds_penalty_u16)
        banks = [credit * CREDIT for credit in balances]
        self.head = Head.at_genesis(
            make_genesis([stake * CREDIT for stake in stakes], balances=[0] * miners + banks, params=genesis_params)
        )
        self._bank = 1 + self.validators + miners
        self._hidden: dict[int, WeightRow] = {}
        self.block(*((self.validators + miner, Register()) for miner in range(miners)))

    def block(self, *sent: tuple[int, Body]) -> None:
        """One block with these bodies, each of the key of that uid."""
        nonces: dict[int, int] = {}
        transactions = []
        for uid, body in sent:
            sender = key(uid + 1)
            nonce = nonces.get(uid, read_account(self.head.state, sender.public_key).nonce)
            nonces[uid] = nonce + 1
            transactions.append(signed(self.head, sender, body, nonce))
        grow(self.head, [key(uid + 1) for uid in range(self.validators)], transactions)

    def epoch(self, weights: Mapping[int, Mapping[int, int]], *sent: tuple[int, Body]) -> list[Neuron]:
        """Close the epoch under way: validators show what they hid in the one before and hide ``weights``.

        So {validator: {miner: weight}} counts in the next epoch. Returns the metagraph after the epoch.
        """
        reveals: list[tuple[int, Body]] = [
            (uid, RevealWeights(weights=row, salt=_salt(uid))) for uid, row in self._hidden.items()
        ]
        self._hidden = {uid: tuple(sorted(row.items())) for uid, row in weights.items()}
        commits: list[tuple[int, Body]] = [
            (uid, CommitWeights(commitment=weights_commitment(key(uid + 1).public_key, _salt(uid), row)))
            for uid, row in self._hidden.items()
        ]
        self.block(*reveals, *commits, *sent)
        while self.head.height % TEMPO:
            self.block()
        return self.metagraph

    @property
    def metagraph(self) -> list[Neuron]:
        return read_neurons(self.head.state)

    def stake(self, uid: int) -> int:
        return stake_behind(self.head.state, key(uid + 1).public_key)


def _salt(uid: int) -> bytes:
    return uid.to_bytes(32, "big")
