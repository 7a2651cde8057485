"""Keys as their owners handle them: sealed, shown, copied, replaced, and signing away from any network."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from moed.consensus.genesis import Genesis, GenesisAccount
from moed.consensus.params import ChainParams
from moed.consensus.state import read_account, read_neuron
from moed.consensus.transactions import RotateKey, SetOwner, Transfer
from moed.daemon.cli import moed
from moed.daemon.errors import ChainFileError, KeyFileError
from moed.daemon.home import Home, initialise, write_genesis
from moed.daemon.keystore import load_identity, write_key_file
from moed.daemon.sealed_keys import LEAST, SealedKey, create_sealed, read_sealed, seal, unseal, write_sealed
from moed.daemon.store import Store
from moed.daemon.transaction_files import (
    TransactionFile,
    body_from_fields,
    body_of,
    describe,
    read_file,
    sign_file,
    signed_transaction,
    unsigned,
    write_file,
)
from moed.protocol.identity import Identity
from support.chains import key, sign_commit, signed

CREDIT = 10**9
WORDS = "correct horse battery staple"


def moed_says(*arguments: str, code: int = 0) -> str:
    """What a `moed` verb prints."""
    result = CliRunner().invoke(moed, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def words(tmp_path: Path) -> str:
    """A file with a passphrase."""
    path = tmp_path / "passphrase"
    path.write_text(WORDS + "\n")
    return str(path)


def test_a_sealed_key_opens_with_its_passphrase_alone(tmp_path: Path) -> None:
    """The file is private, holds no secret in the open, and a wrong passphrase or a changed byte opens nothing."""
    sealed = create_sealed(tmp_path / "owner.key", WORDS, effort=LEAST)
    assert (tmp_path / "owner.key").stat().st_mode & 0o777 == 0o600
    again = read_sealed(tmp_path / "owner.key")
    seed = unseal(again, WORDS)
    assert Identity(seed).public_key.hex() == sealed.public_key
    text = (tmp_path / "owner.key").read_bytes()
    assert seed not in text
    assert seed.hex().encode() not in text
    with pytest.raises(KeyFileError):
        unseal(again, WORDS + "s")
    for changed in (
        msgspec.structs.replace(again, box=again.box[:-1] + bytes([again.box[-1] ^ 1])),
        msgspec.structs.replace(again, box=b""),
        msgspec.structs.replace(again, salt=bytes(16)),
        msgspec.structs.replace(again, public_key="00" * 32),
    ):
        with pytest.raises(KeyFileError):
            unseal(changed, WORDS)


def test_two_seals_of_one_key_have_nothing_in_common() -> None:
    """Salt and nonce are drawn anew, so equal passphrases do not show."""
    one, two = (seal(b"\7" * 32, WORDS, effort=LEAST) for _ in range(2))
    assert one.public_key == two.public_key
    assert one.salt != two.salt
    assert one.box != two.box


def test_a_short_passphrase_is_no_protection() -> None:
    """It is refused before anything is sealed."""
    with pytest.raises(KeyFileError):
        seal(b"\7" * 32, "secret", effort=LEAST)


def test_a_sealed_key_is_never_replaced(tmp_path: Path) -> None:
    """What is there may be the only copy."""
    create_sealed(tmp_path / "owner.key", WORDS, effort=LEAST)
    before = (tmp_path / "owner.key").read_bytes()
    with pytest.raises(KeyFileError, match="exists already"):
        create_sealed(tmp_path / "owner.key", WORDS, effort=LEAST)
    assert (tmp_path / "owner.key").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["owner.key"]


@pytest.mark.parametrize(
    "changes",
    [{"memory_bytes": 1 << 40}, {"operations": 10**6}, {"kdf": "none"}, {"version": 2}, {"more": 1}, {"salt": "AAAA"}],
)
def test_a_foreign_file_cannot_ask_for_everything(changes: dict[str, object], tmp_path: Path) -> None:
    """Memory and passes are bounded, and unknown forms are refused by name."""
    plain = msgspec.json.decode(msgspec.json.encode(seal(b"\7" * 32, WORDS, effort=LEAST)))
    path = tmp_path / "foreign.key"
    path.write_text(json.dumps({**plain, **changes}))
    with pytest.raises(KeyFileError):
        read_sealed(path)


@settings(max_examples=50)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_key_or_are_refused(data: bytes) -> None:
    """No traceback, whatever lies in the file."""
    try:
        msgspec.json.decode(data, type=SealedKey, strict=True)
    except msgspec.DecodeError:
        return


def test_what_is_signed_is_what_is_shown(tmp_path: Path) -> None:
    """The file's bytes are the one source; another sender, network or body does not pass."""
    network = b"\5" * 32
    body = Transfer(to=key(9).public_key, amount=1_500_000_000)
    file = unsigned(network, key(3).public_key, 7, body)
    write_file(tmp_path / "tx.json", file)
    again = read_file(tmp_path / "tx.json")
    assert describe(body_of(again)) == {
        "type": "transfer",
        "to": key(9).public_key.hex(),
        "amount": 1_500_000_000,
        "amount_credits": "1.5",
    }
    with pytest.raises(ChainFileError):
        sign_file(again, key(4))
    with pytest.raises(ChainFileError):
        signed_transaction(again)
    done = sign_file(again, key(3))
    assert (signed_transaction(done).nonce, signed_transaction(done).body) == (7, body)
    other = unsigned(network, key(3).public_key, 7, Transfer(to=key(8).public_key, amount=1)).body
    changes: list[dict[str, object]] = [
        {"network_id": "66" * 32},
        {"nonce": 8},
        {"body": other},
        {"body": done.body + "00"},
        {"body": "ff"},
    ]
    for change in changes:
        with pytest.raises(ChainFileError):
            signed_transaction(msgspec.structs.replace(done, **change))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("transfer", {"to": "12", "amount": 1}),
        ("transfer", {"to": "11" * 32, "amount": 0}),
        ("transfer", {"to": "11" * 32, "amount": -1}),
        ("transfer", {"to": "11" * 32, "amount": 1, "nonsense": 1}),
        ("transfer", {"to": 5, "amount": 1}),
        ("transfer", {"to": "11" * 32}),
        ("set_weights", {"weights": []}),
        ("nonsense", {}),
    ],
)
def test_what_makes_no_transaction_is_named(kind: str, fields: dict[str, object]) -> None:
    """Wrong fields, kinds that people do not send, and kinds that do not exist."""
    with pytest.raises(ChainFileError):
        body_from_fields(kind, fields)


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_body_or_are_refused(data: bytes) -> None:
    """A stranger's transaction file ends in a typed error or in words."""
    if not data:
        return
    file = TransactionFile(network_id="11" * 32, sender="22" * 32, nonce=0, body=data.hex())
    try:
        describe(body_of(file))
    except ChainFileError:
        return


