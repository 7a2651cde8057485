"""The shapes of answers on the local API; `openapi` publishes them, and `questions` has what is asked.

Answers may carry more fields than are listed here, and never fewer. Amounts are integers of 10⁻⁹ credit, shares
run from 0 to 1, ids and hashes are lower-case hexadecimal.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Hex = Annotated[str, Meta(pattern="^[0-9a-f]*$")]
Share = Annotated[float, Meta(ge=0)]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of answers: more fields may come in later versions."""


class Refusal(_Answer, frozen=True, kw_only=True):
    """Every answer that is no success."""

    code: str
    message: str
    remedy: str


class StatusAnswer(_Answer, frozen=True, kw_only=True):
    """This node: who it is, where its chain stands, whether it can be used.

    ``heights_heard`` is how many peers have told their height: without one a node that has a bootstrap, and does not
    sign alone, cannot know whether it is ``synced``, and is not.
    """

    node_id: Hex
    network: Hex
    version: str
    role: str
    uid: int | None
    height: int
    best_known_height: int
    heights_heard: int
    state_root: Hex
    peers: int
    uptime_s: float
    ready: bool
    synced: bool


class PeerRow(_Answer, frozen=True, kw_only=True):
    """One peer that this node has a session with."""

    node_id: Hex
    address: str


class ExpertRow(_Answer, frozen=True, kw_only=True):
    """One expert that the network offers."""

    uid: int | None
    node_id: Hex
    name: str


class CapacityAnswer(_Answer, frozen=True, kw_only=True):
    """The hardware that nodes measured and signed, each and in total."""

    nodes: list[dict[str, Any]]
    total: dict[str, float]


class MinerRow(_Answer, frozen=True, kw_only=True):
    """One miner's standing after the last epoch; ``weight_by_validator`` is {uid of the validator: share}."""

    uid: int
    node_id: Hex
    domain: str | None
    incentive: Share
    weight_by_validator: dict[str, Share]


class ValidatorRow(_Answer, frozen=True, kw_only=True):
    """One validator's standing after the last epoch."""

    uid: int
    node_id: Hex
    stake: int
    dividends: Share
    trust: Share


class RankingsAnswer(_Answer, frozen=True, kw_only=True):
    """The ranking that consensus made of the validators' weights."""

    epoch: int
    height: int
    miners: list[MinerRow]
    validators: list[ValidatorRow]


class RatingRow(_Answer, frozen=True, kw_only=True):
    """What one validator did to a reward: stake, weight as given and as clipped, part of the rank, bond.

    ``without`` is what the uid would have got without this validator: {incentive, emission}.
    """

    uid: int
    stake: Share
    weight: Share
    clipped: Share
    rank: Share
    bond: Share
    without: dict[str, float]


class HoldingRow(_Answer, frozen=True, kw_only=True):
    """A bond that the uid holds in a miner, and what it brought: the miner's incentive times the bond."""

    uid: int
    bond: Share
    incentive: Share
    dividend: Share


class RewardAnswer(_Answer, frozen=True, kw_only=True):
    """One uid's reward in one epoch, from raw weights to payment."""

    uid: int
    epoch: int
    height: int
    consensus: Share
    rank: Share
    incentive: Share
    dividends: Share
    incentive_emission: int
    dividend_emission: int
    emission: int
    is_emergency: bool
    ratings: list[RatingRow]
    holdings: list[HoldingRow]


class BlockRow(_Answer, frozen=True, kw_only=True):
    """One final block."""

    height: int
    hash: Hex
    time_ms: int
    proposer: Hex
    transactions: int
    state_root: Hex


class NextBlock(_Answer, frozen=True, kw_only=True):
    """The agreement on the next block, ``since_s`` seconds under way; of ``missing`` validators nothing was heard."""

    height: int
    round: int
    step: str
    since_s: float
    missing: list[Hex]


class ChainAnswer(_Answer, frozen=True, kw_only=True):
    """The head of this node's chain, who signs it, and some blocks."""

    height: int
    state_root: Hex
    validators: list[dict[str, Any]]
    blocks: list[BlockRow]
    next: NextBlock | None = None


class CompleteAnswer(_Answer, frozen=True, kw_only=True):
    """The continuation, and the mean share that each miner (by uid) had in it."""

    text: str
    experts: dict[str, Share]


class RouteRow(_Answer, frozen=True, kw_only=True):
    """One miner on one text: its gate score, mean share in the answer, loss alone and what the mixture would lose."""

    uid: int
    name: str
    score: float
    chosen: bool
    share: Share
    latency_ms: float | None
    bits: float | None
    leave_one_out_bits: float | None
    refused: str | None


