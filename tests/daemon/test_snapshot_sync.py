"""A new node begins at a late state that peers give it, whoever lies, floods or goes away meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import trio

from moed.consensus.light import Checkpoint
from moed.consensus.params import ChainParams
from moed.consensus.snapshots import Manifest, cut_pieces, piece_hash
from moed.consensus.state import VALIDATORS_KEY, Account, account_key
from moed.consensus.transactions import Transfer
from moed.consensus.transition import Head
from moed.daemon.chain import Chain
from moed.daemon.journal import FileJournal
from moed.daemon.network.calls import Handler, Reply
from moed.daemon.network.errors import PeerLost, RemoteRefusal
from moed.daemon.network.peers import Peers, Priority
from moed.daemon.node import now_ms
from moed.daemon.signer import Signer
from moed.daemon.snapshot_files import write_state
from moed.daemon.snapshot_shelf import Shelf
from moed.daemon.snapshot_sync import SnapshotSync
from moed.daemon.store import Store, verify_chain
from moed.protocol.addresses import Address
from moed.protocol.codec import encode_record
from moed.protocol.identity import Identity, NodeId
from support.chains import key, make_genesis, sign_commit, signed
from support.peering import until
from support.running_chains import sessions_of

PARAMS = ChainParams(
    block_interval_ms=50, tempo=10, timeout_propose_ms=2_000, timeout_vote_ms=1_000, fee_per_byte=0, min_stake=0
)
GENESIS = make_genesis((60, 40), balances=(1_000,), params=PARAMS)
BOTH = [key(1), key(2)]
PATIENCE_S = 30.0


def long_chain(folder: Path, blocks: int) -> Head:
    """A home's chain of so many blocks with a transfer each, its steps, and the snapshots that a node keeps."""
    (folder / "snapshots").mkdir(parents=True)
    with Store(folder / "chain.db", GENESIS) as store:
        head = store.load_head()
        for number in range(blocks):
            transfer = signed(head, key(3), Transfer(to=key(100 + number).public_key, amount=1), number)
            block, refused = head.build([transfer], proposer=key(1).public_key, now_ms=head.time_ms + 1)
            assert refused == []
            executed, commit = head.execute(block), sign_commit(GENESIS, block, BOTH)
            store.append(executed, commit)
            head.advance(executed, commit)
            store.keep_step(head)
            if head.height % PARAMS.tempo == 0:
                assert head.header is not None
                path = folder / "snapshots" / f"{head.height}.state"
                write_state(path, head.network_id, head.header, head.commit, head.state.encoded().items())
    return head


class Running:
    """One node's chain, and its sessions."""

    def __init__(self, chain: Chain, peers: Peers, store: Store, shelf: Shelf, address: Address) -> None:
        self.chain = chain
        self.peers = peers
        self.store = store
        self.shelf = shelf
        self.address = address


@asynccontextmanager
async def run_chain(
    folder: Path,
    identity: Identity,
    *,
    begins_late: bool = False,
    checkpoint: Checkpoint | None = None,
    serves: Callable[[Mapping[str, Handler]], Mapping[str, Handler]] = dict,
) -> AsyncIterator[Running]:
    """A chain in ``folder`` as a daemon has it, with sessions; ``serves`` may change what it answers."""
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240  # a test's own folder in memory or near it
    with Store(folder / "chain.db", GENESIS) as store:
        shelf = Shelf(store, folder / "snapshots")
        chain = Chain(
            store.load_head(),
            store,
            identity,
            Signer(identity, GENESIS.network_id, FileJournal(folder / "signed.journal")),
            now_ms=now_ms,
            shelf=shelf,
            snapshots=SnapshotSync(store, folder / "incoming", checkpoint=checkpoint) if begins_late else None,
            checkpoint=checkpoint,
        )
        peers = sessions_of(chain, identity, serves(chain.handlers()))
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            await nursery.start(chain.run, peers)
            await nursery.start(peers.run, [listener])
            yield Running(chain, peers, store, shelf, Address("127.0.0.1", listener.socket.getsockname()[1]))
            nursery.cancel_scope.cancel()


