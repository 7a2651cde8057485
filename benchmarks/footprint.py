"""Measures what moed takes when it does nothing: ``python -m benchmarks.footprint [--json] [--anchor-python PYTHON]``.

Times of `moectl` and of a start to READY, processor time of an idle daemon, and resident memory, without torch and with
torch and one small expert. Where hivemind 1.1.12 is installed (the extra ``anchors``, or the environment of
``--anchor-python``) its server with one expert of the same width is looked at beside it.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from moed.daemon.config_example import write_default
from moed.daemon.config_sections import ExpertSection
from moed.daemon.home import Home, solo_genesis, write_genesis
from moed.daemon.keystore import create_identity
from moed.daemon.ports import free_ports

from .report import Row, Spread, print_report

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 5
IDLE_S = 10.0
SETTLE_S = 3.0
START_LIMIT_S = 120.0
MIB = 1 << 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
ANCHOR = "hivemind 1.1.12 server"
HIVEMIND_SERVER = """
import sys, time, hivemind
from hivemind.moe.server import Server
server = Server.create(num_experts=1, expert_cls="ffn", hidden_dim=64, num_handlers=1, device="cpu", start=True)
print("ready", flush=True)
time.sleep(3600)
"""


def command(module: str) -> list[str]:
    """The program of a module, run by this interpreter: no more on the way than an installed script has."""
    return [sys.executable, "-m", module]


def make_home(folder: Path, *, is_miner: bool) -> Home:
    """A network of one; the miner has one small expert that does not train."""
    home = Home(folder)
    folder.mkdir(mode=0o700)
    identity = create_identity(home.key)
    write_genesis(home.genesis, solo_genesis(identity))
    (port,) = free_ports(1)
    options: dict[str, int | float | str | bool] = {"width": 64}
    small = ExpertSection(name="small", domain="tables", options=options, train=False)
    role = "miner" if is_miner else "follower"
    write_default(home.config, role=role, port=port, listen="127.0.0.1", experts=[small] if is_miner else [])
    return home


@contextmanager
def ready_daemon(home: Home) -> Iterator[tuple[int, float]]:
    """A daemon that has told the service manager READY: (pid, seconds from its start to that)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = str(home.folder / "notify")
        manager.bind(address)
        manager.settimeout(START_LIMIT_S)
        began = time.monotonic()
        process = subprocess.Popen(
            [*command("moed.daemon.cli"), "run", "--home", str(home.folder), "--log-level", "error"],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "NOTIFY_SOCKET": address},
        )
        try:
            while b"READY=1" not in manager.recv(4096):
                pass
            yield process.pid, time.monotonic() - began
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            Path(address).unlink()


def processor_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(below for child in children for below in tree(int(child)))]


def resident_mib(pid: int) -> float:
    """Resident memory of a process and all below it; what they share is counted in each."""
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in tree(pid))
    return pages * PAGE_BYTES / MIB


def idle_share(pids: list[int]) -> float:
    """Per cent of one core that processes take while nothing is asked of them."""
    before = sum(map(processor_s, pids))
    time.sleep(IDLE_S)
    return (sum(map(processor_s, pids)) - before) / IDLE_S * 100


def timed_ms(arguments: list[str]) -> tuple[Spread, Spread]:
    """How long a command takes, process start included: by the clock, and of a processor's time."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    clock, processor = [], []
    for _ in range(REPEATS):
        began, used = time.perf_counter(), children_s()
        subprocess.run(arguments, env=environment, check=True, stdout=subprocess.DEVNULL)
        clock.append((time.perf_counter() - began) * 1000)
        processor.append((children_s() - used) * 1000)
    return Spread.of(clock), Spread.of(processor)


def children_s() -> float:
    """Processor time of the ended children of this process."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def command_rows(name: str, arguments: list[str], limit_ms: float) -> list[Row]:
    """Both times of a command; on a machine that does other things only the second says something of the command."""
    clock, processor = timed_ms(arguments)
    return [
        bounded(name, "ms", clock, limit_ms),
        bounded(f"{name}-processor", "ms of processor", processor, limit_ms),
    ]


def bounded(name: str, unit: str, found: Spread, limit: float, anchor: float | None = None) -> Row:
    """One row whose median has to stay under ``limit``."""
    ratio = found.median / anchor if anchor else None
    return Row(
        name, unit, found.median, found.min, found.max, ANCHOR, anchor, ratio, f"under {limit:g}", found.median < limit
    )


@contextmanager
def hivemind_server(python: str | None) -> Iterator[int | None]:
    """The anchor's server with one expert, ready: its pid; None where it is not installed."""
    interpreter = python or sys.executable
    check = subprocess.run([interpreter, "-c", "import hivemind"], check=False, capture_output=True)
    if check.returncode != 0:
        yield None
        return
    process = subprocess.Popen(
        [interpreter, "-c", HIVEMIND_SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        assert process.stdout is not None
        yield process.pid if b"ready" in process.stdout.readline() else None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def measure(anchor_python: str | None) -> list[Row]:
    """Every row."""
    with hivemind_server(anchor_python) as pid:
        time.sleep(SETTLE_S)
        anchor_mib = None if pid is None else resident_mib(pid)
        anchor_share = None if pid is None else idle_share(tree(pid))
    rows = command_rows("moectl-help", [*command("moed.daemon.ctl"), "--help"], 100)
    with TemporaryDirectory() as folder:
        for name, is_miner, start_limit_s, memory_limit in (
            ("without-torch", False, 2.0, 80.0),
            ("with-torch-and-one-expert", True, 4.0, 350.0),
        ):
            home = make_home(Path(folder) / name, is_miner=is_miner)
            starts, processor = [], []
            for _ in range(REPEATS):
                with ready_daemon(home) as (pid, took_s):
                    starts.append(took_s)
                    processor.append(processor_s(pid))
            rows.append(bounded(f"start-to-ready-{name}", "s", Spread.of(starts), start_limit_s))
            used = Spread.of(processor)
            rows.append(bounded(f"start-to-ready-{name}-processor", "s of processor", used, start_limit_s))
            with ready_daemon(home) as (pid, _):
                if not is_miner:
                    ask = [*command("moed.daemon.ctl"), "--home", str(home.folder), "status"]
                    rows = command_rows("moectl-status", ask, 150) + rows
                time.sleep(SETTLE_S)
                share = Spread.of([idle_share([pid])])
                rows.append(bounded(f"idle-{name}", "% of a core", share, 0.5, anchor_share))
                memory = Spread.of([resident_mib(pid)])
                rows.append(bounded(f"memory-{name}", "MiB", memory, memory_limit, anchor_mib))
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--anchor-python", help="an interpreter that has hivemind")
    options = parser.parse_args()
    print_report("footprint", measure(options.anchor_python), as_json=options.json)


if __name__ == "__main__":
    main()