# the verbs


def grow_home(home: Home, genesis: Genesis, who: Identity, transactions: list[object]) -> None:
    """One block on the chain in a home, signed by its only validator."""
    with Store(home.database, genesis) as store:
        head = store.load_head()
        block, refused = head.build(transactions, proposer=who.public_key, now_ms=head.time_ms + 1_000)  # type: ignore[arg-type]  # a list of transactions
        assert refused == []
        store.append(head.execute(block), sign_commit(genesis, block, [who]))


def test_an_owner_key_is_made_shown_and_signs_offline(tmp_path: Path, words: str) -> None:
    """Without chain, home or network: the passphrase and two files are all that signing takes."""
    owner = str(tmp_path / "owner.key")
    write_sealed(Path(owner), seal(b"\7" * 32, WORDS, effort=LEAST))
    public = json.loads(moed_says("keys", "show", owner, "--json"))["public_key"]
    assert public == Identity(b"\7" * 32).public_key.hex()
    made = unsigned(b"\5" * 32, bytes.fromhex(public), 0, Transfer(to=key(9).public_key, amount=2 * CREDIT))
    path = tmp_path / "tx.json"
    write_file(path, made)
    said = moed_says("keys", "sign", str(path), "--key", owner, "--yes", "--passphrase-file", words)
    assert "amount_credits  2\n" in said
    assert signed_transaction(read_file(path)).sender.hex() == public
    (tmp_path / "passphrase").write_text("wrong passphrase")
    moed_says("keys", "sign", str(path), "--key", owner, "--yes", "--passphrase-file", words, code=1)


def test_new_keys_are_sealed_with_care(tmp_path: Path, words: str) -> None:
    """`moed keys new` takes argon2id's careful settings, and leaves the file that the other verbs read."""
    owner = tmp_path / "owner.key"
    assert "owner key" in moed_says("keys", "new", str(owner), "--passphrase-file", words)
    sealed = read_sealed(owner)
    assert sealed.memory_bytes >= 256 << 20
    assert Identity(unseal(sealed, WORDS)).public_key.hex() == sealed.public_key


