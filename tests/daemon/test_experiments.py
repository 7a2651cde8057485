"""Tests of `moed experiment`: published retention again, the losing corner, blocks, copiers, pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from moed.daemon.cli import main
from moed.daemon.errors import EXIT_USAGE
from moed.daemon.experiments import (
    PUBLISHED,
    STAKES,
    PublishedRow,
    collusion_tables,
    ledger_point,
    losing_corner,
    retention_line,
    retention_row,
)

SEEDS = range(20)


@pytest.mark.parametrize("row", PUBLISHED, ids=[f"{row.rules}-{row.stake}" for row in PUBLISHED])
def test_published_retention_comes_out_of_other_draws(row: PublishedRow) -> None:
    """The mean of twenty seeds is within two deviations of the published draws; 0.001 where draws do not matter."""
    found = retention_row(row, SEEDS)
    assert abs(found["utility"] - row.mean) <= row.bound, found
    assert found["holds"]


def test_the_base_row_is_where_it_should_be() -> None:
    """Sigma .4, kappa .5, beta 1, xi .5, stake .60: .736 give or take .004."""
    (base,) = (row for row in PUBLISHED if (row.stake, row.curve) == (0.60, 0.7329) and row.rules.xi == 0.5)
    assert retention_row(base, SEEDS)["utility"] == pytest.approx(0.736, abs=0.004)


def test_attackers_win_in_the_losing_corner_and_not_right_of_the_line() -> None:
    """40 % of the stake and 30 % of the useful work are enough, in every draw: said, not hidden."""
    corner = losing_corner(SEEDS)
    assert corner["attackers_win_in"] == len(SEEDS)
    assert corner["honest_part"] < 0.58


def test_a_line_ends_where_its_row_says() -> None:
    """The 60 % line bends back at a cabal weight of about .8, and its rightmost point is the published one."""
    line = retention_line(0.6, range(2))
    rightmost = max(line)
    assert rightmost[0] == pytest.approx(0.736, abs=0.004)
    assert 0.7 < rightmost[1] < 0.9


def test_the_ledger_pays_what_the_game_says() -> None:
    """Through registrations, hidden weights, signed blocks on disk and their check: the same part of the emission."""
    point = ledger_point()
    assert point["honest_part"] == pytest.approx(point["honest_part_of_epoch"], abs=2e-6)
    assert point["honest_part"] < 0.6
    assert point["height"] == 8


def test_the_command_writes_numbers_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same seeds give the same file twice."""
    pytest.importorskip("matplotlib", reason="pictures need the extra `plots`")
    for name in ("one", "two"):
        files = ["--json", str(tmp_path / f"{name}.json"), "--png", str(tmp_path / "new" / f"{name}.png")]
        main(["experiment", "weight-copy", "--seeds", "1", *files])
    assert "seeds 0 to 0" in capsys.readouterr().err
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    picture = (tmp_path / "new" / "one.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture == (tmp_path / "new" / "two.png").read_bytes()


def test_the_map_can_be_drawn_from_its_numbers(tmp_path: Path) -> None:
    """The committed numbers are all that the picture and the tables need; every stake has its line."""
    found: dict[str, Any] = json.loads(
        (Path(__file__).parents[2] / "docs" / "experiments" / "collusion.json").read_text()
    )
    assert list(found["lines"]) == [str(stake) for stake in STAKES]
    assert all(row["holds"] for row in found["rows"])
    retention, corner = collusion_tables(found)
    assert len(retention.rows) == len(PUBLISHED)
    assert ["draws in which the attackers win", "20 of 20"] in corner.rows
    pytest.importorskip("matplotlib", reason="pictures need the extra `plots`")
    from moed.daemon.experiment_plots import plot_collusion

    plot_collusion(found, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_matplotlib_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before minutes of play: wrong usage, with the name of the extra."""
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(SystemExit) as leave:
        main(["experiment", "weight-copy", "--png", str(tmp_path / "map.png")])
    assert leave.value.code == EXIT_USAGE
    captured = capsys.readouterr()
    assert "moed[plots]" in captured.err
    assert captured.out == ""
