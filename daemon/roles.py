"""What each role adds to a node; torch comes into memory here, and only for a role that computes."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import structlog

from moed.protocol.identity import Identity
from moed.protocol.records import DeviceSummary, ExpertSummary, PeerRecord

from .chain import Chain
from .config import Config
from .config_sections import ExpertSection
from .discovery import Discovery
from .errors import ConfigError
from .forwarding import ForwardedMixture
from .home import Home
from .limits_watch import MIB, resident_bytes
from .network.calls import Handler, Method
from .network.peers import Peers
from .views import Mixture

if TYPE_CHECKING:
    from moed.models.capacity import DeviceCapacity
    from moed.models.corpora import Corpus
    from moed.models.device import Device
    from moed.models.hosted_layer import HostedLayer
    from moed.models.hosting import HostedExpert
    from moed.models.locks import Lock

logger = structlog.get_logger()

TOPIC_EXPERT = "expert:text.next"
MEASURED_ROWS = 16
MEASURED_BYTES = 128


def _as_it_is(record: PeerRecord) -> PeerRecord:
    return record


@dataclass(slots=True)
class Role:
    """What a role adds: methods for peers, services, topics, its part of our record, and a way to the mixture."""

    mixture: Mixture
    handlers: Mapping[str, Handler | Method] = field(default_factory=dict)
    services: Mapping[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    topics: Mapping[str, bytes] = field(default_factory=dict)
    describe: Callable[[PeerRecord], PeerRecord] = _as_it_is
    work: Callable[[], Mapping[str, Mapping[str, Any]]] = dict
    """What each of our own experts has done, by its name."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every role is given of the node."""

    config: Config
    identity: Identity
    chain: Chain
    peers: Peers
    discovery: Discovery


def take_role(node: Surroundings) -> Role:
    """Prepare the role that the configuration names; loads and measures models, so it takes seconds.

    Raises `ConfigError` for a model or a text that cannot be had.
    """
    if node.config.node.role == "miner":
        return _miner(node)
    if node.config.node.role == "validator":
        return _validator(node)
    return Role(mixture=ForwardedMixture(node.chain, node.peers))


def _miner(node: Surroundings) -> Role:
    from moed.models.capacity import measure_devices

    from .asking import Panel
    from .exchange import Exchange, teachers_of
    from .expert_grid import grid_topics
    from .layer_role import gradient_budget, open_layers
    from .miner import Miner
    from .runtime import Runtime, RuntimeConfig

    device = prepare_torch(node.config)
    hosted = [_open_expert(section, node.config, device) for section in node.config.experts]
    devices = measure_devices()
    rates = {one.name: _rate(one, device) for one in hosted}
    share = max((section.training_share for section in node.config.experts if section.train), default=0.0)
    layers = open_layers(node.config, device)
    _require_memory(node.config, [*hosted, *layers], device)
    runtime = Runtime([*hosted, *layers], RuntimeConfig(training_share=share))
    panel = Panel(node.chain, node.peers, node.discovery, node.identity.public_key)
    budgets = {section.name: section.exchange_rows_per_minute for section in node.config.experts}
    exchanges = {
        one.name: Exchange(
            one.study,
            partial(teachers_of, node.chain, node.peers, panel, one.study),
            rows_per_minute=budgets[one.name],
        )
        for one in hosted
        if one.study is not None
    }
    budget = gradient_budget(node.config)
    miner = Miner(node.chain, runtime, node.identity.public_key, backward=budget, exchanges=exchanges)
    domains = {section.name: section.domain or "files" for section in node.config.experts}

    def describe(record: PeerRecord) -> PeerRecord:
        load = runtime.load()
        experts = tuple(
            ExpertSummary(
                name=one.name,
                kind=one.expert.spec.kind,
                domain=domains[one.name],
                batch_limit=one.info.takes.max_rows,
                forwards_per_s=rates[one.name],
                queue_delay_ms=load.queue_delay_ms,
            )
            for one in hosted
        )
        waiting = load.waiting_rows / sum(one.takes.max_rows for one in runtime.infos())
        return msgspec.structs.replace(record, devices=_devices(devices), experts=experts, load=waiting)

    logger.info("miner.prepared", experts=[one.name for one in hosted], devices=[device.name for device in devices])
    return Role(
        mixture=ForwardedMixture(node.chain, node.peers),
        handlers=miner.handlers(),
        services={"miner": miner.run},
        topics={**({TOPIC_EXPERT: b""} if hosted else {}), **grid_topics([one.name for one in layers])},
        describe=describe,
        work=miner.work,
    )


def _validator(node: Surroundings) -> Role:
    from moed.models.capacity import measure_devices
    from moed.models.errors import CorpusUnavailable, ModelRefused
    from moed.models.gate import GateConfig
    from moed.models.gate_file import open_brain
    from moed.models.plans import ValidatorConfig

    from .validator import Validator

    prepare_torch(node.config)
    section = node.config.validator
    try:
        gate = GateConfig(k=section.top_k, exploration_floor=section.exploration)
        settings = ValidatorConfig(
            gate=gate, rows=section.batch_rows, length=section.sequence_bytes, probe_every=section.probe_every
        )
    except ValueError as error:
        raise ConfigError(f"[validator]: {error}", "correct it in the configuration") from error
    # the stream is private: a miner that knew the seed would know what it will be asked
    locks: list[Lock | Corpus] = [*_validation_texts(node.config), *_own_locks(section.locks)]
    try:
        opened = open_brain(Home(node.config.home).gate, locks, settings, seed=secrets.randbits(63))
    except (CorpusUnavailable, ModelRefused) as error:
        raise ConfigError(f"[validator]: {error}", "correct it in the configuration") from error
    if opened.is_set_aside:
        logger.warning("validator.set_aside", path=str(Home(node.config.home).gate))
    devices = measure_devices()
    validator = Validator(
        node.chain,
        node.peers,
        node.discovery,
        opened.brain,
        node.identity.public_key,
        path=Home(node.config.home).gate,
        remembered=opened.keys,
    )

    def describe(record: PeerRecord) -> PeerRecord:
        return msgspec.structs.replace(record, devices=_devices(devices))

    return Role(
        mixture=validator,
        handlers=validator.handlers(),
        services={"validator": validator.run},
        describe=describe,
    )


