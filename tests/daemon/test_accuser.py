"""A lie that was seen reaches the ledger, whatever keeps the first report of it out."""

from __future__ import annotations

from pathlib import Path

import trio

from moed.consensus.blocks import NO_BLOCK, VoteKind, sign_vote
from moed.consensus.effects import Equivocation
from moed.consensus.mempool import MAX_PER_SENDER
from moed.consensus.params import ChainParams
from moed.consensus.state import stake_behind
from moed.consensus.transactions import CommitWeights, ReportEvidence, SignedTransaction
from moed.consensus.transition import Head
from moed.daemon.chain import Chain
from moed.daemon.gossip import Session
from moed.daemon.journal import FileJournal
from moed.daemon.network.calls import Reply
from moed.daemon.network.peers import Priority
from moed.daemon.node import now_ms
from moed.daemon.signer import Signer
from moed.daemon.store import Store
from moed.daemon.sync import Batch
from moed.protocol.codec import encode_record
from support.chains import grow, key, make_genesis, sign_commit

GENESIS = make_genesis((60, 40), params=ChainParams(fee_per_byte=0, min_stake=0))
BOTH = [key(1), key(2)]


class Nobody:
    """No sessions at all."""

    def connected(self) -> list[Session]:
        return []


class Giver:
    """Who gives us final blocks, and is asked for nothing more."""

    node_id = key(66).node_id

    async def notify(self, method: str, body: object = None, *, priority: Priority) -> None:
        raise AssertionError("nobody is told anything")

    async def call(
        self, method: str, body: object = None, *, deadline_s: float, max_answer_bytes: int | None = None
    ) -> Reply:
        raise AssertionError("nobody is asked")

    def drop(self) -> None:
        raise AssertionError("the blocks are good")


async def follow(chain: Chain, ahead: Head, transactions: list[SignedTransaction]) -> None:
    """Both validators made the next block elsewhere, and the chain fetches it."""
    block = grow(ahead, BOTH, transactions)
    row = (encode_record(block), encode_record(sign_commit(GENESIS, block, BOTH)))
    with trio.fail_after(30):
        await chain._take_fetched(Batch(Giver(), block.height, [row]))
    assert chain.height == block.height


def waiting(chain: Chain) -> list[SignedTransaction]:
    return list(chain.mempool.candidates(chain.head.state))


async def test_evidence_that_found_no_room_is_brought_again(tmp_path: Path) -> None:
    """Until a block has judged the lie, and not after that."""
    ahead = Head.at_genesis(GENESIS)
    votes = [sign_vote(key(2), ahead.network_id, VoteKind.PREVOTE, 1, 0, block) for block in (NO_BLOCK, b"\1" * 32)]
    with Store(tmp_path / "chain.db", GENESIS) as store:
        signer = Signer(key(1), ahead.network_id, FileJournal(tmp_path / "signed.journal"))
        chain = Chain(store.load_head(), store, key(1), signer, now_ms=now_ms)
        async with trio.open_nursery() as nursery:
            await nursery.start(chain.run, Nobody())
            for _ in range(MAX_PER_SENDER):
                await chain.submit(CommitWeights(commitment=b"c" * 32))
            await chain._carry_out([Equivocation(key(2).public_key, *votes)])
            for one in waiting(chain):
                assert isinstance(one.body, CommitWeights)
                chain.mempool.discard(one)
            await follow(chain, ahead, [])
            (report,) = waiting(chain)
            assert isinstance(report.body, ReportEvidence)
            chain.mempool.discard(report)  # as a proposer does that could not apply it
            await follow(chain, ahead, [])
            assert waiting(chain) == [report]
            await follow(chain, ahead, [report])
            assert stake_behind(chain.head.state, key(2).public_key) < 40
            await follow(chain, ahead, [])
            assert waiting(chain) == []
            nursery.cancel_scope.cancel()
