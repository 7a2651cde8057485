"""Nodes in one process, over real sockets: they agree, catch up from whoever is honest, and believe no liar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from moed.consensus.blocks import NO_BLOCK, Block, Vote, VoteKind, decode_block, sign_proposal, sign_vote
from moed.consensus.errors import InvalidTransaction
from moed.consensus.state import read_account, stake_behind
from moed.consensus.summary import RoundsSummary
from moed.consensus.tally import MAX_VOTES_EACH
from moed.consensus.transactions import Register, Transfer
from moed.consensus.transition import Head
from moed.consensus.turns import proposer
from moed.daemon.chain import Chain
from moed.daemon.hearing import ANSWER_PAUSE_S, MAX_EARLY_EACH, MAX_EARLY_MESSAGES
from moed.daemon.network.calls import Call, Handler, Refused, Reply
from moed.daemon.network.peers import Peer, Priority
from moed.daemon.store import Store, verify_chain
from moed.daemon.sync import Batch
from moed.protocol.codec import convert_record, decode_record, encode_record
from moed.protocol.identity import Identity
from support.chains import grow, key, sign_commit, signed
from support.peering import until
from support.running_chains import DEAF, GENESIS, PARAMS, PATIENCE_S, Listening, Nobody, run_chain, run_liar


async def test_two_validators_decide_and_a_transfer_becomes_final(tmp_path: Path) -> None:
    """A transaction given to one node is in a block of both, once, and both stores verify."""
    async with run_chain(tmp_path / "a", key(1)) as one, run_chain(tmp_path / "b", key(2)) as two:
        await two.dial(one)
        with trio.fail_after(PATIENCE_S):
            await one.chain.wait_height(2)
            payer = Head.at_genesis(GENESIS)
            transfer = signed(payer, key(3), Transfer(to=key(9).public_key, amount=7))
            await two.chain.add_transaction(transfer, origin=None)
            while not read_account(one.chain.head.state, key(9).public_key).balance:
                await one.chain.wait_block()
            height = one.chain.height
            await two.chain.wait_height(height)
            with pytest.raises(InvalidTransaction):
                await two.chain.add_transaction(transfer, origin=None)
            await one.chain.wait_height(height + 3)
        assert read_account(one.chain.head.state, key(9).public_key).balance == 7
    for name in ("a", "b"):
        with Store(tmp_path / name / "chain.db", GENESIS) as store:
            assert verify_chain(store).height >= height


async def test_a_registration_needs_nobodys_leave(tmp_path: Path) -> None:
    """A key that no genesis names asks for a uid through any node and gets it."""
    async with (
        run_chain(tmp_path / "a", key(1)) as one,
        run_chain(tmp_path / "b", key(2)) as two,
        run_chain(tmp_path / "c", key(50)) as newcomer,
    ):
        await two.dial(one)
        await newcomer.dial(two)
        with trio.fail_after(PATIENCE_S):
            await newcomer.chain.wait_height(1)
            await newcomer.chain.submit(Register())
            assert newcomer.chain.has_waiting
            while read_account(newcomer.chain.head.state, key(50).public_key).uid is None:
                await newcomer.chain.wait_block()
        assert read_account(newcomer.chain.head.state, key(50).public_key).uid == 2
        assert not newcomer.chain.has_waiting


def long_chain(folder: Path, blocks: int) -> None:
    """Blocks that both validators signed, on disk."""
    folder.mkdir()
    with Store(folder / "chain.db", GENESIS) as store:
        head = store.load_head()
        for _ in range(blocks):
            block, _ = head.build([], proposer=key(1).public_key, now_ms=head.time_ms + 1)
            commit = sign_commit(GENESIS, block, [key(1), key(2)])
            executed = head.execute(block)
            store.append(executed, commit)
            head.advance(executed, commit)


async def test_a_late_node_catches_up(tmp_path: Path) -> None:
    """More blocks than fit one answer come over, are executed again, and end in the same root."""
    long_chain(tmp_path / "a", 200)
    async with (
        run_chain(tmp_path / "a", key(1)) as full,
        run_chain(tmp_path / "b", key(50), signs=False) as late,
    ):
        await late.dial(full)
        with trio.fail_after(PATIENCE_S):
            await late.chain.wait_height(200)
        assert late.chain.head.state_root == full.chain.head.state_root


async def test_a_late_node_asks_several_peers_and_believes_no_liar_among_them(tmp_path: Path) -> None:
    """Batches come from all who have them; one whose blocks do not hold is cut off, and the rest count."""
    long_chain(tmp_path / "a", 200)
    long_chain(tmp_path / "b", 200)
    is_met = trio.Event()
    asked: dict[str, int] = {"a": 0, "b": 0, "liar": 0}

    def count(name: str) -> Callable[[Mapping[str, Handler]], Mapping[str, Handler]]:
        def wrap(handlers: Mapping[str, Handler]) -> Mapping[str, Handler]:
            async def give(call: Call) -> Reply | None:
                asked[name] += 1
                await is_met.wait()
                return await handlers["chain.blocks"](call)

            return {**handlers, "chain.blocks": give}

        return wrap

    other = Head.at_genesis(GENESIS)
    forged = [encode_record(grow(other, [key(1), key(2)])) for _ in range(10)]

    async def lie(call: Call) -> Reply:
        asked["liar"] += 1
        return Reply([[block, encode_record(sign_commit(GENESIS, decode_block(block), [key(1)]))] for block in forged])

    async with (
        run_chain(tmp_path / "a", key(50), signs=False, serves=count("a")) as one,
        run_chain(tmp_path / "b", key(51), signs=False, serves=count("b")) as two,
        run_chain(tmp_path / "c", key(52), signs=False) as late,
        run_liar({**DEAF, "chain.blocks": lie}) as (liar, _),
    ):
        session = await liar.connect(late.address, None, timeout_s=5)
        await session.notify("chain.status", {"height": 200})
        for full in (one, two):
            await late.dial(full)
        is_met.set()
        with trio.fail_after(PATIENCE_S):
            await late.chain.wait_height(200)
            await until(lambda: not asked["liar"] or late.peers.get(key(66).node_id) is None, within_s=PATIENCE_S)
        assert late.chain.head.state_root == one.chain.head.state_root
    assert asked["a"] > 0
    assert asked["b"] > 0


async def test_a_liar_in_sync_is_cut_off_and_not_believed(tmp_path: Path) -> None:
    """Final blocks that too little stake signed end the session; the honest peer's blocks are taken all the same."""
    long_chain(tmp_path / "a", 20)
    forged = Head.at_genesis(GENESIS)
    block = grow(forged, [key(1), key(2)])
    weak = sign_commit(GENESIS, block, [key(1)])
    asked = trio.Event()

    async def lie(_: Call) -> Reply:
        asked.set()
        return Reply([[encode_record(block), encode_record(weak)]])

    async with (
        run_chain(tmp_path / "b", key(50), signs=False) as late,
        run_liar({**DEAF, "chain.blocks": lie}) as (liar, _),
    ):
        with trio.fail_after(PATIENCE_S):
            session = await liar.connect(late.address, None, timeout_s=5)
            await session.notify("chain.status", {"height": 1_000})
            await asked.wait()
            await until(lambda: late.peers.get(key(66).node_id) is None, within_s=PATIENCE_S)
        assert late.chain.height == 0
        async with run_chain(tmp_path / "a", key(1)) as full:
            await late.dial(full)
            with trio.fail_after(PATIENCE_S):
                await late.chain.wait_height(20)


