"""Tensor calls between two processes on loopback, beside hivemind's in the same run."""

import moed.models as _models  # noqa: F401  # before torch, as in a daemon: it keeps torch's idle threads off the cores
