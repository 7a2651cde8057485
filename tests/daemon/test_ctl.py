"""`moectl` as a process: its verbs in JSON and in tables, its exit codes, how little it loads."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path

import click
import msgspec
import pytest
import structlog
from rich.console import Console

from moed.consensus.params import CREDIT
from moed.daemon import cli, ctl, tables, top_view
from moed.daemon.client import Client
from moed.daemon.control.api import Route
from moed.daemon.control.routes import ROUTES
from moed.daemon.errors import DaemonUnreachable
from moed.daemon.logs import MAX_EVENTS
from support.control_plane import daemon_thread
from support.dht_nodes import identity

SOURCE = Path(__file__).resolve().parents[2] / "src"
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("MOED_SOCKET", "XDG_RUNTIME_DIR")},
    "PYTHONPATH": str(SOURCE),
}


COMMAND = (sys.executable, "-m", "moed.daemon.ctl", "--home")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a daemon that answers."""
    folder = tmp_path_factory.mktemp("home")
    with daemon_thread(folder / "moed.sock"):
        yield folder


def moectl(*arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `moectl` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "moed.daemon.ctl", *arguments],
        input=stdin, capture_output=True, text=True, timeout=30, env=ENVIRONMENT | environ,
    )  # fmt: skip


@contextmanager
def _answering_once(path: Path, reply: bytes) -> Iterator[None]:
    """A socket that gives the first who asks this reply, and closes."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        yield
        thread.join(10)


VERBS: dict[str, tuple[str, ...]] = {
    "status": (),
    "peers": (),
    "experts": (),
    "rankings": (),
    "chain": ("--limit", "2"),
    "complete": ("The import sta", "--max-bytes", "4"),
    "losses": (),
    "reward": ("2",),
    "get": ("peer:" + identity(1).node_id.hex(),),
    "table": (),
    "lookup": (identity(1).node_id.hex(),),
    "doctor": (),
    "resources": (),
    "sql": ("select height, hash from blocks",),
    "config": ("show",),
}
GROUPS = {"reward": ("why",), "get": ("dht",), "table": ("dht",), "lookup": ("dht",)}
"""Verbs that stand under another one."""


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_prints_the_answer_as_json(home: Path, verb: str) -> None:
    """With --json: the daemon's own answer, in the shape that the API publishes."""
    done = moectl("--home", str(home), *GROUPS.get(verb, ()), verb, *VERBS[verb], "--json")
    assert (done.returncode, done.stderr) == (0, "")
    route: Route = next(route for route in ROUTES.values() if route.name == "_".join((*GROUPS.get(verb, ()), verb)))
    msgspec.convert(json.loads(done.stdout), route.answer, strict=True)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("status", ["node        ", "role        validator, uid 0", "chain       height 5", "ready       yes"]),
        ("peers", ["1 peer\n", "NODE        UID  ROLES      ADDRESS         DIALLED", "127.0.0.1:4700", "0.2 ms"]),
        ("experts", ["2 experts", "prose", "python"]),
        ("rankings", ["Miners after epoch 0 (height 5)", "BY 0", "Validators", "%"]),
        ("chain", ["height      5", "HEIGHT", "TXS"]),
        ("losses", ["BITS PER BYTE", "best single expert"]),
        ("get", ["1 record", "answered by  1 of 1 nodes asked", "miner"]),
        ("table", ["contacts  1", "SHARED BITS", "127.0.0.1:"]),
        ("lookup", ["HOP", "ANSWER", "127.0.0.1:", "Nearest nodes"]),
        ("doctor", ["DHT contacts          1", "too few could be asked", "full node"]),
        ("resources", ["WHAT", "memory", "MiB", "disk free"]),
        ("sql", ["5 rows", "HEIGHT", "HASH"]),
        ("config", ["node.port", "4811", "config.toml, line", "log.level", "default"]),
        ("reward", ["uid 2 in epoch 1 (height 100)", "Rated by", "PAYMENT WITHOUT", "75.0 %"]),
    ],
)  # fmt: skip
def test_people_get_plain_tables_in_a_pipe(home: Path, verb: str, words: list[str]) -> None:
    """Aligned, with units and short ids; no colours, no control characters."""
    done = moectl("--home", str(home), *GROUPS.get(verb, ()), verb, *VERBS[verb])
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout
    assert "\x1b" not in done.stdout