async def test_good_blocks_before_a_bad_one_are_kept(tmp_path: Path) -> None:
    """Blocks are read one at a time: those before the first that does not hold are final, and then the peer goes."""
    ahead = Head.at_genesis(GENESIS)
    blocks = [grow(ahead, [key(1), key(2)]) for _ in range(3)]
    rows = [[encode_record(block), encode_record(sign_commit(GENESIS, block, [key(1), key(2)]))] for block in blocks]
    rows[2][0] = rows[0][0]  # a commit that holds, behind another block

    async def give(_: Call) -> Reply:
        return Reply([*rows, [b"not a block", b"nor a commit"]])

    async with (
        run_chain(tmp_path / "b", key(50), signs=False) as late,
        run_liar({**DEAF, "chain.blocks": give}) as (liar, _),
    ):
        session = await liar.connect(late.address, None, timeout_s=5)
        await session.notify("chain.status", {"height": 1_000})
        with trio.fail_after(PATIENCE_S):
            await late.chain.wait_height(2)
            await until(lambda: late.peers.get(key(66).node_id) is None, within_s=PATIENCE_S)
        assert late.chain.height == 2


async def test_a_peer_that_claims_more_than_it_has_costs_one_question(tmp_path: Path) -> None:
    """An empty answer to the claim of a great height is not asked for again and again."""
    questions = 0

    async def nothing(_: Call) -> Reply:
        nonlocal questions
        questions += 1
        return Reply([])

    async with (
        run_chain(tmp_path / "a", key(1)) as one,
        run_chain(tmp_path / "b", key(2)) as two,
        run_liar({**DEAF, "chain.blocks": nothing}) as (liar, _),
    ):
        await two.dial(one)
        session = await liar.connect(one.address, None, timeout_s=5)
        await session.notify("chain.status", {"height": 1_000_000})
        with trio.fail_after(PATIENCE_S):
            await one.chain.wait_height(10)
        assert questions <= 2


