"""Tests of `moed epoch`: a published case from the shell, and one clear line for a file that is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moed.daemon.cli import main
from moed.daemon.errors import EXIT_USAGE

Reader = Callable[[str], Any]


def case(**fields: Any) -> dict[str, Any]:
    """Two validators that agree on one miner."""
    given: dict[str, Any] = {
        "n": 3,
        "block": 100,
        "last_tempo_block": 64,
        "emission": 1_000_000,
        "stake": [60, 40, 0],
        "validator_permit": [True, True, False],
        "last_update": [90, 90, 0],
        "block_at_registration": [0, 0, 0],
        "weights_u16": [[[2, 65_535]], [[2, 65_535]], []],
        "bonds_u16": [[], [], []],
    }
    return given | fields


def run(path: Path, *options: str) -> int:
    """The exit code of ``moed epoch --input path``."""
    try:
        main(["epoch", "--input", str(path), *options])
    except SystemExit as leave:
        return int(leave.code or 0)
    return 0


def test_a_published_case_gives_its_expected_object(
    published_vectors: Reader, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed for each random case's input is what the vector expects, key by key."""
    for number, one in enumerate(published_vectors("yuma/reference_math_random.json")["cases"][:5]):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(one["input"]))
        assert run(path, "--json") == 0
        printed = json.loads(capsys.readouterr().out)
        assert {name: printed[name] for name in one["expected"]} == one["expected"]


def test_a_sequence_gives_each_epoch(
    published_vectors: Reader, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole epoch_sequence file, with the bonds carried over."""
    vector = published_vectors("yuma/bonds.json")
    path = tmp_path / "bonds.json"
    path.write_text(json.dumps(vector))
    assert run(path, "--json") == 0
    epochs = json.loads(capsys.readouterr().out)["epochs"]
    assert len(epochs) == len(vector["epochs"])
    for step, printed in zip(vector["epochs"], epochs, strict=True):
        for row, column, bond in step.get("expected", {}).get("bonds_u16_points", []):
            assert dict(map(tuple, printed["stored_bonds_u16"][row])).get(column, 0) == bond


def test_people_get_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half goes to the one miner, half to the validators by stake, less what rounding down leaves."""
    path = tmp_path / "case.json"
    path.write_text(json.dumps(case()))
    assert run(path) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["Epoch", "at", "block", "100"]
    assert [line[-1] for line in lines[2:]] == ["300000", "199999", "500000"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("not json", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "holds no object"),
        ("{}", "`n`"),
        (json.dumps(case(stake=[1, 2])), "stake"),
        (json.dumps(case(stake=[1, 2, 1.5])), "stake"),
        (json.dumps(case(stake=[1, 2, 10**30])), "stake"),
        (json.dumps(case(weights_u16=[[[9, 1]], [], []])), "weights_u16"),
        (json.dumps(case(colour="red")), "colour"),
        (json.dumps(case(n=True)), "bool"),
        (json.dumps({"params": {}, "initial": {}, "epochs": [{}]}), "n among the params"),
        (json.dumps({"params": {"n": 3}, "initial": {}, "epochs": [{"block": "x", "tempo": 3}]}), "block"),
        (json.dumps({"epochs": 1}), "sequence of epochs"),
    ],
)
def test_a_bad_file_is_wrong_usage_in_one_line(
    content: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3 and one line that names the file and what is wrong with it."""
    path = tmp_path / "case.json"
    path.write_text(content)
    assert run(path, "--json") == EXIT_USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert says in line
    assert str(path) in line


def test_a_missing_file_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The path is named."""
    assert run(tmp_path / "none.json") == EXIT_USAGE
    assert "none.json" in capsys.readouterr().err
