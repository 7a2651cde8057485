"""What a node shows of itself: the answers behind the local API, read from chain, sessions and directory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moed import __version__
from moed.consensus.blocks import decode_block, decode_commit, signed_share
from moed.consensus.explain import explain_reward
from moed.consensus.staking import take_of
from moed.consensus.state import (
    Neuron,
    StateReader,
    pool_of,
    read_account,
    read_neuron,
    read_neurons,
    read_pool,
    read_previous_validators,
    read_totals,
    stake_behind,
)
from moed.protocol.identity import Identity, NodeId, PublicKey, node_id_of
from moed.protocol.records import PeerRecord

from .books import KEPT_EPOCHS
from .chain import Chain
from .control.api import ControlRefused
from .control.questions import MAX_CHAIN_ROWS
from .dht_view import DhtView
from .discovery import Discovery
from .ledger_view import LedgerView
from .network.peers import Peers
from .network.traffic import PeerClass
from .reward_answer import reward_answer
from .store import Store

U16 = 65_535


class Mixture(Protocol):
    """Who answers completions: the validator of this node, or the way to another one."""

    def complete(
        self, prompt: bytes, *, max_bytes: int, temperature: float, seed: int | None
    ) -> AsyncIterator[dict[str, Any]]: ...

    async def losses(self) -> dict[str, Any]: ...

    async def route(self, text: bytes) -> dict[str, Any]: ...

    async def teach(self, texts: Sequence[bytes], *, steps: int) -> dict[str, Any]: ...

    async def forward(self, inputs: NDArray[np.uint8]) -> tuple[NDArray[np.float32], list[dict[str, float]]]: ...


class NodeView:
    """The control plane of one node. It reads what the node's services hold and changes nothing but the stop."""

    def __init__(
        self,
        *,
        identity: Identity,
        role: str,
        chain: Chain,
        store: Store,
        peers: Peers,
        discovery: Discovery,
        mixture: Mixture,
        stop: Callable[[], None],
        describe: Callable[[], PeerRecord],
        dht: DhtView,
        work: Callable[[], Mapping[str, Mapping[str, Any]]],
        has_bootstrap: bool,
    ) -> None:
        self._has_bootstrap = has_bootstrap
        self._identity = identity
        self._role = role
        self._chain = chain
        self._store = store
        self._peers = peers
        self._discovery = discovery
        self._mixture = mixture
        self._stop = stop
        self.describe = describe
        self._dht = dht
        self._work = work
        self.ledger = LedgerView(
            identity,
            lambda: chain.head,
            lambda sender: chain.mempool.next_nonce(sender, chain.head.state),
            partial(chain.add_transaction, origin=None),
        )
        self._started = time.monotonic()
        self.is_ready = False

    def request_stop(self) -> None:
        self._stop()

    async def status(self) -> dict[str, Any]:
        head = self._chain.head
        totals = read_totals(head.state)
        return {
            "node_id": self._identity.node_id.hex(),
            "public_key": self._identity.public_key.hex(),
            "network": head.network_id.hex(),
            "network_name": head.genesis.name,
            "workloads": list(head.genesis.workloads),
            "version": __version__,
            "role": self._role,
            "uid": read_account(head.state, self._identity.public_key).uid,
            "height": head.height,
            "best_known_height": self._chain.best_known_height,
            "state_root": head.state_root.hex(),
            "epoch": totals.epoch,
            "tempo": head.params.tempo,
            "peers": len(self._peers.connected()),
            "uptime_s": round(time.monotonic() - self._started, 1),
            "ready": self.is_ready,
            "heights_heard": self._chain.heights_heard,
            "synced": self._is_synced(),
        }

    def _is_synced(self) -> bool:
        """Whether we have every block that peers know of, which needs one that told us.

        Who signs alone, or was given nobody to ask, has nobody to wait for.
        """
        members = self._chain.head.validators.members
        signs_alone = [member.key for member in members] == [self._identity.public_key]
        can_know = self._chain.heights_heard > 0 or signs_alone or not self._has_bootstrap
        return self.is_ready and can_know and self._chain.height >= self._chain.best_known_height

    async def peers(self) -> list[dict[str, Any]]:
        uids = {neuron.node_id: neuron.uid for neuron in read_neurons(self._chain.head.state)}
        return [
            {
                "node_id": peer.node_id.hex(),
                "address": str(peer.address),
                "direction": "out" if peer.is_outbound else "in",
                "rtt_ms": None if peer.rtt_s is None else round(peer.rtt_s * 1000, 2),
                "uid": uids.get(peer.node_id),
                "roles": list(known.record.roles) if (known := self._known(peer.node_id)) else [],
            }
            for peer in self._peers.connected()
        ]

    async def experts(self) -> list[dict[str, Any]]:
        uids = {neuron.node_id: neuron.uid for neuron in read_neurons(self._chain.head.state)}
        rows = [
            {
                "uid": uids.get(record.node_id),
                "node_id": record.node_id.hex(),
                "name": expert.name,
                "kind": expert.kind,
                "domain": expert.domain,
                "batch_limit": expert.batch_limit,
                "forwards_per_s": expert.forwards_per_s,
                "queue_delay_ms": expert.queue_delay_ms,
                **(self._work().get(expert.name, {}) if record.owner == self._identity.public_key else {}),
            }
            for record in self._records()
            for expert in record.experts
        ]
        return sorted(rows, key=lambda row: (row["uid"] is None, row["uid"], row["name"]))

    async def capacity(self, owner: str | None = None) -> dict[str, Any]:
        neurons = {neuron.node_id: neuron for neuron in read_neurons(self._chain.head.state)}
        owners = {node_id: neuron.payee.hex() for node_id, neuron in neurons.items()}
        records = [one for one in self._records() if owner is None or owners.get(one.node_id) == owner]
        nodes = [
            {
                "node_id": record.node_id.hex(),
                "uid": neurons[record.node_id].uid if record.node_id in neurons else None,
                "owner": owners.get(record.node_id),
                "devices": [
                    {name: getattr(device, name) for name in device.__struct_fields__} for device in record.devices
                ],
                "load": record.load,
                "price": record.price,
            }
            for record in records
        ]
        devices = [device for record in records for device in record.devices]
        return {
            "nodes": nodes,
            "total": {
                "nodes": len(nodes),
                "devices": sum(device.count for device in devices),
                "memory_bytes": sum(device.count * device.total_bytes for device in devices),
                "matmul_flops_per_s": sum(device.count * device.matmul_flops_per_s for device in devices),
            },
        }

    async def rankings(self) -> dict[str, Any]:
        state = self._chain.head.state
        totals = read_totals(state)
        neurons = read_neurons(state)
        voters = [neuron for neuron in neurons if neuron.has_permit]
        domains = {record.node_id: record.experts[0].domain for record in self._records() if record.experts}
        given = {str(voter.uid): _shares(voter.weights) for voter in voters}
        miners = [self._miner_row(neuron, given, domains) for neuron in neurons if not neuron.has_permit]
        return {
            "epoch": totals.epoch,
            "height": self._chain.height,
            "miners": sorted(miners, key=lambda row: (-row["incentive"], row["uid"])),
            "validators": [
                {
                    "uid": neuron.uid,
                    "node_id": neuron.node_id.hex(),
                    "public_key": neuron.key.hex(),
                    "stake": stake_behind(state, neuron.key),
                    "take": take_of(read_pool(state, pool_of(state, neuron.key)), self._chain.head.params) / 1_000_000,
                    "dividends": neuron.dividends_u16 / U16,
                    "trust": neuron.trust_u16 / U16,
                    "last_update": neuron.last_update,
                }
                for neuron in voters
            ],
        }

    def _miner_row(
        self, neuron: Neuron, given: Mapping[str, Mapping[int, float]], domains: Mapping[NodeId, str]
    ) -> dict[str, Any]:
        """One miner's standing; ``given`` is what each validator gives to whom."""
        return {
            "uid": neuron.uid,
            "node_id": neuron.node_id.hex(),
            "domain": domains.get(neuron.node_id),
            "incentive": neuron.incentive_u16 / U16,
            "consensus": neuron.consensus_u16 / U16,
            "emission": neuron.emission,
            "balance": read_account(self._chain.head.state, neuron.payee).balance,
            "weight_by_validator": {
                voter: shares[neuron.uid] for voter, shares in given.items() if neuron.uid in shares
            },
        }

    async def why_reward(self, *, uid: int, epoch: int | None) -> dict[str, Any]:
        last = read_totals(self._chain.head.state).epoch
        if last == 0:
            raise ControlRefused(
                404, "no_epoch", "no epoch has ended yet", "wait for the first; `moectl status` shows the height"
            )
        number = last if epoch is None else epoch
        inputs = await self._chain.read(self._store.epoch_inputs, number)
        if inputs is None:
            oldest = max(1, last - KEPT_EPOCHS + 1)
            remedy = f"ask for one of {oldest} to {last}"
            raise ControlRefused(404, "unknown_epoch", f"epoch {number} is not kept here", remedy)
        if uid >= inputs.n:
            remedy = "see `moectl rankings`"
            raise ControlRefused(404, "unknown_uid", f"uid {uid} was not registered in epoch {number}", remedy)
        return reward_answer(number, await self._chain.read(explain_reward, inputs, uid))

    async def chain(self, *, start: int | None, limit: int) -> dict[str, Any]:
        head = self._chain.head
        limit = max(1, min(limit, MAX_CHAIN_ROWS))
        first = max(1, head.height - limit + 1 if start is None else start)
        rows = await self._chain.read(self._store.encoded_blocks, first, limit)
        signers = {entry.validator for entry in head.commit.signatures}
        return {
            "height": head.height,
            "state_root": head.state_root.hex(),
            "validators": [
                {
                    "node_id": node_id_of(member.key).hex(),
                    "stake": member.power,
                    "signed_last_block": member.key in signers,
                }
                for member in head.validators.members
            ],
            "blocks": [_block_row(block, commit) for block, commit in rows],
            "signed_stake_share": signed_share(head.commit, read_previous_validators(head.state)),
            "next": self._next_block(),
        }

    def _next_block(self) -> dict[str, Any]:
        """Where the agreement on the next block stands, and who is missing when it does not move."""
        standing = self._chain.standing
        return {
            "height": standing.height,
            "round": standing.round,
            "step": standing.step,
            "since_s": round(standing.since_s, 1),
            "missing": [node_id_of(key).hex() for key in standing.missing],
        }

    def complete(
        self, prompt: bytes, *, max_bytes: int, temperature: float, seed: int | None
    ) -> AsyncIterator[dict[str, Any]]:
        return self._mixture.complete(prompt, max_bytes=max_bytes, temperature=temperature, seed=seed)

    async def losses(self) -> dict[str, Any]:
        return await self._mixture.losses()

    async def route(self, text: bytes) -> dict[str, Any]:
        return await self._mixture.route(text)

    async def teach(self, texts: Sequence[bytes], *, steps: int) -> dict[str, Any]:
        return await self._mixture.teach(texts, steps=steps)

    async def forward(self, inputs: NDArray[np.uint8]) -> tuple[NDArray[np.float32], list[dict[str, float]]]:
        return await self._mixture.forward(inputs)

    async def dht_get(self, key: str) -> dict[str, Any]:
        return await self._dht.get(key)

    async def dht_table(self) -> dict[str, Any]:
        return self._dht.table()

    async def dht_lookup(self, target: str) -> dict[str, Any]:
        return await self._dht.lookup(target)

    async def doctor(self) -> dict[str, Any]:
        return {
            **await self._dht.doctor(),
            "max_clock_drift_s": self._chain.head.params.max_clock_drift_ms / 1000,
            "signs_blocks": self._chain.is_validator,
        }

    def _known(self, node_id: NodeId) -> Any:
        return self._discovery.directory.get(node_id)

    def _records(self) -> list[PeerRecord]:
        """Our own record and those of everybody found."""
        return [self.describe(), *(known.record for known in self._discovery.directory.values())]


def peer_class(state: StateReader, key: PublicKey) -> PeerClass:
    """What a key is on the chain: a uid with a permit is a validator, any other uid a miner."""
    uid = read_account(state, key).uid
    neuron = None if uid is None else read_neuron(state, uid)
    if neuron is None:
        return PeerClass.OTHER
    return PeerClass.VALIDATOR if neuron.has_permit else PeerClass.MINER


def _shares(weights: Sequence[tuple[int, int]]) -> dict[int, float]:
    """A validator's weights as parts of their sum, by uid."""
    total = sum(weight for _, weight in weights)
    return {uid: weight / total for uid, weight in weights} if total else {}


def _block_row(encoded: bytes, encoded_commit: bytes) -> dict[str, Any]:
    block, commit = decode_block(encoded), decode_commit(encoded_commit)
    return {
        "height": block.height,
        "hash": block.hash.hex(),
        "time_ms": block.header.time_ms,
        "proposer": node_id_of(block.header.proposer).hex(),
        "transactions": len(block.transactions),
        "state_root": block.header.state_root.hex(),
        "round": commit.round,
        "signatures": len(commit.signatures),
    }
