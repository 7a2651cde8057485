"""The validators are followed without blocks, by steps that they sign; no other step leads anywhere."""

from __future__ import annotations

import msgspec
import pytest

from moed.consensus.blocks import CommitSignature
from moed.consensus.errors import InvalidCommit, RuleBroken, WrongChain
from moed.consensus.light import Checkpoint, LightChain
from moed.consensus.params import ChainParams
from moed.consensus.proofs import StateProof
from moed.consensus.state import TOTALS_KEY, VALIDATORS_KEY
from moed.consensus.transactions import AddStake, Register
from moed.consensus.transition import Head
from moed.protocol.codec import decode_record, encode_record
from moed.protocol.errors import RemoteProtocolError
from support.chains import grow, key, make_genesis, signed

PARAMS = ChainParams(tempo=3, fee_per_byte=0, min_stake=0, unbonding_blocks=10)
GENESIS = make_genesis((60, 40), balances=(10_000,), params=PARAMS)
EPOCHS = 6


def life() -> tuple[Head, list[bytes]]:
    """A chain on which a third validator comes in with nearly all of the stake; and its steps."""
    head, steps = Head.at_genesis(GENESIS), []
    signers = [key(1), key(2)]
    for height in range(1, EPOCHS * PARAMS.tempo + 1):
        entering = [signed(head, key(3), Register(), 0), signed(head, key(3), AddStake(amount=9_000), 1)]
        grow(head, signers, entering if height == 1 else [])
        signers = [key(n) for n in (1, 2, 3) if key(n).public_key in {one.key for one in head.validators.members}]
        if height % PARAMS.tempo == 0:
            steps.append(encode_record(head.prove(VALIDATORS_KEY)))
    return head, steps


def test_the_steps_lead_to_the_present_validators() -> None:
    """Through a change after which the first ones together have no third of the stake any more."""
    head, steps = life()
    light = LightChain(GENESIS)
    for step in steps:
        light.take(step)
    assert (light.height, light.validators) == (head.height, head.validators)
    assert {member.key for member in light.validators.members} == {key(n).public_key for n in (1, 2, 3)}


def test_a_step_that_is_not_signed_or_not_the_next_leads_nowhere() -> None:
    """One left out, another record, another height, a commit with junk or with too little stake; then the right one."""
    _, steps = life()
    light = LightChain(GENESIS)
    light.take(steps[0])
    good = decode_record(steps[1], StateProof)
    junk = CommitSignature(validator=key(99).public_key, signature=bytes(64))
    signatures = sorted((*good.commit.signatures, junk), key=lambda one: one.validator)
    replace = msgspec.structs.replace
    head = Head.at_genesis(GENESIS)
    for _ in range(6):
        grow(head, [key(1), key(2)])
    bad: list[bytes | StateProof] = [
        steps[0],
        steps[2],
        replace(good, key=TOTALS_KEY),
        replace(good, commit=replace(good.commit, signatures=tuple(signatures))),
        replace(good, commit=replace(good.commit, signatures=good.commit.signatures[:1])),
        replace(good, value=None),
        head.prove(TOTALS_KEY),
    ]
    for one in bad:
        with pytest.raises((RuleBroken, RemoteProtocolError)):
            light.take(one if isinstance(one, bytes) else encode_record(one))
        assert light.height == PARAMS.tempo
    light.take(steps[1])
    assert light.height == 2 * PARAMS.tempo


def test_any_changed_byte_is_refused() -> None:
    """Nothing in a step is there for nothing."""
    _, steps = life()
    for at in range(0, len(steps[0]), 7):
        changed = bytearray(steps[0])
        changed[at] ^= 1
        with pytest.raises((RuleBroken, RemoteProtocolError)):
            LightChain(GENESIS).take(bytes(changed))


def test_a_checkpoint_tells_a_false_chain_of_the_first_validators_from_the_true_one() -> None:
    """Keys that had all of the stake once can sign another past; whoever knows one later block does not follow."""
    head, steps = life()
    false = Head.at_genesis(GENESIS)
    other: list[bytes] = []
    for height in range(1, 2 * PARAMS.tempo + 1):
        grow(false, [key(1), key(2)])
        if height % PARAMS.tempo == 0:
            other.append(encode_record(false.prove(VALIDATORS_KEY)))
    known = decode_record(steps[1], StateProof).header
    checkpoint = Checkpoint.parse(f"{known.height}:{known.hash.hex()}")
    trusting, knowing = LightChain(GENESIS), LightChain(GENESIS, checkpoint)
    for step in other:
        trusting.take(step)
    knowing.take(other[0])
    assert not knowing.has_passed_checkpoint
    with pytest.raises(WrongChain):
        knowing.take(other[1])
    knowing = LightChain(GENESIS, checkpoint)
    for step in steps:
        knowing.take(step)
    assert knowing.has_passed_checkpoint
    assert knowing.validators == head.validators


@pytest.mark.parametrize("text", ["", "5", "5:", "5:zz", "0:" + "0" * 64, "5:" + "0" * 62, "x:" + "0" * 64])
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    """Rather than read as something else."""
    with pytest.raises(ValueError, match=r"."):
        Checkpoint.parse(text)


def test_only_a_good_signature_counts_against_a_checkpoint() -> None:
    """A forged step of that height is a lie of its teller, and no sign of another chain."""
    _, steps = life()
    step = decode_record(steps[0], StateProof)
    forged = msgspec.structs.replace(step, header=msgspec.structs.replace(step.header, time_ms=step.header.time_ms + 1))
    light = LightChain(GENESIS, Checkpoint(step.header.height, step.header.hash))
    with pytest.raises(InvalidCommit):
        light.take(encode_record(forged))