def test_a_completion_is_printed_as_text(home: Path) -> None:
    """The same letters as in the JSON answer; a dash reads the prompt from standard input."""
    as_json = json.loads(moectl("--home", str(home), "complete", "The import sta", "--max-bytes", "4", "--json").stdout)
    plain = moectl("--home", str(home), "complete", "The import sta", "--max-bytes", "4")
    from_stdin = moectl("--home", str(home), "complete", "-", "--max-bytes", "4", stdin="The import sta")
    assert plain.stdout == from_stdin.stdout == as_json["text"] + "\n"


def test_ids_are_whole_where_they_are_asked_for(home: Path) -> None:
    """-o wide shows what --json does, in the same table."""
    node_id = json.loads(moectl("--home", str(home), "peers", "-o", "json").stdout)[0]["node_id"]
    assert node_id in moectl("--home", str(home), "peers", "-o", "wide").stdout
    assert node_id not in moectl("--home", str(home), "peers").stdout


def test_events_are_followed_and_filtered(home: Path) -> None:
    """Old ones with their numbers, by name; from a number on; as JSON one object a line."""
    for number in range(3):
        structlog.get_logger().info("test.happened", number=number)
    told = moectl("--home", str(home), "events", "--filter", "test.*", "--json").stdout.splitlines()
    assert [json.loads(line)["number"] for line in told] == [0, 1, 2]
    since = str(json.loads(told[0])["sequence"])
    plain = moectl("--home", str(home), "events", "--since", since, "--filter", "test.*", "-o", "wide").stdout
    assert [line.rpartition("=")[2] for line in plain.splitlines()] == ["1", "2"]


@pytest.mark.parametrize("verb", ["logs", "events"])
def test_all_since_a_number_is_printed(tmp_path: Path, verb: str) -> None:
    """More than one answer of the daemon holds, each once and in order, and what is gone is said to be."""
    with daemon_thread(tmp_path / "moed.sock") as node:
        ring = node.logs.ring if verb == "logs" else node.logs.events
        first = ring.last
        for number in range(2100):
            ring.append(20, {"event": "test.many", "level": "info", "number": number})
        found = moectl("--home", str(tmp_path), verb, "--since", str(first), "--json")
        told = [json.loads(line)["number"] for line in found.stdout.splitlines()]
        assert told == list(range(2100 - len(told), 2100))
        if verb == "logs":
            assert (len(told), found.stderr) == (2100, "")
        else:
            assert found.stderr == f"moectl: {2100 - len(told)} events are gone from the daemon's memory\n"
            assert len(told) == MAX_EVENTS


def test_numbers_of_log_lines_rise_over_a_restart(tmp_path: Path) -> None:
    """Who asks for what came after the last line that it saw gets the lines of the daemon's next life."""
    with daemon_thread(tmp_path / "first.sock") as before:
        seen = before.logs.ring.last
    with daemon_thread(tmp_path / "moed.sock") as after:
        assert after.logs.ring.read(0).lines[0].sequence > seen
        told = moectl("--home", str(tmp_path), "logs", "--since", str(seen)).stdout
    assert "node.ready" in told


def test_waiting_ends_by_what_it_finds(home: Path, tmp_path: Path) -> None:
    """0 where the daemon is ready, 2 where none comes."""
    done = moectl("--home", str(home), "wait", "--for", "synced", "--json")
    assert (done.returncode, json.loads(done.stdout)["synced"]) == (0, True)
    none = moectl("--home", str(tmp_path), "wait", "--timeout", "0.2")
    told = f"moectl: no daemon came within 0.2 s: no daemon answers on {tmp_path}/moed.sock: No such file or directory"
    assert (none.returncode, none.stderr) == (2, f"{told} (start it with: moed run --home {tmp_path})\n")