async def test_transactions_that_come_too_late_do_not_count_against_their_bearer(tmp_path: Path) -> None:
    """An honest peer passes on what a block has taken meanwhile; however often, its session stays."""
    async with run_chain(tmp_path / "a", key(50)) as one, run_liar(DEAF) as (peer, _):
        session = await peer.connect(one.address, None, timeout_s=5)
        stale = signed(one.chain.head, key(3), Transfer(to=key(9).public_key, amount=1), 10_000)
        for _ in range(100):
            await session.notify("chain.transactions", [encode_record(stale)])
        good = signed(one.chain.head, key(3), Transfer(to=key(9).public_key, amount=1))
        await session.notify("chain.transactions", [encode_record(good)])
        await until(lambda: good in one.chain.mempool, within_s=PATIENCE_S)
        assert one.peers.get(key(66).node_id) is not None


async def test_early_messages_of_strangers_are_not_kept(tmp_path: Path) -> None:
    """Only what a validator signed waits for the next height; a stranger's word is dropped, a forgery is charged.

    One validator that says a lot keeps no other from being heard.
    """
    async with run_chain(tmp_path / "a", key(50)) as one, run_liar(DEAF) as (peer, _):
        session = await peer.connect(one.address, None, timeout_s=5)

        def vote(signer: Identity, round_number: int) -> Vote:
            return sign_vote(signer, GENESIS.network_id, VoteKind.PREVOTE, 2, round_number, NO_BLOCK)

        for number in range(30):
            await session.notify("chain.vote", encode_record(vote(key(77), number)))
        forged = msgspec.structs.replace(vote(key(77), 5), validator=key(1).public_key)
        await session.notify("chain.vote", encode_record(forged))
        flood = [vote(key(2), number) for number in range(MAX_EARLY_MESSAGES)]
        for message in (*flood, vote(key(1), 7)):
            await session.notify("chain.vote", encode_record(message))
        await until(
            lambda: vote(key(1), 7) in [heard.message for heard in one.chain._hearing.early], within_s=PATIENCE_S
        )
        kept = [heard.message for heard in one.chain._hearing.early]
        assert kept == [*flood[:MAX_EARLY_EACH], vote(key(1), 7)]
        assert one.peers.counters.notices_refused == 1


async def test_what_no_honest_peer_passes_on_is_charged_to_its_bearer(tmp_path: Path) -> None:
    """A vote of no validator, a proposal out of turn, a signed header with another body: each is its sender's fault."""
    async with run_chain(tmp_path / "a", key(50)) as one, run_liar(DEAF) as (peer, _):
        session = await peer.connect(one.address, None, timeout_s=5)
        head, network_id = one.chain.head, GENESIS.network_id
        turn = next(signer for signer in (key(1), key(2)) if signer.public_key == proposer(head.validators, 0))
        block, _ = head.build([], proposer=turn.public_key, now_ms=head.time_ms + 1)
        other, _ = head.build(
            [signed(head, key(3), Transfer(to=key(9).public_key, amount=1))],
            proposer=turn.public_key,
            now_ms=head.time_ms + 1,
        )
        forged = sign_proposal(key(77), network_id, 0, -1, block)
        good = sign_proposal(turn, network_id, 0, -1, block)
        mixed = msgspec.structs.replace(
            good, block=Block(header=block.header, transactions=other.transactions, last_commit=block.last_commit)
        )
        stranger = sign_vote(key(77), network_id, VoteKind.PREVOTE, 1, 0, NO_BLOCK)
        for method, message in (("vote", stranger), ("proposal", forged), ("proposal", mixed), ("proposal", good)):
            await session.notify(f"chain.{method}", encode_record(message))
        await until(lambda: one.chain._rounds.proposals, within_s=PATIENCE_S)
        assert one.chain._rounds.proposals == {0: good}
        assert one.peers.counters.notices_refused == 3


