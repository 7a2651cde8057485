"""A validator alone on its chain writes weights: hidden first and shown after, through a restart, or in the open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio
from structlog.testing import capture_logs

from moed.consensus.genesis import Genesis
from moed.consensus.params import ChainParams
from moed.consensus.state import Neuron, read_neuron, read_totals
from moed.consensus.transactions import Register
from moed.daemon.chain import Chain
from moed.daemon.journal import FileJournal
from moed.daemon.network.peers import Peers
from moed.daemon.node import now_ms
from moed.daemon.signer import Signer
from moed.daemon.store import Store
from moed.daemon.weights_writer import WeightsWriter
from support.chains import key, make_genesis, signed

PARAMS = ChainParams(block_interval_ms=40, tempo=8, min_stake=0)
GENESIS = make_genesis((100,), balances=(0,), params=PARAMS)
ROW = ((1, 65_535),)
PATIENCE_S = 30.0


@asynccontextmanager
async def validator(folder: Path, genesis: Genesis, weights: Mapping[int, int]) -> AsyncIterator[Chain]:
    """The chain of a lone validator whose writer gives ``weights`` in each epoch; gone, as by a kill, at the end."""
    identity = key(1)
    with Store(folder / "chain.db", genesis) as store:
        signer = Signer(identity, genesis.network_id, FileJournal(folder / "signed.journal"))
        chain = Chain(store.load_head(), store, identity, signer, now_ms=now_ms)
        writer = WeightsWriter(chain, identity.public_key)

        async def weigh() -> Mapping[int, int]:
            return weights

        async with trio.open_nursery() as nursery:
            await nursery.start(chain.run, Peers(identity, genesis.network_id, handlers={}))
            nursery.start_soon(writer.run, weigh)
            if read_totals(chain.head.state).uids == 1:
                await chain.add_transaction(signed(chain.head, key(2), Register()), origin=None)
            with trio.fail_after(PATIENCE_S):
                yield chain
            nursery.cancel_scope.cancel()


def own(chain: Chain) -> Neuron:
    neuron = read_neuron(chain.head.state, 0)
    assert neuron is not None
    return neuron


async def test_a_row_is_hidden_then_shown(tmp_path: Path) -> None:
    """The hash is in the chain in one epoch and the row in the next, epoch after epoch; no log tells it before."""
    async with validator(tmp_path, GENESIS, {1: 7}) as chain:
        with capture_logs() as logged:
            while not own(chain).commits:
                assert own(chain).weights == ()
                await chain.wait_block()
        told = [line for line in logged if line["event"] == "validator.weights_submitted"]
        assert told
        assert all(line["uids"] == 1 and "weights" not in line for line in told)
        (commit,) = own(chain).commits
        while not own(chain).weights:
            await chain.wait_block()
        assert own(chain).weights == ROW
        assert own(chain).last_update == commit.block
        # of the epoch that its block left behind, which is the next one if that was its last block
        assert commit.epoch + 1 <= read_totals(chain.head.state).epoch <= commit.epoch + 2
        while own(chain).last_update == commit.block:
            await chain.wait_block()
        assert own(chain).last_update > commit.block


async def test_a_restart_between_hiding_and_showing_loses_nothing(tmp_path: Path) -> None:
    """What was hidden before a stop is shown by the process after it, which has nothing new to say."""
    async with validator(tmp_path, GENESIS, {1: 7}) as chain:
        while not own(chain).commits:
            await chain.wait_block()
        (commit,) = own(chain).commits
    async with validator(tmp_path, GENESIS, {}) as chain:
        while not own(chain).weights:
            await chain.wait_block()
            assert read_totals(chain.head.state).epoch <= commit.epoch + 2
        assert own(chain).weights == ROW
        assert own(chain).last_update == commit.block


async def test_where_weights_are_open_they_are_set_at_once(tmp_path: Path) -> None:
    """One transaction, in force in its own epoch; nothing is hidden."""
    genesis = make_genesis((100,), balances=(0,), params=msgspec.structs.replace(PARAMS, commit_reveal=False))
    async with validator(tmp_path, genesis, {1: 7}) as chain:
        while not own(chain).weights:
            await chain.wait_block()
        assert own(chain).weights == ROW
        assert own(chain).commits == ()
        assert read_totals(chain.head.state).epoch == (own(chain).last_update - 1) // PARAMS.tempo


async def test_nothing_to_say_writes_nothing(tmp_path: Path) -> None:
    """No weights, and weights of zero, are no row."""
    async with validator(tmp_path, GENESIS, {1: 0}) as chain:
        await chain.wait_height(2 * PARAMS.tempo)
        assert (own(chain).weights, own(chain).commits) == ((), ())