def prepare_torch(config: Config) -> Device:
    """Set torch up as ``config`` says; the device that its models live on. Raises `ConfigError`."""
    import torch

    from moed.models.device import choose_device, limit_gpu_memory
    from moed.models.errors import ModelRefused

    torch.set_num_threads(config.compute.torch_threads)
    try:
        device = choose_device(config.compute.device, config.compute.precision)
    except ModelRefused as error:
        raise ConfigError(str(error), "set it to auto, or to a device that is there") from error
    limit_gpu_memory(config.limits.gpu_memory_share)
    return device


def _open_expert(section: ExpertSection, config: Config, device: Device) -> HostedExpert:
    from moed.models.errors import CorpusUnavailable, ModelRefused
    from moed.models.hosting import open_hosted

    from .model_specs import exchange_of, expert_spec, training_of

    folder = Home(config.home).experts
    folder.mkdir(mode=0o700, exist_ok=True)
    corpus = corpus_of(section, config)
    try:
        hosted = open_hosted(
            expert_spec(section),
            corpus,
            training_of(section),
            folder,
            seed=secrets.randbits(31),
            exchange=exchange_of(section),
            device=device,
            trains_itself=section.train,
        )
    except (CorpusUnavailable, ModelRefused) as error:
        raise ConfigError(f"expert {section.name!r}: {error}", "correct it in the configuration") from error
    if hosted.origin == "set_aside":
        logger.warning("expert.set_aside", expert=section.name, path=str(hosted.path))
    return hosted


def _rate(hosted: HostedExpert, device: Device) -> float:
    """The forwards per second of an expert. Raises `ConfigError` for one that does not answer what it should take."""
    from moed.models.capacity import measure_expert
    from moed.models.errors import ExpertError

    spec = hosted.expert.spec
    try:
        hosted.forward(np.zeros((1, spec.max_length), dtype=np.uint8))
    except ExpertError as error:
        raise ConfigError(
            f"expert {spec.name!r} does not answer a row of max_sequence_bytes = {spec.max_length}: {error}",
            "correct its options, or max_sequence_bytes",
        ) from error
    rows, length = min(MEASURED_ROWS, spec.max_rows), min(MEASURED_BYTES, spec.max_length)
    return measure_expert(hosted.trainer.averaged, rows=rows, length=length, device=device).forwards_per_s


def _require_memory(config: Config, models: Sequence[HostedExpert | HostedLayer], device: Device) -> None:
    """Refuse what plainly cannot fit, by sums alone: `moed plan` finds out more. Raises `ConfigError`."""
    limit_mib = config.limits.memory_mib
    if limit_mib is None or device.is_cuda:
        return
    least = resident_bytes() + sum(one.bytes_to_come for one in models)
    if least > limit_mib * MIB:
        raise ConfigError(
            f"[limits] memory_mib = {limit_mib}: these models take at least {-(-least // MIB)} MiB",
            f"moed plan --home {config.home} says what fits",
        )


def corpus_of(section: ExpertSection, config: Config) -> Corpus:
    """The text that an expert learns. Raises `ConfigError` where it is not on this machine."""
    return _corpus(section.domain, config.text_files(section.files))


def _validation_texts(config: Config) -> list[Corpus]:
    from moed.models.corpora import available_domains

    files = config.text_files(config.validator.files)
    own = [_corpus(None, files)] if files else []
    chose_own = bool(files or config.validator.locks)
    domains = config.validator.domains or (() if chose_own else available_domains())
    return own + [_corpus(domain, ()) for domain in domains]


def _own_locks(factories: tuple[str, ...]) -> list[Lock]:
    from moed.models.errors import ModelRefused
    from moed.models.locks import load_lock

    try:
        return [load_lock(factory) for factory in factories]
    except ModelRefused as error:
        raise ConfigError(f"[validator] locks: {error}", "correct it in the configuration") from error


def _corpus(domain: str | None, files: tuple[Path, ...]) -> Corpus:
    from moed.models.corpora import load_corpus
    from moed.models.errors import CorpusUnavailable

    try:
        return load_corpus(domain or "files", files)
    except CorpusUnavailable as error:
        raise ConfigError(str(error), "correct it in the configuration") from error


def _devices(measured: tuple[DeviceCapacity, ...]) -> tuple[DeviceSummary, ...]:
    return tuple(
        DeviceSummary(
            kind=device.kind,
            name=device.name,
            total_bytes=device.memory_total_bytes,
            free_bytes=device.memory_free_bytes,
            matmul_flops_per_s=max(device.matmul_flops_per_s.values(), default=0),
            copy_bytes_per_s=device.copy_bytes_per_s,
        )
        for device in measured
    )