async def test_what_does_not_count_is_not_passed_on(tmp_path: Path) -> None:
    """Of a liar's votes for one step four travel on; else all would pay for each that it can sign.

    One of the rest counts and travels when it is told again and over a third of the stake wants the same.
    """
    heard: list[Vote] = []
    markers = {1: trio.Event(), 2: trio.Event()}

    async def hear(call: Call) -> Reply:
        heard.append(decode_record(call.body, Vote))
        if heard[-1].round in markers:
            markers[heard[-1].round].set()
        return Reply(None)

    def lie(block_hash: bytes, round_number: int) -> Vote:
        return sign_vote(key(2), GENESIS.network_id, VoteKind.PRECOMMIT, 1, round_number, block_hash)

    async with (
        run_chain(tmp_path / "a", key(1)) as one,
        run_liar(DEAF) as (liar, _),
        run_liar({**DEAF, "chain.vote": hear}, 67) as (listener, _),
    ):
        await listener.connect(one.address, None, timeout_s=5)
        session = await liar.connect(one.address, None, timeout_s=5)
        lies = [lie(bytes([number]) * 32, 0) for number in range(1, 20)]
        for vote in (*lies, lie(b"\1" * 32, 1)):
            await session.notify("chain.vote", encode_record(vote))
        with trio.fail_after(PATIENCE_S):
            await markers[1].wait()
        wanted = lies[MAX_VOTES_EACH]
        same = sign_vote(key(1), GENESIS.network_id, VoteKind.PRECOMMIT, 1, 0, wanted.block_hash)
        for vote in (same, *lies, lie(b"\1" * 32, 2)):
            await session.notify("chain.vote", encode_record(vote))
        with trio.fail_after(PATIENCE_S):
            await markers[2].wait()
    of_liar = [vote for vote in heard if vote.validator == key(2).public_key]
    assert of_liar == [*lies[:MAX_VOTES_EACH], lie(b"\1" * 32, 1), wanted, lie(b"\1" * 32, 2)]


