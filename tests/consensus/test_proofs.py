"""Light check: a proof convinces whoever knows the validators, of what is in the state and of what is not."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moed.consensus.blocks import Commit, sign_vote
from moed.consensus.errors import InvalidProof
from moed.consensus.proofs import StateProof, check_proof
from moed.consensus.state import (
    Account,
    Validator,
    ValidatorSet,
    account_key,
    neuron_key,
    read_account,
    read_previous_validators,
)
from moed.consensus.transactions import Register, Transfer
from moed.consensus.transition import Head
from moed.consensus.votes import VoteKind
from moed.protocol.codec import decode_record, encode_record
from moed.protocol.errors import Malformed, RemoteProtocolError
from support.chains import grow, key, make_genesis, sign_commit, signed

CREDIT = 10**9
GENESIS = make_genesis((60 * CREDIT, 40 * CREDIT), balances=(10 * CREDIT, *([1] * 400)))
BOTH = [key(1), key(2)]


def grown() -> Head:
    """A chain of two blocks and four hundred accounts."""
    head = Head.at_genesis(GENESIS)
    grow(head, BOTH, [signed(head, key(3), Transfer(to=key(4).public_key, amount=CREDIT))])
    grow(head, BOTH, [signed(head, key(4), Register())])
    return head


HEAD = grown()
VALIDATORS = read_previous_validators(HEAD.state)
NETWORK = HEAD.network_id


def prove(number: int) -> StateProof:
    return HEAD.prove(account_key(key(number).public_key))


def test_an_account_is_proven_to_who_knows_the_validators() -> None:
    """The proof survives its bytes and gives the account as it is."""
    for number in (1, 3, 4, 77):
        proof = decode_record(encode_record(prove(number)), StateProof)
        found = check_proof(proof, VALIDATORS, NETWORK)
        assert found == read_account(HEAD.state, key(number).public_key)
    assert check_proof(HEAD.prove(neuron_key(2)), VALIDATORS, NETWORK) is not None


def test_that_there_is_no_account_is_proven_too() -> None:
    """Nobody can be told of an account that is not there, nor that one is missing."""
    absent = prove(9_999)
    assert absent.value is None
    assert check_proof(absent, VALIDATORS, NETWORK) is None
    invented = msgspec.structs.replace(absent, value=encode_record(Account(balance=1)))
    hidden = msgspec.structs.replace(prove(3), value=None)
    for lie in (invented, hidden):
        with pytest.raises(InvalidProof):
            check_proof(lie, VALIDATORS, NETWORK)


def test_any_other_balance_is_refused() -> None:
    """A value that is not the one under the root convinces nobody."""
    proof = prove(3)
    richer = msgspec.structs.replace(
        proof, value=encode_record(msgspec.structs.replace(read_account(HEAD.state, key(3).public_key), balance=1))
    )
    with pytest.raises(InvalidProof):
        check_proof(richer, VALIDATORS, NETWORK)
    with pytest.raises(InvalidProof):  # nor the account of another
        check_proof(msgspec.structs.replace(proof, key=account_key(key(5).public_key)), VALIDATORS, NETWORK)


def test_a_bucket_lists_each_key_once() -> None:
    """Two values under one key could be read one way and hashed another."""
    branch = prove(3).branch
    with pytest.raises(Malformed):
        msgspec.structs.replace(branch, bucket=(*branch.bucket, branch.bucket[-1]))


def resigned(proof: StateProof, commit: Commit) -> StateProof:
    return msgspec.structs.replace(proof, commit=commit)


def test_only_two_thirds_of_the_trusted_stake_make_it_true() -> None:
    """Too few signers, strangers, another network and a forged signature prove nothing."""
    proof = prove(3)
    block = msgspec.structs.replace(HEAD.build([], proposer=key(1).public_key, now_ms=0)[0], header=proof.header)
    few = resigned(proof, sign_commit(GENESIS, block, [key(1)]))
    strangers = resigned(proof, sign_commit(GENESIS, block, [key(8), key(9)]))
    forged = list(proof.commit.signatures)
    forged[0] = msgspec.structs.replace(forged[0], signature=forged[1].signature)
    lies = [few, strangers, resigned(proof, msgspec.structs.replace(proof.commit, signatures=tuple(forged)))]
    for lie in lies:
        with pytest.raises(InvalidProof):
            check_proof(lie, VALIDATORS, NETWORK)
    with pytest.raises(InvalidProof):
        check_proof(proof, VALIDATORS, b"\0" * 32)
    repeated = msgspec.structs.replace(few.commit, signatures=few.commit.signatures * 3)
    with pytest.raises(InvalidProof):
        check_proof(resigned(proof, repeated), VALIDATORS, NETWORK)


def test_validators_that_came_later_do_not_spoil_an_older_set() -> None:
    """Who trusts the set of an earlier epoch believes as long as over two thirds of that set signed."""
    proof = prove(3)
    header_vote = sign_vote(key(7), NETWORK, VoteKind.PRECOMMIT, proof.commit.height, 0, proof.commit.block_hash)
    entry = msgspec.structs.replace(proof.commit.signatures[0], validator=key(7).public_key)
    entry = msgspec.structs.replace(entry, signature=header_vote.signature)
    later = resigned(proof, msgspec.structs.replace(proof.commit, signatures=(*proof.commit.signatures, entry)))
    assert check_proof(later, VALIDATORS, NETWORK) is not None
    mostly_gone = ValidatorSet(
        members=(Validator(key=key(1).public_key, power=60), Validator(key=key(9).public_key, power=40))
    )
    with pytest.raises(InvalidProof):
        check_proof(later, mostly_gone, NETWORK)


ENCODED = encode_record(prove(3))


@settings(max_examples=300)
@given(st.integers(0, len(ENCODED) - 1), st.integers(1, 255))
def test_no_changed_byte_proves_anything_else(at: int, by: int) -> None:
    """Whatever byte is changed, the proof is refused or still says the same."""
    lie = bytearray(ENCODED)
    lie[at] ^= by
    try:
        found = check_proof(decode_record(lie, StateProof), VALIDATORS, NETWORK)
    except (RemoteProtocolError, InvalidProof):
        return
    assert found == read_account(HEAD.state, key(3).public_key)


def test_there_is_nothing_to_prove_before_the_first_block() -> None:
    """The genesis state has no commit."""
    with pytest.raises(InvalidProof):
        Head.at_genesis(GENESIS).prove(account_key(key(1).public_key))
