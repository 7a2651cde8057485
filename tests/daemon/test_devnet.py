"""Making networks on this machine: shares of stake, ports, and folders that are not ours to delete."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from moed.daemon.devnet import STAKE, Devnet, stakes_of
from moed.daemon.devnet_verbs import devnet
from moed.daemon.errors import ConfigError
from moed.daemon.ports import free_ports


def test_a_folder_of_somebody_elses_is_not_deleted(tmp_path: Path) -> None:
    """A folder with files and no network in it is refused by name, and its files stay."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="no network"):
        Devnet(tmp_path).create(validators=1, miners=0)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_old_network_makes_room_for_a_new_one(tmp_path: Path) -> None:
    """Homes of the last time, and what an interrupted start left, are replaced; an empty folder is taken."""
    network = Devnet(tmp_path)
    network.create(validators=2, miners=0)
    key = network.nodes[0].home.key.read_bytes()
    network.nodes[1].home.genesis.unlink()
    again = Devnet(tmp_path)
    again.create(validators=1, miners=0)
    assert [node.name for node in Devnet(tmp_path).load()] == ["validator-0"]
    assert again.nodes[0].home.key.read_bytes() != key
    assert not (tmp_path / "validator-1").exists()


def test_down_says_that_nothing_runs(tmp_path: Path) -> None:
    """A second `moed devnet down` claims no stop."""
    Devnet(tmp_path).create(validators=1, miners=0)
    told = CliRunner().invoke(devnet, ["down", "--folder", str(tmp_path)])
    assert (told.exit_code, told.output) == (0, f"no network runs in {tmp_path}\n")


@pytest.mark.parametrize("validators", [1, 2, 3, 7])
def test_stakes_are_unequal_and_sum_to_the_whole(validators: int) -> None:
    """Two validators get 60 and 40 per cent; more of them fall in equal steps."""
    stakes = stakes_of(validators)
    assert STAKE - validators < sum(stakes) <= STAKE
    assert len(set(stakes)) == validators
    if validators == 2:
        assert stakes == [STAKE * 6 // 10, STAKE * 4 // 10]


def test_free_ports_take_both_kinds_of_socket() -> None:
    """Each number is free for TCP and UDP, and none is given twice."""
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as one:
                one.bind(("127.0.0.1", port))
