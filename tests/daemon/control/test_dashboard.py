"""The Grafana dashboard asks for metrics that the daemon gives, and places its panels without overlap."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from moed.daemon.client import Client
from support.control_plane import daemon_thread

DASHBOARD = Path(__file__).resolve().parents[3] / "docs" / "grafana" / "moed.json"
METRIC = re.compile(r"\b((?:moed|process)_[a-z_]+)\b")


@pytest.fixture
def given(tmp_path: Path) -> Iterator[set[str]]:
    """The names of every sample that a daemon gives."""
    with daemon_thread(tmp_path / "moed.sock"):
        client = Client(tmp_path / "moed.sock")
        client.get("/v1/status")
        yield {
            sample.name
            for family in text_string_to_metric_families(client.get_text("/v1/metrics"))
            for sample in family.samples
        } | {"moed_log_lines_left_out"}  # it has no sample before a line was left out


def test_every_metric_on_the_dashboard_is_there(given: set[str]) -> None:
    """In every expression of every panel."""
    dashboard = json.loads(DASHBOARD.read_text())
    asked = {
        name for panel in dashboard["panels"] for target in panel["targets"] for name in METRIC.findall(target["expr"])
    }
    assert "moed_chain_height" in asked
    assert asked - given == set()


def test_panels_do_not_overlap() -> None:
    """Each cell of the 24 columns belongs to one panel at most."""
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
