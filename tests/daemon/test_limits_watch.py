"""Limits on memory and disk: warned of, then a stop in order with the remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from moed.daemon.config import Config, load_config, write_default
from moed.daemon.errors import LimitReached
from moed.daemon.limits_watch import LimitsWatch, folder_bytes, resident_bytes


def limited(home: Path, **limits: int) -> Config:
    """A configuration with these limits, which may be lower than a file can set them."""
    write_default(home / "config.toml")
    config = load_config(home, environ={})
    return replace(config, limits=msgspec.structs.replace(config.limits, **limits))


async def test_memory_over_its_limit_ends_the_daemon(tmp_path: Path) -> None:
    """With words that name what, how much and the key."""
    config = limited(tmp_path, memory_mib=1)
    with pytest.raises(LimitReached, match=r"memory is \d+ MiB, over the limit of 1 MiB \(raise limits.memory_mib"):
        await LimitsWatch(lambda: config, traffic=dict).run()


async def test_a_home_over_its_quota_ends_the_daemon(tmp_path: Path) -> None:
    """What lies in the home is measured at the start and then now and again."""
    config = limited(tmp_path, disk_mib=1)
    (tmp_path / "big").write_bytes(b"x" * (2 << 20))
    with pytest.raises(LimitReached, match=r"disk is 2 MiB"):
        await LimitsWatch(lambda: config, traffic=dict).run()


def test_what_is_measured_is_what_the_system_says(tmp_path: Path) -> None:
    """Resident memory as in /proc, folders as their blocks, a file that vanishes meanwhile counted as nothing."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "file").write_bytes(b"x" * 100_000)
    assert 100_000 <= folder_bytes(tmp_path) <= 120_000
    told = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    assert resident_bytes() == pytest.approx(int(told.split()[1]) * 1024, rel=0.05)
