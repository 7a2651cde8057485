"""One experiment played from several seeds: every run, which targets all of them held, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def over_seeds(runs: Sequence[Mapping[str, Any]], numbers: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What `runs` of one experiment found together; ``numbers`` are the ones of each run to compare.

    A target counts as held where every run held it.
    """
    return {
        "experiment": runs[0]["experiment"],
        "seeds": [run["seed"] for run in runs],
        "held": {name: all(run["held"][name] for run in runs) for name in runs[0]["held"]},
        "spread": {name: _spread([one[name] for one in numbers]) for name in numbers[0]},
        "runs": list(runs),
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": float(np.mean(values)),
        "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }
