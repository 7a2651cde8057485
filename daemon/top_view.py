"""`moectl top`: the node on one screen, live, or once as text or as a picture."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .client import Client
from .errors import DaemonRefused, DaemonUnreachable
from .tables import clean, credits_of, duration, percent, short, size

WIDTH, HEIGHT = 118, 34
WIDE_CHARS = 100
EVENTS_SHOWN = 8
VALIDATORS_SHOWN = 3
_BAR_CHARS = 10
_NEAR, _FULL = 0.7, 0.9
_ID_DIGITS = re.compile(r"\b[0-9a-f]{40,}\b")
_LEVEL_STYLE = {"warning": "yellow", "error": "red", "critical": "bold red"}
_WEB_FONT = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)
_FONTS = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace"
_NOT_FIELDS = ("timestamp", "level", "event", "sequence", "exception")


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
    """The screen as a picture, which loads nothing: the text is as wide in any monospaced font."""
    console = Console(record=True, width=WIDTH, height=HEIGHT, file=StringIO(), force_terminal=True)
    console.print(screen(now, before), height=HEIGHT)
    picture = console.export_svg(title="moectl top")
    return _WEB_FONT.sub("", picture).replace("Fira Code, monospace", _FONTS)


def screen(now: Look, before: Look | None) -> RenderableType:
    """The whole screen; rates need the look ``before``."""
    return _Screen(now, before)


@dataclass(frozen=True, slots=True)
class _Screen:
    """As much as the terminal has room for: under `WIDE_CHARS` it is one column, of what matters most."""

    now: Look
    before: Look | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        is_wide = options.max_width >= WIDE_CHARS
        layout = Layout()
        layout.split_column(
            Layout(_panel(_title(self.now.status), _health(self.now)), size=4 if is_wide else 5),
            Layout(name="middle"),
            Layout(_panel("events", _events(self.now.events)), size=EVENTS_SHOWN + 2),
        )
        if is_wide:
            layout["middle"].split_row(self._left(), self._right())
        else:
            layout["middle"].split_column(self._machine(), self._miners())
        yield layout

    def _left(self) -> Layout:
        left = Layout()
        left.split_column(
            self._machine(), Layout(_panel(f"peers: {len(self.now.peers)}", _peers(self.now.peers)), ratio=1)
        )
        return left

    def _right(self) -> Layout:
        right = Layout()
        validators = self.now.rankings["validators"]
        right.split_column(
            self._miners(),
            Layout(
                _panel(f"validators: {len(validators)}", _validators(validators)),
                size=3 + max(min(len(validators), VALIDATORS_SHOWN), 1),
            ),
            Layout(_panel(f"experts: {len(self.now.experts)}", _experts(self.now.experts))),
        )
        return right

    def _machine(self) -> Layout:
        return Layout(_panel("this machine", _resources(self.now, self.before)), size=10)

    def _miners(self) -> Layout:
        rankings = self.now.rankings
        return Layout(_panel(f"miners as ranked after epoch {rankings['epoch']}", _miners(rankings["miners"])))


def _panel(title: str, inside: RenderableType) -> Panel:
    return Panel(inside, title=Text(title, style="bold not dim"), title_align="left", border_style="dim")


def _title(status: Mapping[str, Any]) -> str:
    uid = "" if status["uid"] is None else f" uid {status['uid']}"
    network = clean(status.get("network_name") or short(status["network"]))
    return f"moed {status['version']}: {status['role']}{uid} of {network}"


def _health(now: Look) -> RenderableType:
    status, lag = now.status, now.resources["loop_lag_ms"]
    is_well = status["ready"] and status["synced"]
    word = "ready" if is_well else "catching up" if status["ready"] else "not ready"
    behind = status["best_known_height"] - status["height"]
    first = Text.assemble(
        (f"● {word}", "bold green" if is_well else "bold yellow"), ("   up ", "dim"), duration(status["uptime_s"]),
        ("   block ", "dim"), (str(status["height"]), "bold"), (f" ({behind} behind)" if behind > 0 else "", "yellow"),
        *_epoch_words(status),
        ("   event loop late by ", "dim"), f"{lag['median']:.1f} ms", (f", at most {lag['max']:.1f} ms", "dim"),
    )  # fmt: skip
    second = Text.assemble(
        ("node ", "dim"), status["node_id"], ("   state root ", "dim"), status["state_root"][:16]
    )  # fmt: skip
    return Group(first, second)


def _epoch_words(status: Mapping[str, Any]) -> tuple[tuple[str, str] | str, ...]:
    """The epoch under way, and how far it is."""
    if "tempo" not in status:
        return ()
    done, tempo = status["height"] % status["tempo"], status["tempo"]
    return ("   epoch ", "dim"), str(status["epoch"] + 1), (f", {done} of {tempo} blocks", "dim")


def _resources(now: Look, before: Look | None) -> RenderableType:
    found, files = now.resources, now.resources["files"]
    rows = Table.grid(padding=(0, 2), expand=True)
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(justify="right", no_wrap=True)
    rows.add_column(width=_BAR_CHARS)
    rows.add_column(style="dim", no_wrap=True, ratio=1)
    rows.add_row("CPU", *_cpu(now, before))
    for name, used in (("memory", found["memory"]), ("home on disk", found["disk"])):
        limit = used["limit_bytes"]
        words = "no limit" if limit is None else f"of {size(limit)}"
        rows.add_row(name, size(used["used_bytes"]), _bar(used["used_bytes"], limit), words)
    rows.add_row("disk free", size(found["disk"]["free_bytes"]))
    rows.add_row("open files", str(files["used"]), _bar(files["used"], files["limit"]), f"of {files['limit']}")
    rows.add_row("threads", str(found["cpu"]["threads"]), "", f"{found['cpu']['torch_threads']} for torch")
    for name, key in (("sent", "sent_bytes"), ("received", "received_bytes")):
        rows.add_row(name, _byte_rate(now, before, key), "", f"{size(found['network'][key])} in all")
    return rows


def _cpu(now: Look, before: Look | None) -> tuple[str, RenderableType, str]:
    total_s = now.resources["cpu"]["seconds"]
    if before is None:
        return duration(total_s), "", "in all"
    share = (total_s - before.resources["cpu"]["seconds"]) / max(now.at_s - before.at_s, 1e-9)
    return percent(share), _bar(share, 1.0), "of one core"


def _byte_rate(now: Look, before: Look | None, key: str) -> str:
    if before is None:
        return "-"
    moved = now.resources["network"][key] - before.resources["network"][key]
    return f"{size(moved / max(now.at_s - before.at_s, 1e-9))}/s"


def _bar(used: float, limit: float | None) -> RenderableType:
    if not limit:
        return ""
    share = used / limit
    style = "red" if share > _FULL else "yellow" if share > _NEAR else "green"
    return _plain_bar(share, style)


def _plain_bar(share: float, style: str) -> RenderableType:
    return ProgressBar(
        total=1.0, completed=min(share, 1.0), width=_BAR_CHARS, complete_style=style, finished_style=style
    )


class _FittedTable:
    """A table of as many rows as there is room for; a last line says how many more there are."""

    def __init__(self, *columns: str, nothing: str) -> None:
        """Columns whose name starts with ">" are right-aligned; ``nothing`` stands for no rows."""
        self._columns = columns
        self._nothing = nothing
        self._rows: list[tuple[RenderableType, ...]] = []

    def add_row(self, *cells: RenderableType) -> None:
        self._rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self._rows:
            yield Text(self._nothing, style="dim")
            return
        room = len(self._rows) if options.height is None else max(options.height - 1, 1)
        is_cut = len(self._rows) > room
        table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for column in self._columns:
            table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
        for row in self._rows[: room - 1] if is_cut else self._rows:
            table.add_row(*row)
        yield table
        if is_cut:
            yield Text(f"and {len(self._rows) - room + 1} more", style="dim")


def _peers(peers: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _FittedTable("node", ">uid", "roles", ">round trip", nothing="no session with anybody yet")
    for peer in peers:
        trip = "-" if peer.get("rtt_ms") is None else f"{peer['rtt_ms']:.1f} ms"
        table.add_row(short(peer["node_id"]), _uid(peer), Text(clean(", ".join(peer.get("roles") or ()))), trip)
    return table


def _miners(miners: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _FittedTable(">uid", "domain", ">incentive", "", ">credits paid", nothing="no miner is registered yet")
    top = max((miner["incentive"] for miner in miners), default=0.0) or 1.0
    for miner in miners:
        table.add_row(
            _uid(miner), Text(clean(miner["domain"] or "-")), percent(miner["incentive"]),
            _plain_bar(miner["incentive"] / top, "cyan"), credits_of(miner.get("emission")),
        )  # fmt: skip
    return table


def _validators(validators: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _FittedTable(">uid", "node", ">credits at stake", ">dividends", ">trust", nothing="none has a permit yet")
    for one in sorted(validators, key=lambda one: -one["stake"]):
        shares = percent(one["dividends"]), percent(one["trust"])
        table.add_row(_uid(one), short(one["node_id"]), credits_of(one["stake"]), *shares)
    return table


def _experts(experts: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _FittedTable(">uid", "name", "kind", ">forwards/s", ">wait", nothing="nobody serves one yet")
    for one in experts:
        wait = "-" if one.get("queue_delay_ms") is None else f"{one['queue_delay_ms']:.0f} ms"
        speed = "-" if one.get("forwards_per_s") is None else f"{one['forwards_per_s']:,.1f}"
        table.add_row(_uid(one), Text(clean(one["name"])), Text(clean(str(one.get("kind") or "-"))), speed, wait)
    return table


def _uid(row: Mapping[str, Any]) -> str:
    return "-" if row.get("uid") is None else str(row["uid"])


def _events(events: Sequence[Mapping[str, Any]]) -> RenderableType:
    return Group(*(_event(one) for one in events))


def _event(event: Mapping[str, Any]) -> Text:
    """One line: when, what, and the fields that say something, with ids cut short."""
    style = _LEVEL_STYLE.get(event["level"], "")
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(event["timestamp"][11:19], "dim")
    if style:
        line.append(f"  {event['level'].upper()}", style)
    line.append(f"  {clean(event['event'])}", style or "cyan")
    for name, value in event.items():
        if name not in _NOT_FIELDS and value is not None:
            line.append(f"  {clean(name)} ", "dim")
            line.append(_ID_DIGITS.sub(lambda found: short(found[0]), clean(_words(value))))
    return line


def _words(value: object) -> str:
    """A field's value; a map without its brackets and quotes."""
    return ", ".join(f"{name}: {one}" for name, one in value.items()) if isinstance(value, Mapping) else str(value)
