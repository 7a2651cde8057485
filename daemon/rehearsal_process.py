"""`python -m moed.daemon.rehearsal_process HOME [PLACE]`: one model built and run, in a process that has only that.

Prints one JSON object: what the framework takes, and for a PLACE (``experts[0]``, ``layers[1]``) what its model added.
`moed plan` starts it, a process for each model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from moed.models.errors import ExpertError
from moed.models.rehearsal import measure_framework, rehearse_expert, rehearse_layer

# a daemon has these in memory too, so they count as framework
from . import node as node
from . import runtime as runtime
from .config import load_config
from .model_specs import exchange_of, expert_spec, layer_specs, training_of
from .roles import prepare_torch


def rehearse(home: Path, place: str | None) -> dict[str, Any]:
    """What `MemoryPlan` predicts of ``place``, measured. ``error`` in place of numbers where it could not run."""
    config = load_config(home)
    device = prepare_torch(config)
    if place is None:
        return {"framework_bytes": measure_framework(device)}
    kind, _, number = place.rstrip("]").partition("[")
    try:
        if kind == "layers":
            measured = rehearse_layer(layer_specs(config.layers[int(number)])[0], device)
        else:
            section = config.experts[int(number)]
            measured = rehearse_expert(
                expert_spec(section),
                training_of(section),
                device,
                is_trained=section.train,
                exchange=exchange_of(section),
            )
    except (ExpertError, RuntimeError, MemoryError) as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    found: dict[str, Any] = msgspec.to_builtins(measured)
    return found


if __name__ == "__main__":
    print(json.dumps(rehearse(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)))
