"""Plays the independent parts of an experiment in processes beside each other."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from .logs import configure_logging

T = TypeVar("T")


def play_all(parts: Sequence[Callable[[], T]]) -> list[T]:
    """What each of ``parts`` returns, in their order; they can be pickled, and the longest had better come first.

    As many run at a time as there are cores, each with one torch thread, so that the numbers are those of one after
    the other on any machine. Raises what a part raises.
    """
    workers = max(1, min(len(parts), os.cpu_count() or 1))
    context = multiprocessing.get_context("spawn")  # a fork would take torch's threads along
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as pool:
        return [future.result() for future in [pool.submit(part) for part in parts]]


def _begin() -> None:
    import torch

    torch.set_num_threads(1)
    configure_logging("error")