def test_settings_change_live_and_go_back(home: Path) -> None:
    """A number, a word and none; what is not live is refused with 1."""
    changed = json.loads(moectl("--home", str(home), "config", "set", "limits.disk_mib", "100000", "--json").stdout)
    now = {one["key"]: one for one in changed["settings"]}
    assert (now["limits.disk_mib"]["value"], now["limits.disk_mib"]["source"]) == (100_000, "set while it runs")
    shown = moectl("--home", str(home), "config", "set", "limits.disk_mib", "none").stdout.splitlines()
    assert [line.split()[:2] for line in shown[2:]] == [["limits.disk_mib", "null"]]
    short = moectl("--home", str(home), "route", "x")
    assert (short.returncode, "text: expected at least 2 characters" in short.stderr) == (1, True)
    refused = moectl("--home", str(home), "config", "set", "node.port", "1")
    assert (refused.returncode, "cannot change" in refused.stderr) == (1, True)
    unknown = moectl("--home", str(home), "config", "set", "log.levl", "debug")
    assert (unknown.returncode, unknown.stderr) == (1, "moectl: unknown key log.levl (did you mean log.level?)\n")
    owner = moectl("--home", str(home), "capacity", "--owner", "zz")
    assert (owner.returncode, "owner: expected 64 hexadecimal digits" in owner.stderr) == (1, True)
    for endless in ("1e999", "-inf", "nan"):
        refused = moectl("--home", str(home), "config", "set", "--", "node.grace_s", endless)
        assert (refused.returncode, f"'{endless}' is not possible (use 0 to 60)" in refused.stderr) == (1, True)
    assert "nothing" in moectl("--home", str(home), "config", "reload").stdout


def test_top_is_drawn(home: Path, tmp_path: Path) -> None:
    """Once as text into a pipe, and as a picture that says the same."""
    text = moectl("--home", str(home), "top", "--once", COLUMNS="118").stdout
    for word in (
        "ready",
        "validator uid 0",
        "this machine",
        "memory",
        "miners as ranked after epoch 0",
        "python",
        "events",
    ):
        assert word in text
    assert moectl("--home", str(home), "top", "--svg", str(tmp_path / "top.svg")).returncode == 0
    picture = (tmp_path / "top.svg").read_text()
    assert picture.startswith("<svg")
    assert "miners" in picture
    assert "@font-face" not in picture
    found = json.loads(moectl("--home", str(home), "top", "--json").stdout)
    assert found["status"]["ready"] is True
    many = top_view.Look(**{**found, "peers": [{**found["peers"][0], "roles": [f"r{n}"]} for n in range(40)]})
    shown = console_text(many, width=118)
    at = shown.index("and ")
    assert int(shown[at:].split()[1]) + sum(f" r{n} " in shown for n in range(40)) == 40
    narrow = console_text(many, width=80)
    assert "miners as ranked" in narrow
    assert "peers: 40" not in narrow
    assert max(map(len, narrow.splitlines())) == 80


def console_text(now: top_view.Look, *, width: int) -> str:
    """The screen as a terminal of this width shows it."""
    console = Console(width=width, height=34, file=StringIO(), record=True, color_system=None)
    console.print(top_view.screen(now, None), height=34)
    return console.export_text()


def test_a_picture_that_cannot_be_written_is_named(home: Path, tmp_path: Path) -> None:
    """One line, and the exit code of wrong usage."""
    found = moectl("--home", str(home), "top", "--interval", "0.2", "--svg", str(tmp_path / "no" / "top.svg"))
    assert (found.returncode, found.stdout) == (3, "")
    assert found.stderr == (
        f"moectl: cannot write {tmp_path}/no/top.svg: No such file or directory (name another file with --svg)\n"
    )


