"""Chains that move and shrink: what was exported comes in whole or not at all, and pruning forgets no header."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from moed.consensus.blocks import CommitSignature
from moed.consensus.genesis import Genesis
from moed.consensus.state import Validator, ValidatorSet, read_account
from moed.consensus.transactions import Transfer
from moed.consensus.transition import Head
from moed.daemon.chain_upkeep import export_chain, import_chain, prune_chain
from moed.daemon.cli import moed
from moed.daemon.errors import ChainFileError, NodeError, StoreCorrupt
from moed.daemon.home import Home, initialise, write_genesis
from moed.daemon.keystore import hold_identity, load_identity
from moed.daemon.snapshot_files import begin_at_snapshot, write_snapshot
from moed.daemon.store import Store, verify_chain
from support.chains import key, make_genesis, sign_commit, signed

CREDIT = 10**9
GENESIS = make_genesis((60 * CREDIT, 40 * CREDIT), balances=(10 * CREDIT,))
BOTH = [key(1), key(2)]


def grow_store(store: Store, count: int) -> Head:
    """Append blocks with a transfer each."""
    head = store.load_head()
    for _ in range(count):
        nonce = read_account(head.state, key(3).public_key).nonce
        transfer = signed(head, key(3), Transfer(to=key(50 + nonce % 7).public_key, amount=1_000), nonce)
        block, refused = head.build([transfer], proposer=key(1).public_key, now_ms=head.time_ms + 1_000)
        assert refused == []
        executed, commit = head.execute(block), sign_commit(store.genesis, block, BOTH)
        store.append(executed, commit)
        head.advance(executed, commit)
    return head


def exported(folder: Path, blocks: int, genesis: Genesis = GENESIS) -> Path:
    """A file with the blocks of a chain of this length."""
    with Store(folder / f"{blocks}.db", genesis) as store:
        grow_store(store, blocks)
        export_chain(store, folder / f"{blocks}.moed")
    return folder / f"{blocks}.moed"


def test_a_chain_comes_out_of_its_file_as_it_went_in(tmp_path: Path) -> None:
    """Every block is executed on the way in; importing twice, or a longer file later, brings what is missing."""
    short, long = exported(tmp_path, 5), exported(tmp_path, 12)
    with Store(tmp_path / "12.db", GENESIS) as store:
        root = store.load_head().state_root
    with Store(tmp_path / "new.db", GENESIS) as store:
        assert import_chain(store, short).height == 5
        assert import_chain(store, short).blocks == 0
        moved = import_chain(store, long)
        assert (moved.blocks, moved.height) == (7, 12)
        assert verify_chain(store).state_root == root


@pytest.mark.parametrize("at", [0, 3, 20, 50, 400, 1_500, -10, -1])
def test_a_changed_file_brings_nothing_false(at: int, tmp_path: Path) -> None:
    """Wherever a byte is changed it is said so, and what is kept is a chain that verifies."""
    path = exported(tmp_path, 5)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with Store(tmp_path / "new.db", GENESIS) as store:
        with pytest.raises(ChainFileError):
            import_chain(store, path)
        assert verify_chain(store).height <= 5


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.999])
def test_a_cut_file_brings_what_it_holds_and_says_so(share: float, tmp_path: Path) -> None:
    """The blocks before the cut are good; the rest comes when the whole file does."""
    path = exported(tmp_path, 6)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with Store(tmp_path / "new.db", GENESIS) as store:
        with pytest.raises(ChainFileError):
            import_chain(store, path)
        before = store.load_head().height
        path.write_bytes(whole)
        assert import_chain(store, path).blocks == 6 - before


def test_files_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    """Another network's, and one that begins after the end here."""
    path = exported(tmp_path, 6)
    foreign = make_genesis((60 * CREDIT, 41 * CREDIT), balances=(10 * CREDIT,))
    with Store(tmp_path / "foreign.db", foreign) as store, pytest.raises(ChainFileError, match="network"):
        import_chain(store, path)
    with Store(tmp_path / "6.db", GENESIS) as store:
        prune_chain(store, 2)
        export_chain(store, tmp_path / "tail.moed")
    with Store(tmp_path / "new.db", GENESIS) as store, pytest.raises(ChainFileError, match="goes on at block 5"):
        import_chain(store, tmp_path / "tail.moed")
    with Store(tmp_path / "new.db", GENESIS) as store:
        import_chain(store, path)
        assert import_chain(store, tmp_path / "tail.moed").blocks == 0