def test_a_work_key_comes_back_from_its_copy(tmp_path: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is sealed; restoring never writes over a key."""
    monkeypatch.setattr("moed.daemon.sealed_keys.CAREFUL", LEAST)
    home = Home(tmp_path / "home")
    initialise(home.folder, role="follower")
    before = load_identity(home.key).public_key
    copy = str(tmp_path / "copy.key")
    moed_says("keys", "backup", copy, "--home", str(home.folder), "--passphrase-file", words)
    restore = ("keys", "restore", copy, "--home", str(home.folder), "--passphrase-file", words)
    moed_says(*restore, code=1)
    home.key.unlink()
    moed_says(*restore)
    assert load_identity(home.key).public_key == before


def owned_home(folder: Path, owner: Identity) -> tuple[Home, Genesis, Identity]:
    """A home whose key is the one validator of a network, with a uid that ``owner`` owns, one block on."""
    home = Home(folder / "home")
    initialise(home.folder, role="validator")
    worker = load_identity(home.key)
    account = GenesisAccount(public_key=worker.public_key.hex(), stake=100 * CREDIT, balance=CREDIT, is_validator=True)
    genesis = Genesis(name="test", created_ms=1_000_000, params=ChainParams(tempo=5), accounts=(account,))
    home.genesis.unlink()
    write_genesis(home.genesis, genesis)
    with Store(home.database, genesis) as store:
        head = store.load_head()
    body = SetOwner(uid=0, owner=owner.public_key)
    transfer = Transfer(to=owner.public_key, amount=CREDIT // 2)
    grow_home(home, genesis, worker, [signed(head, worker, body, 0), signed(head, worker, transfer, 1)])
    return home, genesis, worker


def test_a_work_key_is_rotated_by_its_owner(tmp_path: Path, words: str) -> None:
    """Drawn here, signed where the owner key is, final on the chain, and only then in place of the old one."""
    owner = Identity(b"\7" * 32)
    home, genesis, worker = owned_home(tmp_path, owner)
    sealed, out = tmp_path / "owner.key", tmp_path / "rotate.json"
    write_sealed(sealed, seal(b"\7" * 32, WORDS, effort=LEAST))
    begin = ("keys", "rotate", "--home", str(home.folder), "--out", str(out))
    said = moed_says(*begin)
    assert f"owner {owner.public_key.hex()} signs it" in said
    fresh = load_identity(home.next_key)
    assert moed_says(*begin) == said  # a second time nothing new is drawn
    assert "does not know the key" in moed_says("keys", "rotate", "--home", str(home.folder), "--finish", code=1)
    moed_says("keys", "sign", str(out), "--key", str(sealed), "--yes", "--passphrase-file", words)
    transaction = signed_transaction(read_file(out))
    assert isinstance(transaction.body, RotateKey)
    grow_home(home, genesis, worker, [transaction])
    said = moed_says("keys", "rotate", "--home", str(home.folder), "--finish", code=1)
    assert "signs blocks until the epoch ends at 5" in said
    for _ in range(3):
        grow_home(home, genesis, worker, [])
    home.signed.write_bytes(b"what the old key signed")
    assert fresh.public_key.hex() in moed_says("keys", "rotate", "--home", str(home.folder), "--finish")
    assert load_identity(home.key).public_key == fresh.public_key
    assert not home.next_key.exists()
    assert not home.signed.exists()
    assert sorted(path.name for path in home.folder.glob("*.old")) == [
        f"{name}.{worker.node_id.hex()[:12]}.old" for name in ("signed.journal", "work.key")
    ]
    with Store(home.database, genesis) as store:
        state = store.load_head().state
    neuron = read_neuron(state, 0)
    assert neuron is not None
    assert (neuron.key, neuron.payee) == (fresh.public_key, owner.public_key)
    assert read_account(state, fresh.public_key).uid == 0


def test_an_owner_key_in_the_home_is_no_work_key(tmp_path: Path) -> None:
    """Only the key that works for the uid is replaced; whoever runs a node with the owner's is told."""
    worker = Identity(b"\7" * 32)
    home, genesis, _ = owned_home(tmp_path, worker)
    home.key.unlink()
    write_key_file(home.key, b"\7" * 32)
    out = tmp_path / "rotate.json"
    with Store(home.database, genesis) as store:
        assert read_account(store.load_head().state, worker.public_key).uid is None
    assert "has no uid" in moed_says("keys", "rotate", "--home", str(home.folder), "--out", str(out), code=1)


def test_the_work_key_that_owns_itself_signs_at_once(tmp_path: Path) -> None:
    """Without an owner key elsewhere the present work key is the owner, and stays it."""
    home = Home(tmp_path / "home")
    initialise(home.folder, role="validator")
    worker, genesis = load_identity(home.key), home.load_genesis()
    with Store(home.database, genesis):
        pass
    out = tmp_path / "rotate.json"
    said = moed_says("keys", "rotate", "--home", str(home.folder), "--out", str(out))
    assert "it is signed by the present work key" in said
    grow_home(home, genesis, worker, [signed_transaction(read_file(out))])
    with Store(home.database, genesis) as store:
        neuron = read_neuron(store.load_head().state, 0)
    assert neuron is not None
    assert (neuron.key, neuron.payee) == (load_identity(home.next_key).public_key, worker.public_key)


def test_a_key_without_a_uid_has_nothing_to_rotate(tmp_path: Path) -> None:
    """The refusal says what to do in its place."""
    home, genesis, _ = owned_home(tmp_path, Identity(b"\7" * 32))
    other = Home(tmp_path / "other")
    initialise(other.folder, role="follower", genesis_file=home.genesis, bootstrap=("127.0.0.1:4700",))
    with Store(other.database, genesis):
        pass
    said = moed_says("keys", "rotate", "--home", str(other.folder), "--out", str(tmp_path / "r.json"), code=1)
    assert "has no uid" in said
    assert not other.next_key.exists()
