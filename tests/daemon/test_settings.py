"""Where values are from, and which of them a running daemon takes over."""

from __future__ import annotations

from pathlib import Path

import pytest

from moed.daemon.config import load_config, read_text
from moed.daemon.config_sources import Setting
from moed.daemon.errors import ConfigError
from moed.daemon.settings import Settings, explain

TEXT = '[node]\nport = 4800\n\n[log]\nlevel = "info"\n\n[[experts]]\nname = "mine"\ndomain = "c"\n'
LAYER = '[[layers]]\nname = "ffn.[0-1]"\nwidth = 8\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a configuration."""
    (tmp_path / "config.toml").write_text(TEXT)
    return tmp_path


def by_key(settings: list[Setting]) -> dict[str, Setting]:
    return {one.key: one for one in settings}


def test_each_value_says_where_it_is_from(home: Path) -> None:
    """Default, file with line, environment, command line: each above the one before it."""
    environ = {
        "MOED_NODE_PORT": "4900",
        "MOED_NODE_BOOTSTRAP": '["h:1"]',
        "MOED_LOG_LEVEL": "error",
        "MOED_SOCKET": "x",
    }
    config = load_config(home, {"log.level": "debug"}, environ=environ)
    text = read_text(home / "config.toml")
    found = by_key(explain(config, text, {"log.level": "on the command line"}, environ))
    assert (found["node.port"].value, found["node.port"].source) == (4900, "environment MOED_NODE_PORT")
    assert (found["node.bootstrap"].value, config.bootstrap) == (("h:1",), (("h", 1),))
    assert (found["log.level"].value, found["log.level"].source) == ("debug", "on the command line")
    assert (found["node.grace_s"].value, found["node.grace_s"].source) == (3.0, "default")
    assert found["experts[0].name"].source == "config.toml, line 8"
    (home / "config.toml").write_text(text + LAYER)
    layered = by_key(explain(load_config(home, environ={}), text + LAYER, environ={}))
    assert (layered["layers[0].width"].value, layered["layers[0].width"].source) == (8, "config.toml, line 12")
    (home / "config.toml").write_text(text)
    in_file = by_key(explain(load_config(home, environ={}), text, environ={}))
    assert (in_file["node.port"].value, in_file["node.port"].source) == (4800, "config.toml, line 2")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("MOED_NODE_PROT", "1", "did you mean MOED_NODE_PORT"),
        ("MOED_NODE_PORT", "0", "in the environment, MOED_NODE_PORT: node.port = 0 is not possible"),
        ("MOED_NODE_PORT", "many words", "node.port = 'many words' is not possible"),
        ("MOED_LIMITS_MEMORY_MIB", "1", "64 and more"),
    ],
)
def test_a_wrong_variable_is_named(home: Path, name: str, text: str, words: str) -> None:
    """As a wrong key in the file would be, with the variable in the file's place."""
    with pytest.raises(ConfigError, match=words):
        load_config(home, environ={name: text})


def test_a_reload_takes_over_what_is_live(home: Path) -> None:
    """Live keys count at once, the others are named and stay as they are, also in what is shown."""
    settings = Settings(load_config(home, environ={}), environ={})
    heard: list[str] = []
    settings.on_change.append(lambda config: heard.append(config.log.level))
    (home / "config.toml").write_text(
        TEXT.replace("4800", "4801").replace('"info"', '"error"').replace("mine", "m") + LAYER
    )
    done = settings.reload()
    assert (done.changed, done.waiting) == (("log.level",), ("node.port", "experts", "layers"))
    assert heard == ["error"]
    assert (settings.config.log.level, settings.config.node.port) == ("error", 4800)
    shown = by_key(settings.show())
    assert (shown["log.level"].value, shown["node.port"].value) == ("error", 4800)
    assert settings.reload().changed == ()
    assert heard == ["error"]


