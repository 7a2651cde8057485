"""The Grafana dashboard asks for metrics that the daemon gives, and places its panels without overlap."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from moed.daemon.client import Client
from moed.daemon.control.metrics import ControlMetrics
from support.control_plane import daemon_thread

DASHBOARD = Path(__file__).resolve().parents[3] / "docs" / "grafana" / "moed.json"
LATE = {
    "moed_log_lines_left_out",  # no sample before a line was left out, and none of experts before there is one
    "moed_expert_queue_seconds",
    "moed_expert_rows_served",
    "moed_expert_training_steps",
}
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
        } | LATE


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


def test_late_metrics_are_of_the_daemon() -> None:
    """What has no sample at first is registered all the same."""
    known = {family.name for family in ControlMetrics().registry.collect()}
    assert known >= LATE


def test_an_experts_work_is_shown() -> None:
    """Waiting time in seconds, rows and steps, by the expert's name; what is not known is left out."""
    metrics = ControlMetrics()
    metrics.take_experts([{"name": "prose", "queue_delay_ms": 250.0, "rows_served": 7}, {"name": "c"}])
    text = metrics.render().decode()
    assert 'moed_expert_queue_seconds{expert="prose"} 0.25' in text
    assert 'moed_expert_rows_served{expert="prose"} 7.0' in text
    assert 'expert="c"' not in text