def test_a_bug_report_hides_addresses_and_lists_itself(home: Path, tmp_path: Path) -> None:
    """The same address is the same number everywhere; the list is what is in the file; nothing is overwritten."""
    structlog.get_logger().warning(
        "peer.refused", address="203.0.113.7:4700", other="[2001:db8::7]:4700", at="12:30:05"
    )
    structlog.get_logger().warning("peer.refused", address="203.0.113.7:4701", name="node.example.org:4700")
    file = tmp_path / "report.tar.gz"
    made = json.loads(moectl("--home", str(home), "bugreport", "--file", str(file), "--json").stdout)
    with tarfile.open(file) as bundle:
        parts = {
            entry.name.rpartition("/")[2]: (bundle.extractfile(entry) or BytesIO()).read().decode() for entry in bundle
        }
    assert {entry["name"]: entry["bytes"] for entry in made["contents"]} == {
        name: len(text.encode()) for name, text in parts.items()
    }
    text = "".join(parts.values())
    for hidden in ("203.0.113.7", "2001:db8", "example.org"):
        assert hidden not in text
    first, second = [json.loads(line) for line in parts["log.jsonl"].splitlines() if "peer.refused" in line][-2:]
    assert first["address"].partition(":")[0] == second["address"].partition(":")[0] == "host-1"
    assert first["at"] == "12:30:05"
    assert "refused" in parts["status.json"] or json.loads(parts["status.json"])["ready"]
    again = moectl("--home", str(home), "bugreport", "--file", str(file))
    assert again.returncode == 3


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_words_are_completed(home: Path, shell: str) -> None:
    """The script is for that shell, and the shell's question is answered with verbs."""
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    script = moectl("completion", shell).stdout
    assert f"_MOECTL_COMPLETE={shell}_complete" in script
    words = {"COMP_WORDS": "moectl ran", "COMP_CWORD": "1" if shell != "fish" else "ran"}
    told = moectl(_MOECTL_COMPLETE=f"{shell}_complete", **words)
    assert "rankings" in told.stdout
    assert "status" not in told.stdout


def test_logs_are_lines_for_people_or_programs(home: Path) -> None:
    """Time, level, event, fields; with --json one object a line; the level is filtered by the daemon."""
    structlog.get_logger().warning("disk.filled", path="/a b", free_bytes=7)
    plain = moectl("--home", str(home), "logs", "-n", "1", "--level", "warning")
    assert plain.stdout.split(" ", 1)[1] == "WARNING  disk.filled path='/a b' free_bytes=7\n"
    told = [json.loads(line) for line in moectl("--home", str(home), "logs", "--json").stdout.splitlines()]
    assert {"node.ready", "disk.filled"} <= {line["event"] for line in told}
    after = moectl("--home", str(home), "logs", "--since", str(told[-1]["sequence"]))
    assert after.stdout == ""