async def test_a_step_that_a_kill_kept_from_the_disk_is_there_after_the_restart(tmp_path: Path) -> None:
    """The last block was on the disk and the proof of its validators was not: one gap would end the way for ever."""
    long_chain(tmp_path / "a", 2 * PARAMS.tempo)
    with Store(tmp_path / "a" / "chain.db", GENESIS) as store:
        steps = store.steps(PARAMS.tempo, PARAMS.tempo, 9, 1 << 20)
        store._db.execute("DELETE FROM steps WHERE height = ?", (2 * PARAMS.tempo,))
    async with run_chain(tmp_path / "a", key(50)) as again:
        assert again.store.steps(PARAMS.tempo, PARAMS.tempo, 9, 1 << 20) == steps
    assert len(steps) == 2


async def test_a_new_node_begins_at_the_last_epoch_while_blocks_go_on(tmp_path: Path) -> None:
    """Two validators come to the end of an epoch and keep its state; a third node begins there, and then gives it."""
    long_chain(tmp_path / "a", 38)
    copytree(tmp_path / "a", tmp_path / "b")
    async with (
        run_chain(tmp_path / "a", key(1)) as one,
        run_chain(tmp_path / "b", key(2)) as two,
        run_chain(tmp_path / "c", key(50), begins_late=True) as late,
    ):
        await two.peers.connect(one.address, None, timeout_s=5)
        await until(lambda: 40 in one.shelf.heights and 40 in two.shelf.heights)
        for other in (one, two):
            await late.peers.connect(other.address, None, timeout_s=5)
        with trio.fail_after(PATIENCE_S):
            await late.chain.wait_height(41)
            height = late.chain.height
            await late.chain.wait_height(one.chain.height + 10)
        assert height >= 40
        assert late.store.first_height >= 41
        assert not (tmp_path / "c" / "incoming").exists()
        await until(lambda: bool(late.shelf.heights))
        assert len(late.store.steps(10, 10, 256, 1 << 20)) >= 5
        await until(lambda: late.chain.head.hash == one.chain.head.hash)
        assert late.chain.head.state_root == one.chain.head.state_root
    with Store(tmp_path / "c" / "chain.db", GENESIS) as store:
        assert verify_chain(store).height >= 50


class Liar:
    """What a node answers that has another state to offer: one in which its own key is rich."""

    def __init__(self, head: Head, lie: str) -> None:
        self.head = head
        self.lie = lie
        rows = head.state.encoded()
        rows[account_key(key(66).public_key)] = encode_record(Account(balance=10**15))
        self.pieces = list(cut_pieces(sorted(rows.items())))

    def change(self, handlers: Mapping[str, Handler]) -> Mapping[str, Handler]:
        async def manifests(_: Any) -> Reply:
            pieces = tuple(piece_hash(one) for one in self.pieces)
            manifest = Manifest(height=self.head.height, block_hash=self.head.hash, pieces=pieces)
            return Reply([encode_record(manifest)])

        async def piece(_: Any) -> Reply:
            return Reply(b"something else" if self.lie == "piece" else self.pieces[0])

        async def steps(_: Any) -> Reply:
            return Reply([b"no step"])

        changed: dict[str, Handler] = {"chain.snapshots": manifests, "chain.snapshot_piece": piece}
        return {**handlers, **changed, **({"chain.steps": steps} if self.lie == "steps" else {})}


