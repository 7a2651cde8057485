"""What a bug report keeps to itself."""

from __future__ import annotations

import json
import stat
import tarfile
from pathlib import Path

import pytest

from moed.daemon.bug_report import Redaction, make_report, own_hosts
from moed.daemon.client import Client
from moed.daemon.errors import DaemonUnreachable
from support.control_plane import daemon_thread

CONFIG = {
    "settings": [
        {"key": "node.advertise", "value": "Attic"},
        {"key": "node.bootstrap", "value": ["cellar:4700", "[2001:db8::1]:4700", "127.0.0.1:4700"]},
        {"key": "node.port", "value": 4700},
    ]
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('"::ffff:203.0.113.7"', '"host-1"'),
        ('"[::FFFF:203.0.113.7]:4700"', '"[host-1]:4700"'),
        ('"Node.Example.ORG:4700" "node.example.org:4701"', '"host-1:4700" "host-1:4701"'),
        ('"2001:DB8::7" "2001:db8::7"', '"host-1" "host-1"'),
        ('{"node.advertise": "Attic", "seen": "attic:4701"}', '{"node.advertise": "host-1", "seen": "host-1:4701"}'),
        ('"cellar:4700" of cellar-floor', '"host-1:4700" of cellar-floor'),
        ('"home": "/home/jos\u00e9/.moed/config.toml"', '"home": "/home/USER/.moed/config.toml"'),
        ("cannot read /home/ann: denied", "cannot read /home/USER: denied"),
        ('"/srv/ben/x" of ben', '"/srv/USER/x" of ben'),
        ('"at": "12:30:05", "to": "127.0.0.1:4700"', '"at": "12:30:05", "to": "127.0.0.1:4700"'),
    ],
)
def test_people_and_places_are_hidden(text: str, shown: str) -> None:
    """Addresses in all their forms, hosts that only the configuration knows as such, and homes of anybody."""
    assert Redaction("ben", own_hosts(CONFIG)).apply(text) == shown


def test_a_refused_configuration_names_no_hosts() -> None:
    """Its place in the report is taken by the refusal."""
    assert own_hosts({"refused": "forbidden", "message": "no"}) == set()


def test_a_report_is_its_owners_alone(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask, all of it readable JSON."""
    with daemon_thread(tmp_path / "moed.sock"):
        made = make_report(Client(tmp_path / "moed.sock", timeout_s=20), tmp_path / "report.tar.gz")
    assert stat.S_IMODE((tmp_path / "report.tar.gz").stat().st_mode) == 0o600
    with tarfile.open(made["file"]) as bundle:
        config = bundle.extractfile("moed-bugreport/config.json")
        assert config is not None
        assert json.loads(config.read())["settings"]


def test_no_daemon_leaves_no_file(tmp_path: Path) -> None:
    """A bundle is made once everything that it holds is there."""
    with pytest.raises(DaemonUnreachable):
        make_report(Client(tmp_path / "moed.sock"), tmp_path / "report.tar.gz")
    assert list(tmp_path.iterdir()) == []