def test_a_pruned_chain_keeps_its_headers_and_goes_on(tmp_path: Path) -> None:
    """The bodies are gone and the file is smaller; the rest is executed again from the state in their place."""
    with Store(tmp_path / "chain.db", GENESIS) as store:
        head = grow_store(store, 40)
        hashes = [block.hash for block, _ in store.blocks()]
        pruned = prune_chain(store, 10)
        assert (pruned.blocks, pruned.first_height) == (30, 31)
        assert pruned.bytes_after < pruned.bytes_before
        assert [header.hash for header, _ in store.headers()] == hashes[:30]
        assert (store.encoded_blocks(30, 5), len(store.encoded_blocks(31, 50))) == ([], 10)
        assert verify_chain(store).state_root == head.state_root
        grow_store(store, 5)
        assert prune_chain(store, 10).blocks == 5
        assert prune_chain(store, 10).blocks == 0
        assert verify_chain(store).height == 45
    with Store(tmp_path / "chain.db", GENESIS) as store:
        assert store.load_head().height == 45
        assert (store.first_height, len(list(store.headers()))) == (36, 35)


def test_everything_may_be_pruned_to_the_last_block(tmp_path: Path) -> None:
    """The head then stands on a header, and the next block on that."""
    with Store(tmp_path / "chain.db", GENESIS) as store:
        head = grow_store(store, 3)
        prune_chain(store, 1)
        store.rebase(store.load_head())
        assert (store.first_height, store.load_head().hash) == (4, head.hash)
        grow_store(store, 1)
        assert verify_chain(store).height == 4


def test_a_store_may_begin_at_a_snapshot(tmp_path: Path) -> None:
    """A checked state and the block that it is of are enough to go on from; nothing of before is asked for."""
    with Store(tmp_path / "old.db", GENESIS) as store:
        head = grow_store(store, 8)
    with Store(tmp_path / "new.db", GENESIS) as store:
        store.rebase(head, keeps_blocks=False)
        assert (store.load_head().state_root, store.first_height) == (head.state_root, 9)
        grow_store(store, 2)
        assert verify_chain(store).height == 10


def test_a_bad_block_is_not_pruned_away(tmp_path: Path) -> None:
    """Pruning executes what it lets go of; what does not hold stays to be looked at."""
    with Store(tmp_path / "chain.db", GENESIS) as store:
        grow_store(store, 6)
        store._db.execute("UPDATE blocks SET block = (SELECT block FROM blocks WHERE height = 5) WHERE height = 2")
        with pytest.raises(StoreCorrupt):
            prune_chain(store, 2)
        assert store.first_height == 1


@pytest.mark.parametrize("at", [0, 30, 60, 300, 900, -40, -1])
def test_a_changed_snapshot_is_not_believed(at: int, tmp_path: Path) -> None:
    """Wherever a byte is changed nothing begins, and the home is as empty as before."""
    with Store(tmp_path / "old.db", GENESIS) as store:
        grow_store(store, 8)
        write_snapshot(store, tmp_path / "state.moed")
        trusted = store.load_head().validators
    data = bytearray((tmp_path / "state.moed").read_bytes())
    data[at] ^= 1
    (tmp_path / "state.moed").write_bytes(data)
    with Store(tmp_path / "new.db", GENESIS) as store:
        with pytest.raises(ChainFileError):
            begin_at_snapshot(store, tmp_path / "state.moed", trusted)
        assert (store.load_head().height, store.first_height) == (0, 1)


