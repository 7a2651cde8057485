"""Measurements of moed against what one would use instead: ``python -m benchmarks.NAME --json``."""

import os

# numpy's matrix products take every core unless told before numpy is imported; comparisons here are core for core
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
