"""A validator's next work key takes over while the daemon runs; nobody has to stop it at the right moment."""

from __future__ import annotations

from pathlib import Path

from moed.consensus.params import DEVNET
from moed.consensus.state import change
from moed.daemon.keystore import load_identity
from moed.daemon.store import Store, verify_chain
from moed.daemon.transaction_files import read_file, signed_transaction
from moed.protocol.codec import encode_record
from support.daemons import make_network, run_moed, running, wait_until

PARAMS = change(DEVNET, block_interval_ms=200, tempo=8)


def test_the_next_key_takes_over_when_the_present_one_has_no_seat_any_more(tmp_path: Path) -> None:
    """The only validator of a network is rotated: the same process goes on under the new key, and so do the blocks."""
    (daemon,) = make_network(tmp_path, (10**10,), params=PARAMS)
    home, out = daemon.home, tmp_path / "rotate.json"
    with running(daemon):
        before = daemon.wait_ready()["node_id"]
        said = run_moed("keys", "rotate", "--home", str(home.folder), "--out", str(out))
        assert said.returncode == 0, said.stderr
        fresh = load_identity(home.next_key)
        signed = encode_record(signed_transaction(read_file(out)))
        daemon.client.post("/v1/tx/submit", {"transaction": signed.hex()})
        wait_until("the new key", lambda: (daemon.status() or {}).get("node_id") == fresh.node_id.hex())
        status = daemon.wait_ready()
        daemon.wait_height(status["height"] + 3)
        assert before != status["node_id"]
        assert status["uid"] == 0
        assert load_identity(home.key).public_key == fresh.public_key
        assert not home.next_key.exists()
        assert len(list(home.folder.glob("work.key.*.old"))) == 1
        assert daemon.stop() == 0
    with Store(home.database, home.load_genesis()) as store:
        assert verify_chain(store).height > status["height"]
        proposers = [block.header.proposer for block, _ in store.blocks()]
    assert proposers[-1] == fresh.public_key
    assert proposers[0] != fresh.public_key