def test_a_snapshot_is_believed_for_its_signatures(tmp_path: Path) -> None:
    """With the network's validators a new home begins there and goes on; with strangers, or on blocks, it does not."""
    with Store(tmp_path / "old.db", GENESIS) as store:
        head = grow_store(store, 8)
        assert write_snapshot(store, tmp_path / "state.moed") == 8
    strangers = ValidatorSet(members=(Validator(key=key(9).public_key, power=1),))
    with Store(tmp_path / "new.db", GENESIS) as store:
        with pytest.raises(ChainFileError, match="cannot be believed"):
            begin_at_snapshot(store, tmp_path / "state.moed", strangers)
        assert begin_at_snapshot(store, tmp_path / "state.moed", head.validators).state_root == head.state_root
        grow_store(store, 3)
        assert verify_chain(store).height == 11
        with pytest.raises(ChainFileError, match="blocks already"):
            begin_at_snapshot(store, tmp_path / "state.moed", head.validators)
    with Store(tmp_path / "empty.db", GENESIS) as store, pytest.raises(ChainFileError, match="no block yet"):
        write_snapshot(store, tmp_path / "none.moed")


def test_a_snapshot_with_a_signature_too_many_is_not_believed(tmp_path: Path) -> None:
    """Junk beside the signatures that are trusted would stand in the next block that this home makes, and void it."""
    with Store(tmp_path / "old.db", GENESIS) as store:
        head = grow_store(store, 3)
        trusted = head.validators
        block, _ = head.build([], proposer=key(1).public_key, now_ms=head.time_ms + 1_000)
        junk = CommitSignature(validator=key(99).public_key, signature=bytes(64))
        commit = sign_commit(GENESIS, block, BOTH)
        signatures = sorted((*commit.signatures, junk), key=lambda entry: entry.validator)
        store.append(head.execute(block), msgspec.structs.replace(commit, signatures=tuple(signatures)))
        write_snapshot(store, tmp_path / "state.moed")
    with Store(tmp_path / "new.db", GENESIS) as store:
        with pytest.raises(ChainFileError, match="signer of the commit"):
            begin_at_snapshot(store, tmp_path / "state.moed", trusted)
        assert store.load_head().height == 0


def home_with_chain(folder: Path) -> Home:
    """A home on the test's network with twenty blocks; its own key has no part in it."""
    home = Home(folder / "home")
    genesis = folder / "genesis.json"
    write_genesis(genesis, GENESIS)
    initialise(home.folder, role="follower", genesis_file=genesis, bootstrap=("127.0.0.1:4700",))
    with Store(home.database, GENESIS) as store:
        grow_store(store, 20)
    return home


def moed_says(*arguments: str, code: int = 0) -> str:
    """What a `moed` verb prints."""
    result = CliRunner().invoke(moed, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_the_verbs_check_move_and_shorten_a_chain(tmp_path: Path) -> None:
    """As an operator does: export, import into a fresh home, verify, prune, verify again."""
    home = home_with_chain(tmp_path)
    folder, file = str(home.folder), str(tmp_path / "blocks.moed")
    assert "20 blocks up to height 20" in moed_says("chain", "export", file, "--home", folder)
    other = Home(tmp_path / "other")
    initialise(other.folder, role="follower", genesis_file=home.genesis, bootstrap=("127.0.0.1:4700",))
    found = json.loads(moed_says("chain", "import", file, "--home", str(other.folder), "--json"))
    assert found == {"blocks": 20, "height": 20}
    state, trusted = tmp_path / "state.moed", tmp_path / "validators.json"
    trusted.write_text(moed_says("chain", "validators", "--home", folder))
    assert "after block 20" in moed_says("chain", "snapshot", str(state), "--home", folder)
    third = Home(tmp_path / "third")
    initialise(third.folder, role="follower", genesis_file=home.genesis, bootstrap=("127.0.0.1:4700",))
    begin = ("chain", "import", str(state), "--validators", str(trusted), "--home", str(third.folder))
    for taken, wrong, said in ((state, (), "add --validators"), (file, begin[3:5], "without --validators")):
        assert said in moed_says("chain", "import", str(taken), *wrong, "--home", str(third.folder), code=1)
    assert "begins after block 20" in moed_says(*begin)
    assert "begins at a header, 0 blocks executed again" in moed_says("chain", "verify", "--home", str(third.folder))
    checkpoint = moed_says("chain", "checkpoint", "--home", str(other.folder))
    with Store(other.database, GENESIS) as store:
        assert checkpoint == f"20:{store.load_head().hash.hex()}\n"
    assert json.loads(moed_says("chain", "prune", "--keep", "5", "--home", folder, "--json"))["blocks"] == 15
    assert "15 headers follow each other, 5 blocks executed" in moed_says("chain", "verify", "--home", folder)
    roots = [json.loads(moed_says("chain", "verify", "--home", str(one.folder), "--json")) for one in (home, other)]
    assert roots[0]["state_root"] == roots[1]["state_root"]


def test_a_running_node_is_not_pruned_under_its_feet(tmp_path: Path) -> None:
    """Whoever holds the home's key writes its chain, alone."""
    home = home_with_chain(tmp_path)
    with hold_identity(home.key):
        said = moed_says("chain", "prune", "--keep", "5", "--home", str(home.folder), code=1)
    assert "another daemon is running here" in said


def test_a_proof_is_checked_with_the_validators_alone(tmp_path: Path) -> None:
    """Two small files convince, without home or chain; a changed one, or a stranger's set, does not."""
    home = home_with_chain(tmp_path)
    proof, trusted = tmp_path / "proof.json", tmp_path / "validators.json"
    account = key(3).public_key.hex()
    proof.write_text(moed_says("chain", "prove", account, "--home", str(home.folder)))
    trusted.write_text(moed_says("chain", "validators", "--home", str(home.folder)))
    with Store(home.database, GENESIS) as store:
        held = read_account(store.load_head().state, key(3).public_key)
    found = json.loads(moed_says("chain", "check-proof", str(proof), "--validators", str(trusted), "--json"))
    assert (found["height"], found["record"]["balance"], found["record"]["nonce"]) == (20, held.balance, 20)
    proof.write_text(
        moed_says("chain", "prove", key(1).public_key.hex(), "--what", "stake", "--home", str(home.folder))
    )
    found = json.loads(moed_says("chain", "check-proof", str(proof), "--validators", str(trusted), "--json"))
    assert found["record"]["stake"] >= 60 * CREDIT
    proof.write_text(moed_says("chain", "prove", "77" * 32, "--home", str(home.folder)))
    assert "nothing is there" in moed_says("chain", "check-proof", str(proof), "--validators", str(trusted))
    strangers = json.loads(trusted.read_text())
    strangers["validators"] = [{"key": load_identity(home.key).public_key.hex(), "power": 1}]
    trusted.write_text(json.dumps(strangers))
    said = moed_says("chain", "check-proof", str(proof), "--validators", str(trusted), code=1)
    assert "proves nothing: trusted stake behind the block" in said


@pytest.mark.parametrize(
    "text", ["", "{}", '{"network_id": 1}', "\0\0", '{"network_id": "' + "0" * 64 + '", "proof": "zz"}']
)
def test_files_that_are_no_proof_are_named(text: str, tmp_path: Path) -> None:
    """One line and exit code 1, whatever lies there."""
    proof, trusted = tmp_path / "proof.json", tmp_path / "validators.json"
    proof.write_text(text)
    trusted.write_text(text)
    said = moed_says("chain", "check-proof", str(proof), "--validators", str(trusted), code=1)
    assert said.startswith("moed: ")
    assert said.count("\n") == 1


def test_a_folder_that_is_not_there_takes_no_export(tmp_path: Path) -> None:
    """The failure is named, and no half a file is left."""
    with Store(tmp_path / "chain.db", GENESIS) as store:
        grow_store(store, 1)
        with pytest.raises(NodeError):
            export_chain(store, tmp_path / "missing" / "blocks.moed")
