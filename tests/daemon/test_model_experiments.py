"""The published findings of the experiments with models: what they claim follows from their own numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from moed.daemon import model_plots, model_tables
from moed.daemon.errors import ConfigError
from moed.daemon.experiment_page import write_page
from moed.daemon.experiment_verbs import MODEL_VERBS, write_json
from moed.daemon.parallel_plays import play_all
from moed.daemon.tables import Table
from moed.models.experiments import numbers
from moed.models.experiments.distillation import steps_to
from moed.models.experiments.members import rank_correlation
from moed.models.experiments.mixture import TARGETS, verdict
from moed.models.experiments.seeds import over_seeds

FOUND = Path(__file__).parents[2] / "docs" / "experiments"
NAMES = ("mixture", "specialist", "distillation")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(name: str) -> dict[str, Any]:
    path = FOUND / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no findings yet: moed experiment {name} --json docs/experiments/{name}.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_findings_show_as_tables_pictures_and_pages(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every target is named with whether it held, the picture can be drawn anew, and the page has these numbers."""
    pytest.importorskip("matplotlib")
    from moed.daemon import tables

    found = load(name)
    shown = getattr(model_tables, f"{name}_tables")(found)
    tables.show(shown)
    printed = capsys.readouterr().out
    for target, held in found["held"].items():
        line = next(line for line in reversed(printed.splitlines()) if line.startswith(target.replace("_", " ")))
        assert line.endswith("yes" if held else "NO")
        assert held == all(run["held"][target] for run in found["runs"])
    getattr(model_plots, f"plot_{name}")(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    page = (FOUND / f"{name}.md").read_text()
    (tmp_path / "page.md").write_text(page)
    write_page(tmp_path / "page.md", name, shown)
    assert (tmp_path / "page.md").read_text() == page


def test_spread_is_that_of_the_runs(name: str) -> None:
    """Mean, deviation and range are those of the numbers read again from each run."""
    found = load(name)
    again = over_seeds(found["runs"], [getattr(numbers, f"{name}_numbers")(run) for run in found["runs"]])
    assert again == found
    for one in found["spread"].values():
        assert one["min"] <= one["mean"] + 1e-9
        assert one["mean"] <= one["max"] + 1e-9
        assert len(one["values"]) == len(found["seeds"])


def test_the_mixture_keeps_what_it_claims() -> None:
    """The verdicts are those of the numbers beside them, and the losses of the mixture are within the targets."""
    for run in load("mixture")["runs"]:
        assert run["held"] == verdict(run["specialists"], run["overlapping"])
        losses = run["losses"]
        assert losses["mixture"] <= (1 - TARGETS["under_best_single"]) * losses["best_single"]
        assert losses["mixture"] <= (1 - TARGETS["under_uniform"]) * losses["uniform_average"]
        assert losses["mixture"] <= (1 + TARGETS["over_oracle"]) * losses["oracle"]
        for cast in ("specialists", "overlapping"):
            worth = run[cast]["shapley"], run[cast]["leave_one_out"]
            assert run[cast]["rank_correlation"] == pytest.approx(rank_correlation(*(list(w.values()) for w in worth)))
        for domain, raised in run["specialists"]["raised"].items():
            assert raised["share"] == pytest.approx(run["share"][domain][domain], abs=1e-4)
            # a share below the target costs something or saves something, but never much
            assert raised["loss_at_target"] == pytest.approx(raised["loss"], rel=0.03)


def test_the_student_is_as_fast_as_it_claims() -> None:
    """Steps to the lone student's best loss, read from the curves again."""
    for run in load("distillation")["runs"]:
        alone = run["students"]["alone"]["curve"]
        best = min(loss for _, loss in alone)
        for student, share in run["steps_share"].items():
            steps, own = steps_to(run["students"][student]["curve"], best), steps_to(alone, best)
            assert steps is not None
            assert own is not None
            assert share == pytest.approx(steps / own)
            assert share <= 0.6


def test_a_page_keeps_its_prose(tmp_path: Path) -> None:
    """Only what stands between the marks is written anew; a page without marks is refused, a new one begun."""
    page, table = tmp_path / "x.md", Table("Losses", ("who", ">bits"), [["a|b", "1.5"]])
    write_page(page, "x", [table])
    page.write_text(page.read_text().replace("# x", "# About x") + "and what it means\n")
    write_page(page, "x", [replace(table, rows=[["c", "2.5"]])])
    text = page.read_text()
    assert text.startswith("# About x\n\n    moed experiment x --json x.json")
    assert text.endswith("and what it means\n")
    assert "| who | bits |\n| --- | --: |\n| c | 2.5 |" in text
    assert "1.5" not in text
    page.write_text("no place")
    with pytest.raises(ConfigError, match="no place for the numbers"):
        write_page(page, "x", [table])


def test_parts_are_played_in_processes_of_one_thread_and_keep_their_order() -> None:
    """Whoever ends first, results come in the order of the parts."""
    parts: list[Callable[[], int]] = [partial(pow, 2, 3), torch.get_num_threads, partial(pow, 3, 2)]
    assert play_all(parts) == [8, 1, 9]


def test_ranks_with_ties_are_averaged() -> None:
    """Spearman's rho of a few lists whose value is known."""
    assert rank_correlation([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(0.8660254)


def test_the_verbs_say_what_they_play(tmp_path: Path) -> None:
    """Each has help with an example, and numbers are not written over the picture."""
    assert [verb.name for verb in MODEL_VERBS] == list(NAMES)
    for verb in MODEL_VERBS:
        shown = CliRunner().invoke(verb, ["--help"])
        assert f"moed experiment {verb.name} --json" in shown.output
    assert "--seeds" in shown.output
    refused = CliRunner().invoke(MODEL_VERBS[0], ["--json", str(tmp_path / "x.png")])
    assert refused.exit_code != 0
    write_json(tmp_path / "deep" / "x.json", {"a": 1})
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"a": 1}
