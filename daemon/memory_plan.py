"""What a home's models will take of its device's memory, whether that fits, and which one setting makes it fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from moed.models.device import Device
from moed.models.errors import ModelRefused
from moed.models.footprint import Footprint, predict_expert, predict_layer

from .config import Config, layer_names
from .config_sections import ExpertSection, LayerSection
from .errors import ConfigError
from .limits_watch import MIB
from .model_specs import exchange_of, expert_spec, layer_specs, training_of

Section = ExpertSection | LayerSection
_TRIES = 6


@dataclass(frozen=True, slots=True)
class Planned:
    """One section of the configuration: where it stands, ``count`` models alike, and the footprint of each."""

    place: str
    section: Section
    count: int
    footprint: Footprint


@dataclass(frozen=True, slots=True)
class Need:
    """What one memory has to hold, and may: ``limit_by`` names what sets the limit."""

    device: str
    framework_bytes: int
    models_bytes: int
    limit_bytes: int
    limit_by: str

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.framework_bytes + self.models_bytes

    @property
    def fits(self) -> bool:
        """Whether it is within the limit."""
        return self.bytes <= self.limit_bytes


@dataclass(frozen=True, slots=True)
class Change:
    """One setting, as it is and as it would fit."""

    key: str
    now: Any
    then: Any


class MemoryPlan:
    """The plan of one configuration. ``framework_bytes`` is what the process takes without models, on the host."""

    def __init__(self, config: Config, device: Device, *, framework_bytes: int) -> None:
        """Predicts every model. Raises `ConfigError` for one that cannot be built."""
        self._config = config
        self._device = device
        self._framework_bytes = framework_bytes
        self._total_bytes, self._free_bytes = device.memory_bytes()
        self._seen: dict[str, Footprint] = {}
        sections: list[tuple[str, Section]] = [(f"experts[{at}]", one) for at, one in enumerate(config.experts)]
        sections += [(f"layers[{at}]", one) for at, one in enumerate(config.layers)]
        self.models = tuple(self._planned(place, section) for place, section in sections)

    def need(self, models: Sequence[Planned] | None = None) -> Need:
        """What the memory of the device has to hold, at the worst moment of ``models``, by default those planned."""
        planned = self.models if models is None else models
        together = sum(one.count * one.footprint.kept for one in planned)
        together += max((one.footprint.transient for one in planned), default=0)
        limit, limit_by = self._limit()
        framework = 0 if self._device.is_cuda else self._framework_bytes
        return Need(self._device.name, framework, together, limit, limit_by)

    def change(self) -> Change | None:
        """The one setting that makes it fit, the least loss first; None where it fits, or no single one does."""
        if self.need().fits:
            return None
        for number, planned in sorted(enumerate(self.models), key=lambda item: -item[1].footprint.transient):
            for key in ("max_rows", "max_sequence_bytes"):
                least = 2 if key == "max_sequence_bytes" else 1
                if key in planned.section.__struct_fields__ and (found := self._largest(number, key, least)):
                    return found
        for number, key, value in self._switches():
            if self._need_with(number, key, value).fits:
                return Change(f"{self.models[number].place}.{key}", getattr(self.models[number].section, key), value)
        return self._raised_limit()

    def _planned(self, place: str, section: Section) -> Planned:
        count = len(layer_names(section.name)) if isinstance(section, LayerSection) else 1
        return Planned(place, section, count, self._footprint(section))

    def _footprint(self, section: Section) -> Footprint:
        known = repr(section)
        if known not in self._seen:
            try:
                self._seen[known] = self._predict(section)
            except ModelRefused as error:
                raise ConfigError(str(error), "correct it in the configuration") from error
        return self._seen[known]

    def _predict(self, section: Section) -> Footprint:
        if isinstance(section, LayerSection):
            return predict_layer(layer_specs(section)[0], self._device)
        return predict_expert(
            expert_spec(section),
            training_of(section),
            self._device,
            is_trained=section.train,
            exchange=exchange_of(section),
        )

    def _limit(self) -> tuple[int, str]:
        if self._device.is_cuda:
            share = self._config.limits.gpu_memory_share
            allowed = int(share * self._total_bytes)
            return (allowed, "limits.gpu_memory_share") if allowed < self._free_bytes else (self._free_bytes, "free")
        limit_mib = self._config.limits.memory_mib
        if limit_mib is not None and limit_mib * MIB < self._free_bytes:
            return limit_mib * MIB, "limits.memory_mib"
        return self._free_bytes, "free"

    def _need_with(self, number: int, key: str, value: Any) -> Need:
        models = list(self.models)
        changed = msgspec.structs.replace(models[number].section, **{key: value})
        models[number] = self._planned(models[number].place, changed)
        return self.need(models)

    def _largest(self, number: int, key: str, least: int) -> Change | None:
        """The largest value of ``key`` that fits, found along a straight line and then tried; None if none does."""
        now = getattr(self.models[number].section, key)
        low, high = least, now
        if now <= least or not self._need_with(number, key, least).fits:
            return None
        at_low, at_high = self._need_with(number, key, low), self.need()
        for _ in range(_TRIES):
            if high - low <= 1:
                break
            slope = (at_high.bytes - at_low.bytes) / (high - low)
            guess = low + int((at_low.limit_bytes - at_low.bytes) / slope) if slope > 0 else low + 1
            guess = min(max(guess, low + 1), high - 1)
            tried = self._need_with(number, key, guess)
            if tried.fits:
                low, at_low = guess, tried
                # one more would not: along a straight line there is nothing to win
                if at_low.bytes + slope > at_low.limit_bytes:
                    break
            else:
                high, at_high = guess, tried
        return Change(f"{self.models[number].place}.{key}", now, low)

    def _switches(self) -> Iterator[tuple[int, str, Any]]:
        """Settings that give something up altogether, the largest models first."""
        by_size = sorted(enumerate(self.models), key=lambda item: -item[1].count * item[1].footprint.peak)
        for number, planned in by_size:
            if isinstance(planned.section, ExpertSection) and planned.section.train:
                yield number, "exchange_rows_per_minute", 0.0
        for number, planned in by_size:
            if isinstance(planned.section, ExpertSection) and planned.section.train:
                yield number, "train", False
            elif isinstance(planned.section, LayerSection) and planned.section.learning_rate > 0:
                yield number, "learning_rate", 0.0

    def _raised_limit(self) -> Change | None:
        need = self.need()
        if need.limit_by != "limits.memory_mib" or need.bytes > self._free_bytes:
            return None
        return Change("limits.memory_mib", self._config.limits.memory_mib, -(-need.bytes // MIB))