class RouteAnswer(_Answer, frozen=True, kw_only=True):
    """What the gate does with one text, in bits per byte of the text itself."""

    context_bytes: int
    k: int
    mixture_bits: float
    baseline_bits: float
    experts: list[RouteRow]
    next: list[dict[str, Any]]


class TeachAnswer(_Answer, frozen=True, kw_only=True):
    """What teaching the gate brought, on rows of the same texts that it was not taught, in bits per byte."""

    rows: int
    kept_rows: int
    bits_before: float
    bits_after: float
    share_before: dict[str, Share]
    share_after: dict[str, Share]


class LossesAnswer(_Answer, frozen=True, kw_only=True):
    """Loss on held-out text in bits per byte; lower is better."""

    mixture: float
    best_single: float
    uniform_average: float


class LogsAnswer(_Answer, frozen=True, kw_only=True):
    """Log lines, how many older ones are gone, and the number to go on after."""

    lines: list[dict[str, Any]]
    dropped: int
    last: int


class EventsAnswer(_Answer, frozen=True, kw_only=True):
    """Events, how many older ones are gone, and the number to go on after."""

    events: list[dict[str, Any]]
    dropped: int
    last: int


class SqlAnswer(_Answer, frozen=True, kw_only=True):
    """Rows in the order of ``columns``; ``truncated`` where there were more than one answer holds."""

    columns: list[str]
    rows: list[list[Any]]
    truncated: bool
    took_ms: float


class SettingRow(_Answer, frozen=True, kw_only=True):
    """One key: its value now, where that is from, and whether a running daemon takes a change over."""

    key: str
    value: Any
    source: str
    is_live: bool
    description: str


class ConfigAnswer(_Answer, frozen=True, kw_only=True):
    """Every key of the configuration."""

    settings: list[SettingRow]


class ReloadAnswer(_Answer, frozen=True, kw_only=True):
    """Keys that count from now on, and keys that wait for the next start."""

    changed: list[str]
    waiting_for_restart: list[str]


class ResourcesAnswer(_Answer, frozen=True, kw_only=True):
    """What the daemon takes of its machine, each beside its limit where there is one.

    ``peer_bytes`` is {class of the peer: {sent, received}}, the classes being validator, miner and other.
    """

    memory: dict[str, int | None]
    disk: dict[str, int | None]
    files: dict[str, int]
    cpu: dict[str, float]
    gpu: dict[str, float]
    network: dict[str, int | None]
    peer_bytes: dict[str, dict[str, int]]
    loop_lag_ms: dict[str, float]


class DhtGetAnswer(_Answer, frozen=True, kw_only=True):
    """The newest valid record of each owner, how many nodes had one, and how many were asked."""

    key: Hex
    records: list[dict[str, Any]]
    answered_by: int
    asked: int
    took_ms: float


class DhtTableAnswer(_Answer, frozen=True, kw_only=True):
    """The routing table in buckets, and datagrams that were dropped, by reason."""

    contacts: int
    buckets: list[dict[str, Any]]
    dropped: dict[str, int]


class DhtStep(_Answer, frozen=True, kw_only=True):
    """One question of a look-up: to whom, when, how long the answer took, how many nodes it named."""

    node_id: Hex
    host: str
    port: int
    path: int
    hop: int
    asked_ms: float
    took_ms: float
    outcome: Literal["value", "nodes", "silent"]
    named: int


class DhtLookupAnswer(_Answer, frozen=True, kw_only=True):
    """The way to an id, in the order in which answers came, and the nearest nodes found."""

    target: Hex
    steps: list[DhtStep]
    nearest: list[dict[str, Any]]
    took_ms: float


class FindingRow(_Answer, frozen=True, kw_only=True):
    """One thing that is wrong: a stable code, its cause, the remedy."""

    code: str
    severity: Literal["error", "warning"]
    cause: str
    remedy: str


class DoctorAnswer(_Answer, frozen=True, kw_only=True):
    """How others reach this node; ``udp`` and ``tcp`` are null where fewer than two could be asked.

    ``clocks_ahead_s`` is how far the middle one of ``clocks`` contacts' clocks is ahead of this node's.
    """

    contacts: int
    sessions: int
    advertised: list[str]
    external_host: str | None
    host_votes: int
    udp: bool | None
    tcp: bool | None
    dial_votes: int
    is_client: bool
    clocks_ahead_s: float | None
    clocks: int
    max_clock_drift_s: float
    signs_blocks: bool
    findings: list[FindingRow]


class StopAnswer(_Answer, frozen=True, kw_only=True):
    """The daemon has begun to stop."""

    stopping: bool
