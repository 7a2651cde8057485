"""Tests of models run on one thread of torch: several wait for each other more than they compute on a busy machine."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
