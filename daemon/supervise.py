"""Keeping the nursery tree honest: a service that returns is a crash, and signals become one event."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

import structlog
import trio

from .errors import ServiceEnded

logger = structlog.get_logger()


async def forever(name: str, service: Callable[[], Awaitable[None]]) -> None:
    """Await ``service`` and raise `ServiceEnded` if it returns: silent death becomes a stop that systemd sees."""
    await service()
    raise ServiceEnded(name)


async def heed_signals(
    stop: Callable[[], None],
    reload: Callable[[], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call ``stop`` at each SIGTERM or SIGINT and ``reload`` at each SIGHUP, until cancelled."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                reload()
                continue
            logger.info("node.stop_asked", signal=signal.Signals(number).name)
            stop()
