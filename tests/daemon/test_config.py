"""The configuration: what is written can be read, and what is wrong is named with its remedy."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moed.daemon.config import MAX_LAYERS, Config, layer_names, load_config, write_default
from moed.daemon.config_example import render_default, toml_value
from moed.daemon.config_sections import (
    LISTED_SECTIONS,
    PLAIN_SECTIONS,
    ExpertSection,
    LayerSection,
    NodeSection,
    Sections,
    TextDomain,
)
from moed.daemon.errors import EXIT_USAGE, ConfigError
from moed.models.corpora import DOMAINS


def read(home: Path, text: str, **options: Any) -> Config:
    """The configuration that ``text`` makes in ``home``."""
    (home / "config.toml").write_text(text)
    return load_config(home, **options)


def complaint(home: Path, text: str) -> str:
    """The one line that refuses ``text``."""
    with pytest.raises(ConfigError) as caught:
        read(home, text)
    assert caught.value.exit_code == EXIT_USAGE
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(home), "HOME")


def outcome(home: Path) -> str:
    """What becomes of the file in ``home``: it is read, or refused with these words."""
    try:
        load_config(home)
    except ConfigError as error:
        return str(error)
    return "read"


@pytest.mark.parametrize("role", ["follower", "miner", "validator"])
def test_what_init_writes_is_read_back(tmp_path: Path, role: str) -> None:
    """The written file gives the values that were asked for, and defaults for the rest."""
    write_default(tmp_path / "config.toml", role=role, port=4801, bootstrap=["127.0.0.1:4800", "[::1]:7"], domain="c")
    config = load_config(tmp_path)
    assert (config.node.role, config.node.port) == (role, 4801)
    assert config.bootstrap == (("127.0.0.1", 4800), ("::1", 7))
    assert [expert.domain for expert in config.experts] == (["c"] if role == "miner" else [])
    assert config.validator == Sections().validator
    assert config.key_path == tmp_path / "work.key"
    assert config.socket_path == tmp_path / "moed.sock"


def test_every_default_in_the_example_is_the_real_one(tmp_path: Path) -> None:
    """With each commented key made live the file means the same as an empty one, plus the example expert and layers."""
    live = re.sub(r"^#(?=\[|\w+ = )", "", render_default({}), flags=re.MULTILINE)
    config = read(tmp_path, live)
    assert config.experts == (ExpertSection(name="prose", domain="prose"),)
    assert config.layers == (LayerSection(name="ffn.[0-3].[0-7]", width=32),)
    for name, _ in PLAIN_SECTIONS:
        assert getattr(config, name) == getattr(Sections(), name)


def test_every_key_stands_in_the_example() -> None:
    """No section has a key that the written file does not explain."""
    text = render_default({})
    assert {name for name, _ in (*PLAIN_SECTIONS, *LISTED_SECTIONS)} == set(Sections.__struct_fields__)
    for _, section in (*PLAIN_SECTIONS, *LISTED_SECTIONS):
        for field in section.__struct_fields__:
            assert re.search(rf"^# .*\n#?{field} =", text, re.MULTILINE), field


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    """Writing twice refuses and changes nothing."""
    write_default(tmp_path / "config.toml")
    before = (tmp_path / "config.toml").read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        write_default(tmp_path / "config.toml", port=1)
    assert (tmp_path / "config.toml").read_bytes() == before


def test_the_known_domains_are_those_of_the_corpora() -> None:
    """The configuration allows exactly the text that models can learn."""
    assert get_args(TextDomain) == DOMAINS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[node]\nprot = 1", "line 2: unknown key node.prot (did you mean port?)"),
        ("nodes = 1", "line 1: unknown key nodes (did you mean node?)"),
        (
            '[[experts]]\nname = "a"\ndomain = "prose"\n[[experts]]\nname = "b"\nwidht = 3',
            "line 6: unknown key experts.widht (experts takes name, model, domain, files, options, "
            "train, training_share, exchange_rows_per_minute, max_rows, max_sequence_bytes)",
        ),
        ("[node]\n\nport = 0", "line 3: node.port = 0 is not possible (use 1 to 65535)"),
        ("node.port = 70000", "line 1: node.port = 70000 is not possible (use 1 to 65535)"),
        ('[node]\nport = "x"', "line 2: node.port = 'x' is not possible (use 1 to 65535)"),
        ("[node]\nport = true", "line 2: node.port = true is not possible (use 1 to 65535)"),
        (
            '[node]\nrole = "boss"',
            "line 2: node.role = 'boss' is not possible (use follower, miner or validator)",
        ),
        (
            '[node]\nbootstrap = ["example.org"]',
            "line 2: node.bootstrap = 'example.org' is not possible "
            '(use a list of "host:port", at most 64)',
        ),
        (
            '[node]\nlisten = "example.org"',
            "line 2: node.listen = 'example.org' is not possible (use one IPv4 or IPv6 address)",
        ),
        ("node = 3", "line 1: node is not a section (write [node] above its keys)"),
        ('[experts]\nname = "a"', "line 1: experts is not a section (write [[experts]] above its keys)"),
        ("[[experts]]\ntrain = true", "line 1: experts has no name (add: name = …)"),
        (
            '[[experts]]\nname = "a"',
            "line 1: the expert 'a' needs a domain or files, and not both "
            '(set domain = "prose" or files = ["my.txt"])',
        ),
        (
            '[[experts]]\nname = "a"\ndomain = "c"\n[[experts]]\nname = "a"\ndomain = "c"',
            "line 5: two experts are called 'a' (give each its own name)",
        ),
        (
            '[[experts]]\nname = "a"\ndomain = "c"\noptions = { width = [1] }',
            "line 4: experts.options = {'width': [1]} is not possible "
            "(use a table of numbers and words)",
        ),
        ('[node]\nrole = "miner"', "line 2: a miner needs an expert to serve (add a section [[experts]])"),
        ("[validator]\nexploration = 1.5", "line 2: validator.exploration = 1.5 is not possible (use 0 to 1)"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place_and_remedy(tmp_path: Path, text: str, expected: str) -> None:
    """File, line, key, value, what is allowed: one line, exit code 3."""
    assert complaint(tmp_path, text) == f"HOME/config.toml, {expected}"


def test_a_file_that_is_no_toml_is_named_with_the_place(tmp_path: Path) -> None:
    """The parser's own words say where."""
    assert complaint(tmp_path, "[log\n").startswith("HOME/config.toml is no TOML: Expected ']'")


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    """No file, a folder in its place, and bytes that are no text."""
    with pytest.raises(ConfigError, match="moed init --home"):
        load_config(tmp_path)
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path)
    (tmp_path / "config.toml").unlink()
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path)