def test_followed_logs_come_as_they_happen_and_end_with_the_daemon(tmp_path: Path) -> None:
    """A line logged later is printed at once; when the daemon stops the command ends with 0."""
    with daemon_thread(tmp_path / "moed.sock"):
        command = [sys.executable, "-m", "moed.daemon.ctl", "--home", str(tmp_path), "logs", "-f", "-n", "1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as follower:
            assert follower.stdout is not None
            assert "node.ready" in follower.stdout.readline()
            structlog.get_logger().info("block.final", height=6)
            assert follower.stdout.readline().endswith("block.final height=6\n")
            stopped = moectl("--home", str(tmp_path), "stop")
            assert (stopped.returncode, stopped.stdout) == (0, "the daemon is stopping\n")
            assert follower.wait(10) == 0
    gone = moectl("--home", str(tmp_path), "status")
    assert gone.returncode == 2


@pytest.mark.parametrize(("verb", "words"), [("logs", "7 older lines are gone"), ("events", "7 events are gone")])
def test_a_follower_that_fell_behind_is_told(tmp_path: Path, verb: str, words: str) -> None:
    """Wherever it began: what the daemon's memory no longer had for it is said."""
    dropped = b'HTTP/1.1 200 OK\r\n\r\nevent: dropped\ndata: {"dropped":7}\n\n'
    with _answering_once(tmp_path / "moed.sock", dropped):
        told = moectl("--home", str(tmp_path), verb, "-f")
    assert (told.returncode, told.stdout) == (0, "")
    assert words in told.stderr


def test_the_reader_of_a_pipe_may_leave(home: Path) -> None:
    """``moectl logs -f | head -1`` ends without a complaint."""
    for number in range(20):
        structlog.get_logger().info("noise.made", number=number)
    command = [sys.executable, "-m", "moed.daemon.ctl", "--home", str(home), "logs", "-f"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        writer.stdout.readline()
        writer.stdout.close()
        structlog.get_logger().info("noise.made", number=20)
        assert writer.stderr.read() == ""
        assert writer.wait(10) == 0


# exit codes


def test_a_refusal_exits_with_1(home: Path) -> None:
    """The daemon's words and remedy on one line."""
    done = moectl("--home", str(home), "capacity")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "moectl: nothing was measured yet (ask again in a minute)\n"


def test_no_daemon_exits_with_2(tmp_path: Path) -> None:
    """No socket, a dead socket, a place that no socket can have: one line that names the place."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    for path, reason in (
        (tmp_path / "none.sock", "No such file or directory"),
        (tmp_path / "dead.sock", "Connection refused"),
        (tmp_path / ("x" * 120), "its path is longer than 107 bytes"),
    ):
        done = moectl("--socket", str(path), "status")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"moectl: no daemon answers on {path}: {reason} (start one")
        assert done.stderr.count("\n") == 1
    nowhere = moectl("status", MOED_SOCKET="", XDG_RUNTIME_DIR=str(tmp_path), HOME=str(tmp_path))
    assert nowhere.returncode == 2
    assert f"looked in /run/moed/moed.sock, {tmp_path}/moed/moed.sock, {tmp_path}/.moed/moed.sock)" in nowhere.stderr


def test_an_option_behind_the_verb_is_told_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    """--home and --socket belong to `moectl`, not to its verbs."""
    assert ctl.run(["dht", "table", "--home", "/a"]) == 3
    assert "--home stands before the verb: moectl --home PATH dht table …" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("dance",),
        ("status", "--jsno"),
        ("chain", "--limit", "0"),
        ("complete",),
        ("--home", "/a", "--socket", "/b", "status"),
        ("logs", "--level", "loud"),
    ],
)
def test_wrong_usage_exits_with_3(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown verbs and options, values out of range, arguments that are missing or fight each other."""
    assert ctl.run(list(arguments)) == 3
    assert "Usage: moectl" in capsys.readouterr().err


@pytest.mark.parametrize(("root", "name"), [(ctl.moectl, "moectl"), (cli.moed, "moed")])
def test_no_verb_takes_what_it_does_not_know(
    root: click.Command, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown option of any verb ends with 3, that verb's usage, the option's name and where to read on."""
    main = ctl.main if name == "moectl" else cli.main
    for _, path in commands(root, (name,)):
        with pytest.raises(SystemExit) as ended:
            main([*path[1:], "--nope"])
        told = capsys.readouterr().err
        assert ended.value.code == 3, path
        assert f"Usage: {' '.join(path)} " in told
        assert f"Try '{' '.join(path)} --help'" in told
        assert "--nope" in told


@pytest.mark.parametrize("verb", ["complete", "route", "sql"])
def test_what_is_no_text_is_wrong_usage(home: Path, verb: str) -> None:
    """Bytes that are not UTF-8, on the command line and on standard input."""
    for given in ("-", os.fsdecode(b"The \xff")):
        command = [*COMMAND, str(home), verb, given]
        environ = ENVIRONMENT | {"PYTHONIOENCODING": "utf-8:strict"}
        done = subprocess.run(command, input=b"The \xff", capture_output=True, timeout=30, env=environ)
        assert done.returncode == 3
        assert b"the text is not UTF-8" in done.stderr
        assert b"Traceback" not in done.stderr


def test_a_filter_that_is_no_text_fits_nothing(home: Path) -> None:
    """No name is like it, and there is no traceback."""
    command = [*COMMAND, str(home), "events", "--filter", os.fsdecode(b"\xff")]
    done = subprocess.run(command, capture_output=True, timeout=30, env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_answer_that_cannot_be_written_exits_with_1(home: Path, options: tuple[str, ...]) -> None:
    """On a full disk there is one line that says so."""
    command = [*COMMAND, str(home), "status", *options]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (1, "moectl: No space left on device\n")


def test_help_and_version_exit_with_0() -> None:
    """Both commands, without a daemon."""
    assert moectl("--version").stdout.startswith("moectl, version ")
    assert moectl("--help").returncode == 0


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[click.Command, tuple[str, ...]]]:
    """A command and all below it, with their names."""
    yield command, path
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands(below, (*path, name))


@pytest.mark.parametrize(("root", "name"), [(ctl.moectl, "moectl"), (cli.moed, "moed")])
def test_every_verbs_help_has_an_example_of_it(root: click.Command, name: str) -> None:
    """With the words that lead to the verb; and every option says what it is for."""
    for command, path in commands(root, (name,)):
        with click.Context(command, info_name=" ".join(path)) as context:
            shown = command.get_help(context).partition("\n")[2]
        words = r"(moectl|moed)( --home \S+)? " + " ".join(path[1:])
        assert re.search(words, shown), path
        nameless = [one.name for one in command.params if isinstance(one, click.Option) and not one.help]
        assert nameless == [], path


def test_the_environment_names_a_socket(home: Path) -> None:
    """$MOED_SOCKET is used when no option says otherwise."""
    assert moectl("status", "--json", MOED_SOCKET=str(home / "moed.sock")).returncode == 0


# how it is made


def test_it_loads_neither_torch_nor_trio(home: Path) -> None:
    """A whole `status`, in JSON and as a table, without the heavy libraries in memory."""
    script = (
        "import sys; from moed.daemon.ctl import run\n"
        "codes = [run(['--home', sys.argv[1], 'status', *more]) for more in ([], ['--json'])]\n"
        "heavy = {'torch', 'trio', 'asyncio', 'numpy', 'structlog', 'msgspec', 'nacl', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'{codes} {heavy}' if heavy or any(codes) else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(home)], capture_output=True, text=True, timeout=30, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr


def test_a_credit_has_as_many_units_here_as_on_the_chain() -> None:
    """The constant stands twice, because the chain's own would load what `moectl` must not."""
    assert tables.UNITS_PER_CREDIT == CREDIT


def test_names_from_strangers_cannot_drive_the_terminal() -> None:
    """Escapes and line breaks in a cell are shown as text."""
    assert tables.clean("\x1b[31mred\nrow") == "\\x1b[31mred\\nrow"
    assert tables.clean("naïve ☃") == "naïve ☃"


def test_a_terminal_gets_a_table_with_rules(home: Path) -> None:
    """On a terminal rich draws it."""
    master, slave = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "moed.daemon.ctl", "--home", str(home), "rankings"],
        stdout=slave, stderr=slave, env=ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "120"},
    ) as process:  # fmt: skip
        assert process.wait(20) == 0
    os.close(slave)
    shown = b""
    while True:
        try:
            more = os.read(master, 65536)
        except OSError:  # a terminal whose last writer has left
            break
        if not more:
            break
        shown += more
    os.close(master)
    assert "────" in shown.decode()
    assert "prose" in shown.decode()


