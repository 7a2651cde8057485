"""What a miner adds for its layers of kind hidden: built from the configuration, with the budget of their gradients."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from .config import Config, layer_names
from .errors import ConfigError
from .gradient_budget import BackwardBudget
from .home import Home

if TYPE_CHECKING:
    from moed.models.hosted_layer import HostedLayer


def open_layers(config: Config) -> list[HostedLayer]:
    """Every layer that ``config`` names, new or from its checkpoint. Raises `ConfigError` for one that cannot be."""
    from moed.models.errors import ModelRefused
    from moed.models.hosted_layer import LayerSpec, open_layer

    from .expert_grid import grid_topics

    folder = Home(config.home).experts
    folder.mkdir(mode=0o700, exist_ok=True)
    layers = []
    try:
        for section in config.layers:
            names = layer_names(section.name)
            grid_topics(names)  # a place that cannot be announced is refused here
            for name in names:
                spec = LayerSpec(
                    name=name,
                    layer=section.layer,
                    width=section.width,
                    max_rows=section.max_rows,
                    learning_rate=section.learning_rate,
                )
                layers.append(open_layer(spec, folder, seed=secrets.randbits(31)))
    except (ModelRefused, ValueError) as error:
        raise ConfigError(f"[[layers]]: {error}", "correct it in the configuration") from error
    return layers


def gradient_budget(config: Config) -> BackwardBudget:
    """Who may use how much of the device for gradients."""
    section = config.gradients
    return BackwardBudget(
        stranger_share=section.stranger_share, caller_share=section.caller_share, burst_s=section.burst_s
    )