def test_flags_stand_above_the_file(tmp_path: Path) -> None:
    """An override wins, and a bad one is blamed on the command line."""
    assert read(tmp_path, "[node]\nport = 5\n", overrides={"node.port": 6, "log.level": "debug"}).node.port == 6
    with pytest.raises(ConfigError, match=r"on the command line: node\.port = 70000"):
        load_config(tmp_path, {"node.port": 70000})


def test_a_long_socket_path_moves_to_the_runtime_folder(tmp_path: Path) -> None:
    """The kernel takes 107 bytes; two long homes get two sockets."""
    homes = [tmp_path / (letter * 110) for letter in "ab"]
    places = []
    for home in homes:
        home.mkdir()
        places.append(read(home, "", environ={"XDG_RUNTIME_DIR": "/run/user/7"}).socket_path)
    assert all(place.parent == Path("/run/user/7/moed") for place in places)
    assert places[0] != places[1]


def test_relative_text_files_lie_in_the_home(tmp_path: Path) -> None:
    """Files of the configuration do not depend on where the daemon was started."""
    config = read(tmp_path, '[[experts]]\nname = "a"\nfiles = ["my.txt", "/abs.txt"]')
    assert config.text_files(config.experts[0].files) == (tmp_path / "my.txt", Path("/abs.txt"))


toml_values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
some_keys = st.sampled_from([*Sections.__struct_fields__, *NodeSection.__struct_fields__, "name", "domain", "x", "a-b"])


@given(st.dictionaries(some_keys, st.dictionaries(some_keys, toml_values, max_size=3) | toml_values, max_size=4))
def test_any_toml_is_read_or_refused_in_one_line(tables: dict[str, Any]) -> None:
    """Whatever the file holds, the outcome is a configuration or a `ConfigError`, never another error."""
    text = "\n".join(f"{toml_value(key)} = {toml_value(value)}" for key, value in tables.items())
    assert tomllib.loads(text) == tables
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.toml").write_text(text)
        assert outcome(Path(folder)).count("\n") == 0


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Also what is no TOML at all."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.toml").write_text(text, "utf-8", errors="surrogateescape")
        assert outcome(Path(folder)).count("\n") == 0


def test_one_line_names_a_whole_grid_of_layers(tmp_path: Path) -> None:
    """A miner may serve layers alone; two of one name, or a section without a width, are refused."""
    grid = '[node]\nrole = "miner"\n[[layers]]\nname = "ffn.[2-3].[0-7]"\nwidth = 32\n'
    config = read(tmp_path, grid)
    names = layer_names(config.layers[0].name)
    assert len(names) == 16
    assert (names[0], names[-1]) == ("ffn.2.0", "ffn.3.7")
    assert layer_names("plain") == ["plain"]
    assert len(layer_names("x.[0-999999999].[0-999999999]")) == MAX_LAYERS
    assert "two are called 'ffn.3.1'" in complaint(tmp_path, grid + '[[layers]]\nname = "ffn.3.1"\nwidth = 32\n')
    assert "no width" in complaint(tmp_path, grid + '[[layers]]\nname = "y"\n')
