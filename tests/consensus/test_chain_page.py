"""The page for other implementations names what the code has; the reader that it prints is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import cbor2
import msgspec
import pytest

from moed.consensus import blocks, evidence, proofs, snapshots, state, stateroot, summary, transactions
from moed.consensus.genesis import encode_genesis
from moed.consensus.transition import Head
from moed.protocol.codec import encode_record
from moed.protocol.domains import Domain
from support.chains import grow, key, make_genesis, sign_commit, signed

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "protocol" / "chain.md").read_text()
GENESIS = make_genesis((60, 40, 30), balances=(10**9,))
RECORDS = [
    *(blocks.Header, blocks.Block, blocks.Commit, blocks.CommitSignature, blocks.Vote, blocks.Proposal),
    *(transactions.SignedTransaction, proofs.StateProof, stateroot.Branch, stateroot.BucketEntry),
    *(summary.RoundsSummary, summary.HeldVotes, snapshots.Manifest, snapshots.Piece),
    *(state.Account, state.Pool, state.Position, state.Neuron, state.ValidatorSet, state.Totals),
]
NESTED = [state.Leaving, state.WeightsCommit, state.Validator]
ELSEWHERE = {"SESSION_IDENTITY", "DATAGRAM", "RECORD", "RECORD_KEY", "RECEIPT", "MESSAGE", "CHECKPOINT", "CORPUS_BLOCK"}
"""Tags of other pages, and the mempool's own."""


def named(text: str) -> list[str]:
    """The names in backticks, in their order."""
    return re.findall(r"`([a-z_0-9]+)`", text)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_the_fields_of_each_record_stand_on_the_page(record: type[msgspec.Struct]) -> None:
    """In the order of the code, none left out and none too many."""
    row = re.search(rf"`{record.__name__}` \| (.*?) \|", PAGE)
    assert row is not None
    assert named(row[1].partition(": a list of")[0]) == list(record.__struct_fields__)


def test_bodies_evidence_and_parts_stand_on_the_page() -> None:
    """Each with its `type` and fields."""
    bodies = {body.__struct_config__.tag: list(body.__struct_fields__) for body in get_args(transactions.Body)}
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| ((?:`[a-z_]+` ?)+) \|$", PAGE, re.MULTILINE))
    assert {name: named(fields) for name, fields in rows.items()} == bodies
    for part in (*NESTED, evidence.DoubleVote, evidence.DoubleProposal, evidence.SignedVote, evidence.SignedProposal):
        name = part.__struct_config__.tag or (part.__name__ if part in NESTED else "being")
        fields = re.escape(" ".join(f"`{field}`" for field in part.__struct_fields__))
        assert re.search(rf"{name}`? \{{{fields}\}}", " ".join(PAGE.split())), part


def test_every_tag_of_the_chain_stands_on_the_page() -> None:
    """A new purpose of a hash or signature is told."""
    told = set(re.findall(r"^\| `(moed [a-z ]+ v\d)` \|", PAGE, re.MULTILINE))
    ours = {domain.value.decode() for domain in Domain if domain.name not in {*ELSEWHERE, "TRANSACTION_ORDER"}}
    assert told == ours


def reader() -> dict[str, Any]:
    """What the page's code defines."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    return namespace


def test_the_printed_reader_follows_and_checks_our_chain() -> None:
    """Hashes, signatures, commits and proofs come out the same with nothing of ours; what is changed does not hold."""
    read = reader()
    network = read["network_id"](encode_genesis(GENESIS))
    assert network == GENESIS.network_id
    head = Head.at_genesis(GENESIS)
    signers = [key(1), key(2), key(3)]
    for nonce in range(3):
        validators = cbor2.loads(encode_record(head.validators))
        transfer = signed(head, key(4), transactions.Transfer(to=key(9).public_key, amount=5), nonce)
        made = grow(head, signers, [transfer])
        block, commit = (cbor2.loads(encode_record(one)) for one in (made, sign_commit(GENESIS, made, signers)))
        assert read["block_hash"](block["header"]) == made.hash
        assert read["is_whole"](block)
        assert read["is_authentic"](network, block["transactions"][0])
        assert read["is_final"](network, block["header"], commit, validators)
        few = cbor2.loads(encode_record(sign_commit(GENESIS, made, [key(1)])))
        assert not read["is_final"](network, block["header"], few, validators)
        assert not read["is_final"](b"n" * 32, block["header"], commit, validators)
    for where, balance in ((key(9), 15), (key(77), None)):
        proof = cbor2.loads(encode_record(head.prove(state.account_key(where.public_key))))
        found = read["proven"](network, proof, validators)
        assert (found and found["balance"]) == balance
        proof["value"] = encode_record(state.Account(balance=99))
        with pytest.raises(ValueError, match="not in the state"):
            read["proven"](network, proof, validators)