def test_a_reload_of_a_wrong_file_changes_nothing(home: Path) -> None:
    """The complaint is the same as at a start."""
    settings = Settings(load_config(home, environ={}), environ={})
    (home / "config.toml").write_text(TEXT.replace('"info"', '"loud"'))
    with pytest.raises(ConfigError, match="line 5"):
        settings.reload()
    assert settings.config.log.level == "info"
    assert by_key(settings.show())["log.level"].source == "config.toml, line 5"


WRONG_FILES = {
    "a home that nobody has": '[node]\nsocket = "~nobody-of-this-name/moed.sock"\n',
    "a zero byte in a path": '[node]\nsocket = "a\\u0000b"\n',
    "brackets in brackets": "a = " + "[" * 20_000,
    "a number of thousands of digits": f"[limits]\nmemory_mib = 1{'0' * 5000}\n",
    "a hexadecimal number of thousands of digits": f"[limits]\nmemory_mib = 0x{'f' * 5000}\n",
    "a limit that no float holds": f"[limits]\nupload_kib_per_s = 1{'0' * 400}\n",
    "a limit that no disk has": "[limits]\ndisk_mib = 9223372036854775807\n",
    "a time that is no number": "[node]\ngrace_s = nan\n",
    "no text": "\udcff",
}


@pytest.mark.parametrize("text", WRONG_FILES.values(), ids=WRONG_FILES)
def test_no_file_gets_more_than_a_complaint(home: Path, text: str) -> None:
    """Whatever stands in it: one line for the operator, and the settings go on as they were."""
    settings = Settings(load_config(home, environ={}), environ={})
    settings.change("log.level", "debug")
    before = settings.show()
    (home / "config.toml").write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError) as caught:
        settings.reload()
    assert len(str(caught.value)) < 500
    assert settings.show() == before


def test_what_is_set_stays_if_a_reload_fails_halfway(home: Path) -> None:
    """The file counts as read only once its values count."""
    settings = Settings(load_config(home, environ={}), environ={})
    settings.change("log.level", "debug")
    before = settings.show()

    def refuse(_config: object) -> None:
        raise ConfigError("this machine has no such limit", "set another")

    settings.on_change.append(refuse)
    (home / "config.toml").write_text(TEXT.replace("[log]", "grace_s = 9\n[log]"))
    with pytest.raises(ConfigError, match="no such limit"):
        settings.reload()
    assert [one.source for one in settings.show()] == [one.source for one in before]


def test_one_key_that_is_set_brings_no_other_along(home: Path) -> None:
    """A file that was edited, or spoilt, waits for its reload; a complaint says that the value was set live."""
    settings = Settings(load_config(home, environ={}), environ={})
    (home / "config.toml").write_text(TEXT.replace('"info"', '"error"').replace("[log]", "grace_s = 9\n[log]"))
    settings.change("limits.memory_mib", 4096)
    assert (settings.config.log.level, settings.config.node.grace_s) == ("info", 3.0)
    shown = by_key(settings.show())
    assert (shown["log.level"].value, shown["log.level"].source) == ("info", "config.toml, line 5")
    (home / "config.toml").write_text("no TOML")
    settings.change("limits.disk_mib", 4096)
    assert (settings.config.limits.memory_mib, settings.config.limits.disk_mib) == (4096, 4096)
    with pytest.raises(ConfigError, match=r"set while it runs: log\.level"):
        settings.change("log.level", "loud")
    (home / "config.toml").write_text(TEXT)
    settings.reload()
    assert settings.config.limits.memory_mib is None


def test_a_flag_stands_above_a_reload(home: Path) -> None:
    """What the command line said goes on counting."""
    settings = Settings(load_config(home, {"log.level": "debug"}, environ={}), {"log.level": "debug"}, environ={})
    (home / "config.toml").write_text(TEXT.replace('"info"', '"error"'))
    assert settings.reload().changed == ()
    assert settings.config.log.level == "debug"
