"""The published findings of the experiments with models: what they claim follows from their own numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from moed.daemon import model_plots, model_tables
from moed.daemon.experiment_verbs import MODEL_VERBS, write_json
from moed.models.experiments.distillation import steps_to
from moed.models.experiments.members import rank_correlation
from moed.models.experiments.mixture import TARGETS, verdict

FOUND = Path(__file__).parents[2] / "docs" / "experiments"
NAMES = ("mixture", "specialist", "distillation")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOUND / f"{name}.json").read_text())
    return found


def test_findings_show_as_tables_and_pictures(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every target is named with whether it held, and the picture can be drawn anew."""
    pytest.importorskip("matplotlib")
    from moed.daemon import tables

    found = load(name)
    tables.show(getattr(model_tables, f"{name}_tables")(found))
    printed = capsys.readouterr().out
    for target, held in found["held"].items():
        line = next(line for line in reversed(printed.splitlines()) if line.startswith(target.replace("_", " ")))
        assert line.endswith("yes" if held else "NO")
    getattr(model_plots, f"plot_{name}")(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_mixture_keeps_what_it_claims() -> None:
    """The verdicts are those of the numbers beside them, and the losses of the mixture are within the targets."""
    found = load("mixture")
    assert found["held"] == verdict(found["specialists"], found["overlapping"])
    losses = found["losses"]
    assert losses["mixture"] <= (1 - TARGETS["under_best_single"]) * losses["best_single"]
    assert losses["mixture"] <= (1 - TARGETS["under_uniform"]) * losses["uniform_average"]
    assert losses["mixture"] <= (1 + TARGETS["over_oracle"]) * losses["oracle"]
    for cast in ("specialists", "overlapping"):
        worth = found[cast]["shapley"], found[cast]["leave_one_out"]
        assert found[cast]["rank_correlation"] == pytest.approx(rank_correlation(*(list(w.values()) for w in worth)))


def test_the_student_is_as_fast_as_it_claims() -> None:
    """Steps to the lone student's best loss, read from the curves again."""
    found = load("distillation")
    alone = found["students"]["alone"]["curve"]
    best = min(loss for _, loss in alone)
    for student, share in found["steps_share"].items():
        steps, own = steps_to(found["students"][student]["curve"], best), steps_to(alone, best)
        assert steps is not None
        assert own is not None
        assert share == pytest.approx(steps / own)
        assert share <= 0.6


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
    refused = CliRunner().invoke(MODEL_VERBS[0], ["--json", str(tmp_path / "x.png")])
    assert refused.exit_code != 0
    write_json(tmp_path / "deep" / "x.json", {"a": 1})
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"a": 1}
