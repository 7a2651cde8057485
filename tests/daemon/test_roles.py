"""What a role's configuration asks for and cannot have is said before the node takes part, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from moed.daemon.chain import Chain
from moed.daemon.config import load_config
from moed.daemon.config_example import render_default
from moed.daemon.config_sections import ExpertSection
from moed.daemon.discovery import Discovery
from moed.daemon.errors import ConfigError
from moed.daemon.model_specs import training_of
from moed.daemon.network.dht import Dht
from moed.daemon.network.peers import Peers
from moed.daemon.node import now_ms
from moed.daemon.roles import Surroundings, take_role
from moed.daemon.store import Store
from moed.models.training import TrainingConfig
from support.chains import key, make_genesis

GENESIS = make_genesis((60,))
NOTES = [f"note-{number}.txt" for number in range(60)]
MINER = f"""
[[experts]]
name = "own"
files = {NOTES}
"""


def take(text: str, home: Path) -> None:
    """The role that the configuration ``text`` asks for, in ``home``."""
    (home / "config.toml").write_text(text)
    config = load_config(home, environ={})
    peers = Peers(key(1), GENESIS.network_id)
    discovery = Discovery(Dht(key(1), GENESIS.network_id), peers, key(1).node_id)
    with Store(home / "chain.db", GENESIS) as store:
        chain = Chain(store.load_head(), store, key(1), None, now_ms=now_ms)
        take_role(Surroundings(config, key(1), chain, peers, discovery))


@pytest.mark.parametrize(
    ("role", "values", "more", "words"),
    [
        ("validator", {"sequence_bytes": 1 << 15}, "", "32769 bytes in a row"),
        ("miner", {}, MINER, "bytes in a row"),
    ],
    ids=["rows longer than the text", "text shorter than a row"],
)
def test_text_that_is_too_short_is_named(
    role: str, values: dict[str, int], more: str, words: str, tmp_path: Path
) -> None:
    """Not when the first row is drawn, in the middle of the work."""
    for name in NOTES:
        (tmp_path / name).write_text(f"{name} is a short note and has one line\n")
    with pytest.raises(ConfigError, match=words):
        take(render_default({"role": role, **values}) + more, tmp_path)


@pytest.mark.parametrize(
    ("role", "file", "event"),
    [("validator", "gate.ckpt", "validator.set_aside"), ("miner", "experts/small.ckpt", "expert.set_aside")],
)
def test_what_was_learned_and_is_spoilt_is_told(role: str, file: str, event: str, tmp_path: Path) -> None:
    """The node starts anew without it, and says where the file is now."""
    small = (
        '\n[[experts]]\nname = "small"\ndomain = "tables"\noptions = { embedding = 8, width = 8, ngram_buckets = 64 }\n'
    )
    (tmp_path / "experts").mkdir()
    (tmp_path / file).write_bytes(b"cut short")
    with structlog.testing.capture_logs() as logs:
        take(render_default({"role": role}) + (small if role == "miner" else ""), tmp_path)
    assert [one["path"] for one in logs if one["event"] == event] == [str(tmp_path / file)]
    assert (tmp_path / f"{file}.corrupt").read_bytes() == b"cut short"


TRANSFORMER = """
[[experts]]
name = "own"
model = "transformer"
domain = "tables"
options = { width = 8, layers = 1, heads = 2, context_bytes = 32 }
exchange_rows_per_minute = 0
"""


def test_an_expert_that_does_not_answer_what_it_takes_is_named(tmp_path: Path) -> None:
    """Whoever believes what it says of itself would be refused; one that takes no more than it can is served."""
    for longest in (33, 32):
        config = render_default({"role": "miner"}) + TRANSFORMER + f"max_sequence_bytes = {longest}\n"
        if longest == 32:
            take(config, tmp_path)
            continue
        with pytest.raises(ConfigError, match="rows of 33 bytes exceed this model's 32"):
            take(config, tmp_path)


def test_an_expert_trains_on_no_longer_rows_than_it_takes() -> None:
    """Else a model of so few bytes would fail at its first step."""
    assert training_of(ExpertSection(name="own", max_sequence_bytes=32)).length == 32
    assert training_of(ExpertSection(name="own")) == TrainingConfig()