async def test_no_liar_is_believed_and_the_honest_one_is(tmp_path: Path) -> None:
    """False pieces, pieces of a false state, false steps: each ends its session, and the state is the true one."""
    head = long_chain(tmp_path / "honest", 34)
    for name in ("piece", "state", "steps"):
        copytree(tmp_path / "honest", tmp_path / name)
    at_epoch = Head.at_genesis(GENESIS)
    with Store(tmp_path / "honest" / "chain.db", GENESIS) as store:
        for block, commit in store.blocks():
            if block.height <= 30:
                at_epoch.advance(at_epoch.execute(block), commit)
    async with (
        run_chain(tmp_path / "honest", key(70)) as honest,
        run_chain(tmp_path / "piece", key(71), serves=Liar(at_epoch, "piece").change) as one,
        run_chain(tmp_path / "state", key(72), serves=Liar(at_epoch, "state").change) as two,
        run_chain(tmp_path / "steps", key(73), serves=Liar(at_epoch, "steps").change) as three,
        run_chain(tmp_path / "late", key(50), begins_late=True) as late,
    ):
        await until(lambda: honest.shelf.heights == [20, 30])
        for other in (one, two, three, honest):
            await late.peers.connect(other.address, None, timeout_s=5)
        with trio.fail_after(PATIENCE_S):
            await late.chain.wait_height(34)
        assert late.chain.head.hash == head.hash
        assert late.store.first_height == 31
        assert account_key(key(66).public_key) not in late.chain.head.state.encoded()


