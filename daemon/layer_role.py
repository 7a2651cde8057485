"""What a miner adds for its layers: built from the configuration, with the budget of their gradients."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from .config import Config
from .errors import ConfigError
from .gradient_budget import BackwardBudget
from .home import Home

if TYPE_CHECKING:
    from moed.models.device import Device
    from moed.models.hosted_layer import HostedLayer


def open_layers(config: Config, device: Device) -> list[HostedLayer]:
    """Every layer that ``config`` names, new or from its checkpoint. Raises `ConfigError` for one that cannot be."""
    from moed.models.errors import ModelRefused
    from moed.models.hosted_layer import open_layer

    from .expert_grid import grid_topics
    from .model_specs import layer_specs

    folder = Home(config.home).experts
    folder.mkdir(mode=0o700, exist_ok=True)
    layers: list[HostedLayer] = []
    try:
        for section in config.layers:
            specs = layer_specs(section)
            grid_topics([spec.name for spec in specs])  # a place that cannot be announced is refused here
            layers.extend(open_layer(spec, folder, seed=secrets.randbits(31), device=device) for spec in specs)
    except (ModelRefused, ValueError) as error:
        raise ConfigError(f"[[layers]]: {error}", "correct it in the configuration") from error
    return layers


def gradient_budget(config: Config) -> BackwardBudget:
    """Who may use how much of the device for gradients."""
    section = config.gradients
    return BackwardBudget(
        stranger_share=section.stranger_share, caller_share=section.caller_share, burst_s=section.burst_s
    )