async def test_a_liar_that_announces_itself_again_does_not_hold_up_the_sync(tmp_path: Path) -> None:
    """Whoever failed us is asked after everybody else, whatever height it claims and however often."""
    long_chain(tmp_path / "a", 150)
    asked = trio.Event()

    async def refuse(_: Call) -> Reply:
        asked.set()
        raise Refused("busy", "ask again")

    async def boast(session: Peer) -> None:
        while True:
            await session.notify("chain.status", {"height": 1_000_000}, priority=Priority.HIGH)
            await trio.sleep(0.002)

    async with (
        run_chain(tmp_path / "a", key(1)) as full,
        run_chain(tmp_path / "b", key(50), signs=False) as late,
        run_liar({**DEAF, "chain.blocks": refuse}) as (liar, _),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(boast, await liar.connect(late.address, None, timeout_s=5))
        with trio.fail_after(PATIENCE_S):
            await asked.wait()
            await late.dial(full)
            await late.chain.wait_height(150)
        nursery.cancel_scope.cancel()


async def test_a_claim_that_was_forgotten_is_heard_again(tmp_path: Path) -> None:
    """After a fetch that failed nothing is known of the peer's height; it is told again though no block comes."""
    long_chain(tmp_path / "a", 5)
    asked = 0

    def refuse_once(handlers: Mapping[str, Handler]) -> Mapping[str, Handler]:
        async def give(call: Call) -> Reply | None:
            nonlocal asked
            asked += 1
            if asked == 1:
                raise Refused("busy", "ask again")
            return await handlers["chain.blocks"](call)

        return {**handlers, "chain.blocks": give}

    async with (
        run_chain(tmp_path / "a", key(1), serves=refuse_once) as full,
        run_chain(tmp_path / "b", key(50), signs=False) as late,
    ):
        await late.dial(full)
        with trio.fail_after(PATIENCE_S):
            await late.chain.wait_height(5)
        assert asked == 2


async def test_a_greeting_tells_what_waits(tmp_path: Path) -> None:
    """A new peer hears how far we are, what we hold of the height under way, and of all waiting transactions."""
    async with run_chain(tmp_path / "a", key(50)) as one:
        waiting = [signed(one.chain.head, key(sender), Register()) for sender in (3, 4, 5)]
        for transaction in waiting:
            await one.chain.add_transaction(transaction, origin=None)
        session = Listening()
        await one.chain.greet(session)
        with trio.fail_after(PATIENCE_S):
            await session.is_done.wait()
        assert session.told["chain.status"] == {"height": 0}
        assert convert_record(session.told["chain.have"], RoundsSummary).height == 1
        told = session.told["chain.transactions"]
        assert isinstance(told, list)
        assert sorted(told) == sorted(encode_record(transaction) for transaction in waiting)


@pytest.mark.parametrize("heights_late", [0, 2])
async def test_who_signs_twice_is_slashed(heights_late: int, tmp_path: Path) -> None:
    """Two votes of one validator for one step cost it stake within a few blocks, also if one comes after the decision.

    The late one contradicts what the validator signed in earnest at that height.
    """
    async with run_chain(tmp_path / "a", key(1)) as one, run_liar(DEAF) as (peer, _):
        before = stake_behind(one.chain.head.state, key(2).public_key)
        session = await peer.connect(one.address, None, timeout_s=5)
        honest_peer = run_chain(tmp_path / "b", key(2))
        async with honest_peer as two:
            await two.dial(one)
            with trio.fail_after(PATIENCE_S):
                await one.chain.wait_height(heights_late)
                while stake_behind(one.chain.head.state, key(2).public_key) == before:
                    height = one.chain.height + 1 - heights_late
                    for block_hash in (b"\1" * 32, b"\2" * 32)[: 1 if heights_late else 2]:
                        vote = sign_vote(key(2), GENESIS.network_id, VoteKind.PREVOTE, height, 0, block_hash)
                        await session.notify("chain.vote", encode_record(vote))
                    await one.chain.wait_block()
        assert stake_behind(one.chain.head.state, key(2).public_key) < before


async def test_who_asks_again_and_again_is_answered_now_and_then(tmp_path: Path) -> None:
    """A summary is short and what it lacks may be long: a burst of them gets one answer, and a status all the same."""
    answers = 0
    is_answered, is_over = trio.Event(), trio.Event()

    async def count(_: Call) -> Reply:
        nonlocal answers
        answers += 1
        is_answered.set()
        return Reply(None)

    async def note_status(call: Call) -> Reply:
        if is_answered.is_set():
            is_over.set()
        return Reply(None)

    async with (
        run_chain(tmp_path / "a", key(1)) as one,
        run_liar({**DEAF, "chain.vote": count, "chain.status": note_status}) as (peer, _),
    ):
        with trio.fail_after(PATIENCE_S):
            await until(lambda: one.chain._rounds.news()[1], within_s=PATIENCE_S)
            session = await peer.connect(one.address, None, timeout_s=5)
            began_s = trio.current_time()
            for _ in range(100):
                await session.notify("chain.have", {"height": 1, "proposals": [], "votes": []})
            await is_answered.wait()
            await one.chain.greet(one.peers.connected()[0])
            await is_over.wait()
            pauses = (trio.current_time() - began_s) / ANSWER_PAUSE_S
        assert answers <= (pauses + 2) * len(one.chain._rounds.news()[1])


async def test_an_early_date_takes_no_pause_away(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """However early a proposer dates its block, the next height begins most of an interval after the last one did."""

    async def run_inline(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def clock_ms() -> int:
        return 1_700_000_000_000 + int(trio.current_time() * 1_000)

    dated = Head.at_genesis(GENESIS)
    block = grow(dated, [key(1), key(2)])
    commit = sign_commit(GENESIS, block, [key(1), key(2)])
    with Store(tmp_path / "chain.db", GENESIS) as store:
        chain = Chain(store.load_head(), store, key(50), None, now_ms=clock_ms, run_blocking=run_inline)

        async def wait_begun() -> None:
            while chain.standing.step == "waiting":  # noqa: ASYNC110  # nothing signals a step
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            await nursery.start(chain.run, Nobody())
            await wait_begun()
            began_s = trio.current_time()
            await chain._take_fetched(Batch(Listening(), 1, [(encode_record(block), encode_record(commit))]))
            assert chain.height == 1
            await wait_begun()
            assert trio.current_time() - began_s >= 0.7 * PARAMS.block_interval_ms / 1_000
            nursery.cancel_scope.cancel()