def test_top_lives_on_the_whole_screen_until_it_is_interrupted(home: Path) -> None:
    """It takes the other screen of the terminal, draws again and again, and gives the first one back."""
    master, slave = os.openpty()
    # tests that run in the background of a shell ignore interrupts, and so would what they start
    interruptible = ["env", "--default-signal=INT", sys.executable, "-m", "moed.daemon.ctl"]
    with subprocess.Popen(
        [*interruptible, "--home", str(home), "top", "--interval", "0.2"],
        stdout=slave, stderr=slave, env=ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
    ) as process:  # fmt: skip
        os.close(slave)
        shown = b""
        while shown.count(b"this machine") < 2:
            shown += os.read(master, 65536)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                shown += os.read(master, 65536)
            except OSError:  # the terminal's last writer has left
                break
        assert process.wait(20) == 130
    os.close(master)
    assert shown.index(b"\x1b[?1049h") < shown.index(b"miners as ranked") < shown.index(b"\x1b[?1049l")
    assert b"Traceback" not in shown


@pytest.mark.parametrize(
    "reply",
    [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\n\r\nhello", b"HTTP/1.1 404 Not Found\r\n\r\n[1]"],
)
def test_a_strangers_socket_is_no_daemon(tmp_path: Path, reply: bytes) -> None:
    """What answers there, but not as a daemon does, is said to be none."""
    with _answering_once(tmp_path / "other.sock", reply), pytest.raises(DaemonUnreachable):
        Client(tmp_path / "other.sock").get("/v1/status")


def test_a_daemon_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    """The wait for an answer is bounded."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "mute.sock"))
        listener.listen()
        with pytest.raises(DaemonUnreachable, match="no answer in time"):
            Client(tmp_path / "mute.sock", timeout_s=0.1).get("/v1/status")