class Session:
    """A peer in memory that gives the snapshot at a head in small pieces, and goes away after some of them."""

    def __init__(self, number: int, head: Head, steps: list[bytes], *, pieces_left: int = 10**6) -> None:
        rows = list(head.state.encoded().items())
        self.pieces = [one for at in range(0, len(rows), 4) for one in cut_pieces(rows[at : at + 4])]
        self.steps = steps
        self.head = head
        self.given: list[int] = []
        self.is_dropped = False
        self._number = number
        self._left = pieces_left
        self._is_busy = False

    @property
    def node_id(self) -> NodeId:
        return key(self._number).node_id

    async def call(
        self, method: str, body: Any = None, *, deadline_s: float, max_answer_bytes: int | None = None
    ) -> Reply:
        await trio.lowlevel.checkpoint()
        if method == "chain.steps":
            return Reply(self.steps[body["start"] // PARAMS.tempo - 1 :])
        if method == "chain.snapshots":
            hashes = tuple(piece_hash(one) for one in self.pieces)
            manifest = Manifest(height=self.head.height, block_hash=self.head.hash, pieces=hashes)
            return Reply([encode_record(manifest)])
        self._is_busy = not self._is_busy
        if self._is_busy and len(self.given) % 5 == 0:
            raise RemoteRefusal("busy", "later")
        if not self._left:
            raise PeerLost("gone")
        self._left -= 1
        self.given.append(body["index"])
        return Reply(self.pieces[body["index"]])

    async def notify(self, method: str, body: object = None, *, priority: Priority) -> None:
        raise AssertionError("nobody is told anything")

    def drop(self) -> None:
        self.is_dropped = True


def chain_with_steps(folder: Path, blocks: int) -> tuple[Head, list[bytes]]:
    head = long_chain(folder, blocks)
    with Store(folder / "chain.db", GENESIS) as store:
        return head, store.steps(PARAMS.tempo, PARAMS.tempo, 256, 1 << 20)


async def test_what_was_brought_before_a_stop_is_not_asked_for_again(tmp_path: Path) -> None:
    """Peers go away in the middle; with others, and after a restart, only what lacks is brought, from all of them."""
    head, steps = chain_with_steps(tmp_path / "a", 20)
    with Store(tmp_path / "new.db", GENESIS) as store:
        first = Session(60, head, steps, pieces_left=3)
        assert await SnapshotSync(store, tmp_path / "incoming").find([first]) is None
        (tmp_path / "incoming" / piece_hash(first.pieces[first.given[0]]).hex()).write_bytes(b"half")
        (tmp_path / "incoming" / "of another manifest").write_bytes(b"x")
        others = [Session(61, head, steps, pieces_left=2), Session(62, head, steps), Session(63, head, steps)]
        found = await SnapshotSync(store, tmp_path / "incoming").find(others)
        assert found is not None
        assert found.hash == head.hash
        given = [index for one in others for index in one.given]
        assert sorted(given) == [index for index in range(len(first.pieces)) if index not in first.given[1:]]
        assert all(one.given for one in others)
        assert not any(one.is_dropped for one in (first, *others))


async def test_what_a_validator_offers_comes_before_what_many_without_stake_do(tmp_path: Path) -> None:
    """A manifest is signed by nobody; a crowd that tells the same false one does not cost even its download."""
    head, steps = chain_with_steps(tmp_path / "a", 20)
    crowd = [Session(number, head, steps) for number in range(60, 66)]
    for one in crowd:
        one.pieces = one.pieces[:-1]
    validator = Session(2, head, steps)
    with Store(tmp_path / "new.db", GENESIS) as store:
        found = await SnapshotSync(store, tmp_path / "incoming").find([*crowd, validator])
    assert found is not None
    assert found.state_root == head.state_root
    assert len(validator.given) == len(validator.pieces)
    assert not any(one.given for one in crowd)


async def test_steps_of_a_false_chain_do_not_stop_whoever_knows_a_checkpoint(tmp_path: Path) -> None:
    """The first validators' keys sign another past, told first and only in part: the true one is found all the same."""
    head, steps = chain_with_steps(tmp_path / "a", 30)
    false, wrong = Head.at_genesis(GENESIS), []
    for _ in range(30):
        block, _ = false.build([], proposer=key(1).public_key, now_ms=false.time_ms + 7)
        false.advance(false.execute(block), sign_commit(GENESIS, block, BOTH))
        if false.height % PARAMS.tempo == 0:
            wrong.append(encode_record(false.prove(VALIDATORS_KEY)))
    with Store(tmp_path / "a" / "chain.db", GENESIS) as store:
        known = next(block for block, _ in store.blocks() if block.height == 20)
    checkpoint = Checkpoint(20, known.hash)
    for shown in (1, 3):
        liar, honest = Session(60, false, wrong[:shown]), Session(61, head, steps)
        with Store(tmp_path / f"{shown}.db", GENESIS) as store:
            sync = SnapshotSync(store, tmp_path / f"incoming {shown}", checkpoint=checkpoint)
            found = await sync.find([liar, honest])
            assert found is not None
            assert found.hash == head.hash
            assert (honest.is_dropped, liar.is_dropped) == (False, True)
            assert store.steps(checkpoint.height, PARAMS.tempo, 256, 1 << 20) == steps[1:]


async def test_a_flood_of_questions_is_answered_one_at_a_time(tmp_path: Path) -> None:
    """Most are told to wait, nobody is cut off, and the next question in its turn is answered."""
    long_chain(tmp_path / "a", 20)
    async with run_chain(tmp_path / "a", key(50)) as node:
        asking = Peers(key(60), GENESIS.network_id, handlers={})
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        said: list[str] = []

        async def ask(request: dict[str, int]) -> None:
            try:
                reply = await peer.call("chain.snapshot_piece", request, deadline_s=10)
                said.append("given" if isinstance(reply.body, bytes) else "none")
            except RemoteRefusal as error:
                said.append(error.code)

        async with trio.open_nursery() as nursery:
            await nursery.start(asking.run, [listener])
            await until(lambda: node.shelf.heights == [10, 20])
            peer = await asking.connect(node.address, None, timeout_s=5)
            async with trio.open_nursery() as flood:
                for _ in range(200):
                    flood.start_soon(ask, {"height": 20, "index": 0})
            assert set(said) == {"given", "busy"}
            assert said.count("busy") > 100
            for request in ({"height": 20, "index": 1}, {"height": 19, "index": 0}):
                await ask(request)
                assert said[-1] == "not_kept"
            while said[-1] != "given":
                await ask({"height": 20, "index": 0})
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("at", [100, -50])
async def test_a_damaged_file_is_not_offered(at: int, tmp_path: Path) -> None:
    """What a crash or a bad disk left of a snapshot goes; the others stay."""
    long_chain(tmp_path / "a", 20)
    path = tmp_path / "a" / "snapshots" / "20.state"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    async with run_chain(tmp_path / "a", key(50)) as node:
        await until(lambda: not path.exists() and node.shelf.heights == [10])
