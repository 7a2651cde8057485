"""`moectl top`: the node on one screen, live, or once as text or as a picture."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .client import Client
from .errors import DaemonRefused, DaemonUnreachable
from .tables import clean, credits_of, duration, log_text, percent, rate, short, size

WIDTH, HEIGHT = 118, 34
EVENTS_SHOWN = 8
_BAR_CHARS = 18
_NEAR, _FULL = 0.7, 0.9


@dataclass(frozen=True, slots=True)
class Look:
    """Everything that one screen shows, and when it was asked."""

    at_s: float
    status: Mapping[str, Any]
    resources: Mapping[str, Any]
    peers: Sequence[Mapping[str, Any]]
    experts: Sequence[Mapping[str, Any]]
    rankings: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]


def look(client: Client) -> Look:
    """Ask the daemon for one screen. Raises `DaemonUnreachable` or `DaemonRefused`."""
    return Look(
        time.monotonic(),
        client.get("/v1/status"),
        client.get("/v1/resources"),
        client.get("/v1/peers"),
        client.get("/v1/experts"),
        client.get("/v1/rankings"),
        client.get("/v1/events", {"tail": EVENTS_SHOWN, "level": "info"})["events"],
    )


def run(client: Client, interval_s: float) -> None:
    """Show it on the whole screen until Ctrl-C; a daemon that goes away is said so, and looked for again."""
    before: Look | None = None
    now = look(client)
    with Live(screen(now, None), screen=True, auto_refresh=False) as live:
        while True:
            live.update(screen(now, before), refresh=True)
            time.sleep(interval_s)
            try:
                before, now = now, look(client)
            except (DaemonUnreachable, DaemonRefused) as error:
                live.update(Panel(Text(str(error)), title="moed", border_style="red"), refresh=True)


def print_once(now: Look) -> None:
    """Show it once on standard output."""
    console = Console(height=HEIGHT)
    console.print(screen(now, None), height=HEIGHT)


def draw_svg(now: Look, before: Look | None = None) -> str:
    """The screen as a picture."""
    console = Console(record=True, width=WIDTH, height=HEIGHT, file=StringIO(), force_terminal=True)
    console.print(screen(now, before), height=HEIGHT)
    return console.export_svg(title="moectl top")


def screen(now: Look, before: Look | None) -> RenderableType:
    """The whole screen; rates need the look ``before``."""
    layout = Layout()
    layout.split_column(
        Layout(_health(now), size=5),
        Layout(name="middle"),
        Layout(
            Panel(_events(now.events), title="events", title_align="left", border_style="dim"), size=EVENTS_SHOWN + 2
        ),
    )
    layout["middle"].split_row(Layout(name="left", ratio=5), Layout(name="right", ratio=6))
    layout["left"].split_column(
        Layout(Panel(_resources(now, before), title="this machine", title_align="left"), size=10),
        Layout(Panel(_peers(now.peers), title=f"peers ({len(now.peers)})", title_align="left")),
    )
    layout["right"].split_column(
        Layout(Panel(_ranking(now.rankings), title=_ranking_title(now.rankings), title_align="left")),
        Layout(Panel(_experts(now.experts), title=f"experts ({len(now.experts)})", title_align="left")),
    )
    return layout


def _health(now: Look) -> RenderableType:
    status = now.status
    is_well = status["ready"] and status["synced"]
    word = "ready" if is_well else "catching up" if status["ready"] else "not ready"
    first = Text.assemble(
        (f"● {word}", "bold green" if is_well else "bold yellow"),
        f"   {status['role']}" + ("" if status["uid"] is None else f" uid {status['uid']}"),
        f"   {status.get('network_name') or short(status['network'])}",
        ("   up " + duration(status["uptime_s"]), "dim"),
    )
    epoch = f"   epoch {status['epoch']}" if "epoch" in status else ""
    behind = status["best_known_height"] - status["height"]
    second = Text.assemble(
        ("height ", "dim"), (str(status["height"]), "bold"), (f"  {behind} behind" if behind > 0 else "", "yellow"),
        epoch, ("   root ", "dim"), status["state_root"][:16], ("   node ", "dim"), status["node_id"],
    )  # fmt: skip
    return Panel(Group(first, second, _network_line(now)), title=f"moed {status['version']}", title_align="left")


def _network_line(now: Look) -> Text:
    lag = now.resources["loop_lag_ms"]
    return Text.assemble(
        ("loop lag ", "dim"), f"{lag['median']:.1f} ms", (f" (longest {lag['max']:.1f} ms)", "dim"),
        ("   peers ", "dim"), str(now.status["peers"]), ("   experts ", "dim"), str(len(now.experts)),
    )  # fmt: skip


def _resources(now: Look, before: Look | None) -> RenderableType:
    found = now.resources
    rows = Table.grid(padding=(0, 1), expand=True)
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(width=_BAR_CHARS)
    rows.add_column(justify="right", no_wrap=True)
    rows.add_row("CPU", *_cpu(now, before))
    for name, used in (("memory", found["memory"]), ("home", found["disk"])):
        limit = used["limit_bytes"]
        words = size(used["used_bytes"]) + ("" if limit is None else f" of {size(limit)}")
        rows.add_row(name, _bar(used["used_bytes"], limit), words)
    rows.add_row("disk free", "", size(found["disk"]["free_bytes"]))
    files = found["files"]
    rows.add_row("open files", _bar(files["used"], files["limit"]), f"{files['used']} of {files['limit']}")
    rows.add_row("threads", "", f"{found['cpu']['threads']}, {found['cpu']['torch_threads']} for torch")
    for name, key in (("sent", "sent_bytes"), ("received", "received_bytes")):
        rows.add_row(name, Text(_byte_rate(now, before, key), justify="right"), size(found["network"][key]))
    return rows


def _cpu(now: Look, before: Look | None) -> tuple[RenderableType, str]:
    total_s = now.resources["cpu"]["seconds"]
    if before is None:
        return "", f"{duration(total_s)} in all"
    share = (total_s - before.resources["cpu"]["seconds"]) / max(now.at_s - before.at_s, 1e-9)
    return _bar(share, 1.0), percent(share)


def _byte_rate(now: Look, before: Look | None, key: str) -> str:
    if before is None:
        return ""
    moved = now.resources["network"][key] - before.resources["network"][key]
    return f"{size(moved / max(now.at_s - before.at_s, 1e-9))}/s"


def _bar(used: float, limit: float | None) -> RenderableType:
    if not limit:
        return ""
    share = used / limit
    style = "red" if share > _FULL else "yellow" if share > _NEAR else "green"
    return ProgressBar(total=1.0, completed=min(share, 1.0), width=_BAR_CHARS, complete_style=style)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, expand=True, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
    return table


def _peers(peers: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _table("node", ">uid", "roles", ">round trip")
    for peer in peers:
        trip = "-" if peer.get("rtt_ms") is None else f"{peer['rtt_ms']:.1f} ms"
        uid = "-" if peer.get("uid") is None else str(peer["uid"])
        table.add_row(short(peer["node_id"]), uid, Text(clean(", ".join(peer.get("roles") or ()))), trip)
    return table


def _ranking_title(rankings: Mapping[str, Any]) -> str:
    return f"ranking after epoch {rankings['epoch']}"


def _ranking(rankings: Mapping[str, Any]) -> RenderableType:
    table = _table(">uid", "domain", ">incentive", "", ">credits")
    top = max((miner["incentive"] for miner in rankings["miners"]), default=0.0)
    for miner in rankings["miners"]:
        bar = ProgressBar(total=top or 1.0, completed=miner["incentive"], width=_BAR_CHARS, complete_style="cyan")
        table.add_row(
            str(miner["uid"]), Text(clean(miner["domain"] or "-")), percent(miner["incentive"]), bar,
            credits_of(miner.get("emission")),
        )  # fmt: skip
    return table


def _experts(experts: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _table(">uid", "name", "kind", ">forwards", ">queue")
    for expert in experts:
        queue = "-" if expert.get("queue_delay_ms") is None else f"{expert['queue_delay_ms']:.1f} ms"
        uid = "-" if expert["uid"] is None else str(expert["uid"])
        name, kind = clean(expert["name"]), clean(str(expert.get("kind") or "-"))
        table.add_row(uid, Text(name), Text(kind), rate(expert.get("forwards_per_s"), "/s"), queue)
    return table


def _events(events: Sequence[Mapping[str, Any]]) -> RenderableType:
    styles = {"warning": "yellow", "error": "red", "critical": "bold red"}
    lines = [
        Text(log_text(one), style=styles.get(one["level"], ""), no_wrap=True, overflow="ellipsis") for one in events
    ]
    return Group(*lines)
