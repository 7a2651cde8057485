"""Another work key for a home: drawn beside the old one, agreed to on the chain by the owner, then put in its place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moed.consensus.state import Neuron, State, read_account, read_neuron
from moed.consensus.transactions import RotateKey, sign_consent
from moed.consensus.transition import Head
from moed.consensus.turns import power_of
from moed.protocol.identity import PublicKey

from .errors import KeyFileError, StoreFailed
from .home import Home
from .keystore import create_identity, hold_identity, load_identity
from .store import Store
from .transaction_files import sign_file, unsigned, write_file

if TYPE_CHECKING:
    from .chain import Chain


@dataclass(frozen=True, slots=True)
class Begun:
    """A rotation under way: the uid, its new key, and whose signature the transaction needs or has."""

    uid: int
    key: bytes
    owner: bytes
    is_signed: bool


def begin_rotation(home: Path, out: Path, *, expires: int = 0) -> Begun:
    """Draw the next work key, or take the one that was drawn before, and write the transaction that puts it to work.

    The node may be running. Raises a `NodeError` if the present key has no uid.
    """
    place = Home(home)
    present = load_identity(place.key)
    genesis = place.load_genesis()
    if not place.database.exists():
        raise StoreFailed(f"there is no chain in {place.database} yet", f"start the node first: moed run --home {home}")
    with Store(place.database, genesis) as store:
        state = store.load_head().state
    neuron = _neuron_of(state, present.public_key)
    fresh = load_identity(place.next_key) if place.next_key.exists() else create_identity(place.next_key)
    owner = neuron.payee
    body = RotateKey(
        uid=neuron.uid,
        key=fresh.public_key,
        consent=sign_consent(fresh, genesis.network_id, owner),
        expires=expires,
    )
    file = unsigned(genesis.network_id, owner, read_account(state, owner).nonce, body)
    is_signed = owner == present.public_key
    write_file(out, sign_file(file, present) if is_signed else file)
    return Begun(neuron.uid, fresh.public_key, owner, is_signed)


async def wait_for_turn(home: Path, present: PublicKey, chain: Chain) -> None:
    """Wait until the next key of a home, if one is drawn, may take the place of the present one."""
    while True:
        await chain.wait_block()
        fresh = await chain.read(_next_key, Home(home))
        if fresh is not None and has_turn(chain.head, present, fresh):
            return


def has_turn(head: Head, present: PublicKey, fresh: PublicKey) -> bool:
    """Whether the fresh key holds the uid, and the present one has no seat that the fresh one would not have."""
    return read_account(head.state, fresh).uid is not None and power_of(head.validators, present) == 0


def _next_key(place: Home) -> PublicKey | None:
    try:
        return load_identity(place.next_key).public_key if place.next_key.exists() else None
    except KeyFileError:
        return None  # whoever finishes by hand is told what is wrong with it


def finish_rotation(home: Path) -> bytes:
    """Put the next key in the place of the present one, which is kept beside it; returns the new public key.

    The node must be stopped. Raises `KeyFileError` unless the chain here says that the next key holds the uid, and that
    the present one has no seat among the validators that the next would not have: those change with the epoch.
    """
    place = Home(home)
    with hold_identity(place.key) as present:
        fresh = load_identity(place.next_key)
        with Store(place.database, place.load_genesis()) as store:
            head = store.load_head()
        if read_account(head.state, fresh.public_key).uid is None:
            raise KeyFileError(
                f"the chain here does not know the key {fresh.public_key.hex()[:12]} yet",
                "send the transaction, and let the node follow until it is final",
            )
        if power_of(head.validators, present.public_key) > 0:
            tempo = head.params.tempo
            raise KeyFileError(
                f"the present key signs blocks until the epoch ends at {head.height + tempo - head.height % tempo}",
                "start the node again, and finish when that block is final",
            )
        name = f"{present.node_id.hex()[:12]}.old"
        try:
            old = place.key.with_name(f"{place.key.name}.{name}")
            old.unlink(missing_ok=True)
            os.link(place.key, old)
            os.replace(place.next_key, place.key)
            # what the old key signed binds the old key alone; the new one begins with an empty journal
            if place.signed.exists():
                os.replace(place.signed, place.signed.with_name(f"{place.signed.name}.{name}"))
        except OSError as error:
            raise KeyFileError(
                f"cannot replace {place.key}: {error.strerror}", "check the folder and run it again"
            ) from error
    return fresh.public_key


def _neuron_of(state: State, public_key: bytes) -> Neuron:
    uid = read_account(state, public_key).uid
    neuron = read_neuron(state, uid) if uid is not None else None
    if neuron is None:
        raise KeyFileError(
            f"the work key {public_key.hex()[:12]} has no uid, so there is nothing to keep",
            "register it first, or make a new home",
        )
    return neuron
