"""Every economic and timing constant of a network, with its unit and reason, in one table.

The defaults are those of a long-lived network. A genesis holds the whole table, so a network's constants are
part of its id; nothing else in the code holds one.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from moed.protocol.codec import Record

CREDIT = 10**9
"""Units in one credit; every amount in the ledger is an integer number of units."""

U16 = 65_535

MAX_INTEGER = 2**63 - 1
"""The largest integer of the ledger: amounts, heights, nonces and times fit int64, in CBOR and in an epoch."""

Positive = Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
NonNegative = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
ShareU16 = Annotated[int, Meta(ge=0, le=U16)]


class ChainParams(Record, frozen=True, kw_only=True):
    """The constants of one network.

    Time: ``block_interval_ms`` is the pause between blocks; ``tempo`` the number of blocks in an epoch. The
    time-outs of the rounds are ``timeout_*_ms`` plus ``timeout_delta_ms`` for each round, all scaled by nothing:
    they bound the network's delay, not the block interval.
    """

    block_interval_ms: Positive = 12_000
    tempo: Positive = 360
    timeout_propose_ms: Positive = 3_000
    timeout_vote_ms: Positive = 1_000
    timeout_delta_ms: Positive = 500
    max_clock_drift_ms: Positive = 10_000  # how far ahead of a validator's clock a block's time may be

    emission_per_block: NonNegative = CREDIT
    halving_interval: Positive = 10_500_000  # blocks; emission halves after each (about four years at 12 s)

    fee_per_byte: NonNegative = 1_000  # units; a full block of transfers costs about what a block mints

    max_uids: Annotated[int, Meta(ge=1, le=32_768)] = 256
    max_allowed_validators: Annotated[int, Meta(ge=1, le=4_096)] = 64  # a commit holds a signature of each
    max_registrations_per_block: Positive = 8  # a burst of new keys cannot turn over the slots at once
    immunity_period: NonNegative = 7_200  # blocks in which a new uid is not replaced
    min_burn: NonNegative = CREDIT  # what a registration burns where every slot is taken and nobody else wants one
    max_burn: NonNegative = 10_000 * CREDIT
    burn_step_ppm: Annotated[int, Meta(ge=0, le=10**7)] = 250_000  # each such registration raises the price by so much
    burn_half_life: Positive = 720  # blocks in which the price falls by half
    min_stake: NonNegative = 10 * CREDIT  # under which stake does not count in the epoch, and gives no permit

    unbonding_blocks: Positive = 151_200  # 21 days at 12 s: as long as evidence can be brought, and no shorter
    default_take_ppm: Annotated[int, Meta(ge=0, le=1_000_000)] = 100_000  # of dividends, before delegators share
    max_take_ppm: Annotated[int, Meta(ge=0, le=1_000_000)] = 180_000
    take_pause_blocks: Positive = 216_000  # 30 days between two raises, so that delegators can leave before
    slash_ppm: Annotated[int, Meta(ge=0, le=999_999)] = 50_000  # of the stake behind a key that signed twice

    yuma_version: Literal[1, 3] = 1  # 3 keeps one bond for each pair
    kappa_u16: ShareU16 = 32_767  # half of the stake decides a weight
    bonds_penalty_u16: ShareU16 = U16
    bonds_moving_average_ppm: Annotated[int, Meta(ge=0, le=1_000_000)] = 900_000
    commit_reveal: bool = True  # weights are hashed in one epoch and shown in the next: nobody copies fresh ones
    activity_cutoff: Positive = 5_000  # blocks without new weights after which a validator does not count

    max_block_transactions: Positive = 2_000
    max_block_bytes: Annotated[int, Meta(ge=1, le=1 << 21)] = 1 << 20  # of transactions; the commit comes on top


DEVNET = ChainParams(
    block_interval_ms=1_000,
    tempo=20,
    immunity_period=200,
    activity_cutoff=200,
    burn_half_life=40,
    min_stake=CREDIT,
    unbonding_blocks=100,
    take_pause_blocks=100,
    timeout_propose_ms=2_000,
    timeout_vote_ms=1_000,
)
"""A network on one machine: an epoch every 20 seconds, so that people see one pass.

Weights are hidden first here as everywhere: what is committed to in the first epoch pays from the second one on, so
three epochs end with a ranking of all miners (seen: four of four, the specialists' shares between 0.22 and 0.28)."""


def emission_at(params: ChainParams, height: int) -> int:
    """Units minted for the block at ``height``: halved once for each full halving interval before it."""
    return params.emission_per_block >> (height // params.halving_interval)
