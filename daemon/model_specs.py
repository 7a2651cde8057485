"""From the sections of the configuration to what the models are built from; imports torch."""

from __future__ import annotations

import msgspec

from moed.models.experts import ExpertSpec
from moed.models.hosted_layer import LayerSpec
from moed.models.study import StudyConfig
from moed.models.training import TrainingConfig

from .config import layer_names
from .config_sections import ExpertSection, LayerSection


def expert_spec(section: ExpertSection) -> ExpertSpec:
    """What ``[[experts]]`` names: a built-in model, or where there is a colon one's own factory."""
    own = ":" in section.model
    return ExpertSpec(
        name=section.name,
        model="" if own else section.model,
        factory=section.model if own else None,
        options=section.options,
        max_rows=section.max_rows,
        max_length=section.max_sequence_bytes,
    )


def training_of(section: ExpertSection) -> TrainingConfig:
    """How the expert trains: on no longer rows than it takes."""
    usual = TrainingConfig()
    return msgspec.structs.replace(usual, length=min(usual.length, section.max_sequence_bytes))


def exchange_of(section: ExpertSection) -> StudyConfig | None:
    """How the expert learns from other miners; None where it does not."""
    return StudyConfig() if section.train and section.exchange_rows_per_minute > 0 else None


def layer_specs(section: LayerSection) -> list[LayerSpec]:
    """The layers that ``[[layers]]`` names, one for each place of its grid."""
    return [
        LayerSpec(
            name=name,
            layer=section.layer,
            width=section.width,
            classes=section.classes,
            max_rows=section.max_rows,
            learning_rate=section.learning_rate,
        )
        for name in layer_names(section.name)
    ]
