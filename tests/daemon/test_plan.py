"""`moed plan`: what fits is proven, and what does not is refused with the one setting that makes it fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from moed.daemon.cli import moed
from moed.daemon.config import Config, load_config
from moed.daemon.errors import ConfigError
from moed.daemon.home import initialise
from moed.daemon.memory_plan import MemoryPlan
from moed.models.device import CPU

MIB = 1 << 20


def configured(folder: Path, limit_mib: int, *sections: str) -> Config:
    """A miner's configuration with these sections of models."""
    text = f'[node]\nrole = "miner"\n[limits]\nmemory_mib = {limit_mib}\n' + "\n".join(sections)
    (folder / "config.toml").write_text(text)
    return load_config(folder)


def ngram(name: str, buckets: int, **keys: int | bool) -> str:
    """A text model of 3 KiB of weights a bucket."""
    lines = [f"{key} = {str(value).lower()}" for key, value in keys.items()]
    head = f'[[experts]]\nname = "{name}"\nmodel = "ngram"\ndomain = "prose"\noptions = {{ buckets = {buckets} }}\n'
    return head + "\n".join(lines)


QUIET = {"exchange_rows_per_minute": 0}


@pytest.mark.parametrize(
    ("limit_mib", "sections", "key"),
    [
        (300, [ngram("a", 4096, **QUIET)], None),
        (100, [ngram("a", 4096, **QUIET)], "experts[0].max_rows"),
        (100, [ngram("a", 64, max_rows=4, **QUIET), ngram("b", 4096, **QUIET)], "experts[1].max_rows"),
        (64, [ngram("a", 64, max_rows=1, max_sequence_bytes=65536, **QUIET)], "experts[0].max_sequence_bytes"),
        (110, [ngram("a", 4096, max_rows=8)], "experts[0].exchange_rows_per_minute"),
        (110, [ngram("a", 8192, max_rows=8)], "experts[0].train"),
        (64, [ngram("a", 16384, train=False)], "limits.memory_mib"),
        (200, ['[[layers]]\nname = "f.[0-3]"\nwidth = 512\nmax_rows = 8192\n'], "layers[0].max_rows"),
        (64, ['[[layers]]\nname = "f.[0-3]"\nwidth = 512\nmax_rows = 1\n'], "layers[0].learning_rate"),
    ],
)
def test_the_one_setting_that_is_named_makes_it_fit(
    tmp_path: Path, limit_mib: int, sections: list[str], key: str | None
) -> None:
    """Planned again with that setting, it fits; and one row more would not."""
    config = configured(tmp_path, limit_mib, *sections)
    plan = MemoryPlan(config, CPU, framework_bytes=4 * MIB)
    change = plan.change()
    assert plan.need().fits == (key is None)
    if change is None or key is None:
        assert change is None
        assert key is None
        return
    assert change.key == key
    place, _, name = key.rpartition(".")
    number = int(place.partition("[")[2].rstrip("]") or 0)
    if place == "limits":
        limit_mib = change.then
        mended = sections
    else:
        value = str(change.then).lower()
        lines = [line for line in sections[number].splitlines() if not line.startswith(f"{name} =")]
        mended = [*sections[:number], "\n".join([*lines, f"{name} = {value}"]), *sections[number + 1 :]]
    assert MemoryPlan(configured(tmp_path, limit_mib, *mended), CPU, framework_bytes=4 * MIB).need().fits
    if name in ("max_rows", "max_sequence_bytes"):
        assert not plan._need_with(number, name, change.then + 1).fits


def test_what_no_setting_can_mend_is_said_so(tmp_path: Path) -> None:
    """The framework alone is over the limit, and the machine has not as much either."""
    config = configured(tmp_path, 64, ngram("a", 64))
    plan = MemoryPlan(config, CPU, framework_bytes=1 << 50)
    assert not plan.need().fits
    assert plan.change() is None


def test_plan_proves_what_fits_and_refuses_what_does_not(tmp_path: Path) -> None:
    """On the command line: measured in processes of their own; with less memory, exit code 1 and the setting."""
    home = tmp_path / "home"
    initialise(home, role="miner", port=None, bootstrap=(), genesis_file=None, workloads=())
    sections = [ngram("a", 2048, max_rows=64, **QUIET), '[[layers]]\nname = "f.[0-1]"\nwidth = 512\n']
    configured(home, 4000, *sections)
    proven = CliRunner().invoke(moed, ["plan", "--home", str(home), "--json"])
    assert proven.exit_code == 0, proven.output
    found = json.loads(proven.stdout)
    assert found["fits"]
    assert [row["count"] for row in found["models"]] == [1, 2]
    assert all(row["error"] is None and abs(row["ratio"] - 1) < 0.15 for row in found["models"]), found
    limit_mib = found["need_bytes"] // MIB - 20
    configured(home, limit_mib, *sections)
    refused = CliRunner().invoke(moed, ["plan", "--home", str(home), "--no-proof"])
    assert refused.exit_code == 1, refused.output
    assert "experts[0].max_rows: 64 → " in refused.stderr


def test_a_start_refuses_what_plainly_cannot_fit(tmp_path: Path) -> None:
    """By sums over the models that were built, before anything is served; and one that is not to train does not."""
    from moed.daemon.roles import _open_expert, _require_memory

    for limit_mib, is_refused in ((1 << 20, False), (64, True)):
        config = configured(tmp_path, limit_mib, ngram("a", 4096, train=False))
        hosted = _open_expert(config.experts[0], config, CPU)
        assert not hosted.trains_itself
        if is_refused:
            with pytest.raises(ConfigError, match=r"memory_mib = 64: these models take at least \d+ MiB \(moed plan"):
                _require_memory(config, [hosted], CPU)
        else:
            _require_memory(config, [hosted], CPU)
